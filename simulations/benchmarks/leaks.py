"""What attacks and audits find, beside guessing and beside the ε that is stated, on real chest
X-rays: two tables.

    .venv/bin/python -m fedgraft.simulations.benchmarks.leaks
        ten minutes at most on two cores
    .venv/bin/python -m fedgraft.simulations.benchmarks.leaks --minutes 3
        what is not finished by then is said to be missing

Audits   500 canaries beside about a hundred X-rays of one hospital (Steinke, Nasr and Jagielski
         2023): the lower bound on ε that they prove, for a mechanism as it is and for three that
         are broken. Broken by what the step is told, so that the plan states its ε all the same: no
         noise; a tenth of it; a clipping norm that nothing reaches, with the noise that it had. In
         the tests the code itself is broken.
Attacks  against a plan made to leak: 48 X-rays at two hospitals, 30 % of their labels wrong,
         everything trained 75 times over them at 8 × 8 pixels; and against the head trained on the
         same X-rays under ε = 1. Images are rebuilt from one record's gradient, at three sizes.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgraft.simulations.attacks.canaries import CANARIES
from fedgraft.simulations.attacks.empirical_epsilon import Audit
from fedgraft.simulations.benchmarks.leak_tasks import (
    AUDITS,
    BROKEN,
    EPSILONS,
    PLANS,
    SIZES,
    AttackTask,
    AuditTask,
    Measured,
    list_audits,
    list_inversions,
    list_tasks,
    run_tasks,
)
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

NOT_FINISHED = "not finished"
VIEWS = ("shared model", "node updates")
LABELS = {"single": "label of one record named", "counts": "labels of eight records counted"}
AUDITS_HEAD = ("stated ε", f"as it is: median of {AUDITS} audits (least–most)", *BROKEN)
ATTACKS_HEAD = ("attack", "measure", "made to leak", "ε = 1", "guessing")

# what an attack measured on both plans; None where it is not finished
Both = Sequence[Mapping[str, Any] | None]


def main() -> None:
    """Run everything that the time allows, print both tables in Markdown and record them."""
    summary, *_ = (__doc__ or "").splitlines()
    parser = ArgumentParser(
        prog="python -m fedgraft.simulations.benchmarks.leaks", description=summary
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="after which nothing more is waited for"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes at once, of one thread each"
    )
    options = parser.parse_args()
    measured = run_tasks(list_tasks(), 60 * options.minutes, options.workers)
    audits = make_audits_table(measured)
    attacks = make_attacks_table(measured)
    limit = describe_limit(measured)
    print(audits.to_markdown(), limit, attacks.to_markdown(), sep="\n\n", flush=True)
    record("leaks", "audits", audits, packages=("torch", "opacus"), notes=[limit])
    record("leaks", "attacks", attacks, packages=("torch", "opacus"))


# ── audits ────────────────────────────────────────────────────────────────────────────────────────
def make_audits_table(measured: Measured) -> ResultTable:
    """Return lower bounds on ε: of the mechanism as it is, and broken; in bold what refutes the
    stated ε.
    """
    table = ResultTable(AUDITS_HEAD)
    for epsilon in (None, *EPSILONS):
        cells = [show_bounds([measured.get(task) for task in list_audits(epsilon)], epsilon)]
        for broken in BROKEN:
            bound = "–"
            if epsilon:
                bound = show_bound(measured.get(AuditTask(epsilon, broken)), epsilon)
            cells.append(bound)
        table.add(f"{epsilon:g}" if epsilon else "none", *cells)
    return table


def show_bounds(audits: Sequence[Audit | None], stated: float | None) -> str:
    """Return the median of what audits of one mechanism proved, and their range."""
    proved = [audit.epsilon for audit in audits if audit is not None]
    if len(proved) < AUDITS:
        return NOT_FINISHED
    words = f"{np.median(proved):.2f} ({min(proved):.2f}–{max(proved):.2f})"
    above = sum(epsilon > stated for epsilon in proved) if stated else 0
    if above:
        words += f", **{above} above**"
    return words


def show_bound(audit: Audit | None, stated: float) -> str:
    """Return what one audit proved, in bold where it is more than was stated."""
    if audit is None:
        return NOT_FINISHED
    bound = f"{audit.epsilon:.2f}"
    if audit.epsilon > stated:
        return f"**{bound}**"
    return bound


def describe_limit(measured: Measured) -> str:
    """Return the most that an audit could prove, in a sentence."""
    ceilings = [each.ceiling for task, each in measured.items() if isinstance(task, AuditTask)]
    most = max(ceilings, default=0.0)
    return f"At most {most:.2f} can be proved with {CANARIES} canaries, at 95 % confidence."


# ── attacks ───────────────────────────────────────────────────────────────────────────────────────
def make_attacks_table(measured: Measured) -> ResultTable:
    """Return what each attack finds on both plans, and what guessing finds."""
    table = ResultTable(ATTACKS_HEAD, words=(0, 1))
    for attack in ("loss-threshold", "lira"):
        both = _on_both(measured, attack)
        for view in VIEWS:
            table.add(f"{attack}, {view}", "AUC", *_areas(both, view), "0.5")
            table.add("", "hits at 1 % false alarms", *_hits(both, view), "1 %")

    both = _on_both(measured, "labels")
    for key, measure in LABELS.items():
        table.add("labels", measure, *_numbers(both, key), _chance(both, f"{key}_chance"))

    for size in SIZES:
        both = [measured.get(task) for task in list_inversions(size)]
        title = f"image rebuilt, {size} × {size}"
        measure = "SSIM (closer than the mean image)"
        table.add(title, measure, *_similarities(both), _chance(both, "ssim_mean"))
    return table


def _on_both(measured: Measured, attack: str) -> Both:
    return [measured.get(AttackTask(attack, plan)) for plan in PLANS]


def _areas(both: Both, view: str) -> list[str]:
    cells = []
    for measured in both:
        if measured is None:
            cells.append(NOT_FINISHED)
            continue
        seen = measured["views"][view]
        low, high = seen["auc_interval"]
        cells.append(f"{seen['auc']:.2f} ({low:.2f}–{high:.2f})")
    return cells


def _hits(both: Both, view: str) -> list[str]:
    cells = []
    for measured in both:
        if measured is None:
            cells.append(NOT_FINISHED)
            continue
        share = measured["views"][view]["tpr"]["0.01"]
        cells.append(f"{100 * share:.0f} %")
    return cells


def _similarities(both: Both) -> list[str]:
    cells = []
    for measured in both:
        if measured is None:
            cells.append(NOT_FINISHED)
            continue
        closer = f"{measured['better']} of {measured['images']}"
        cells.append(f"{measured['ssim']:.2f} ({closer})")
    return cells


def _numbers(both: Both, key: str) -> list[str]:
    cells = []
    for measured in both:
        cells.append(NOT_FINISHED if measured is None else f"{measured[key]:.2f}")
    return cells


def _chance(both: Both, key: str) -> str:
    """Return what guessing finds, from whichever run is finished."""
    for measured in both:
        if measured is not None:
            return f"{measured[key]:.2f}"
    return "–"


if __name__ == "__main__":
    main()
