"""The page's part on audits: lower bounds on ε that canaries proved, beside the stated upper
bounds.
"""

from __future__ import annotations

from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import (
    ByPlan,
    Measured,
    list_attacks,
    table_by_plan,
)

METHOD = (
    "Marked records (canaries) are put into one hospital's data by the toss of a coin, and somebody"
    " who sees every step guesses which are in (Steinke, Nasr and Jagielski 2023). From the right"
    " guesses follows a lower bound on ε. On a mechanism that keeps its promise it stays below the"
    " stated ε."
)
METHOD_OF_SUMS = (
    "A hospital's sums are released many times over, each time with noise of its own (once, where"
    " there is none). Marked records (canaries), one for each feature and class, are among them by"
    " the toss of a coin, and somebody who knows all other records guesses which are in (Steinke,"
    " Nasr and Jagielski 2023). From the right guesses follows a lower bound on ε. On a release"
    " that keeps its promise it stays below the stated ε."
)
HEAD = (
    "ε stated",
    "ε proved",
    "most that could be proved",
    "right guesses",
    "confidence",
    "in words",
)


def show_audits(results: ByPlan) -> str:
    """Return the heading, the method and a table of every audit; nothing where there was none."""
    rows = []
    methods = []
    for plan, _, measured in list_attacks(results):
        if measured.get("kind") == "audit":
            rows.append((plan, _audit_cells(measured)))
            methods.append(METHOD_OF_SUMS if "releases" in measured else METHOD)
    if not rows:
        return ""
    title = page.heading("Does the noise do what is claimed?", 3)
    explained = map(page.paragraph, dict.fromkeys(methods))
    return "".join([title, *explained, table_by_plan(HEAD, rows, texts=[len(HEAD) - 1])])


def judge_audit(audit: Measured) -> str:
    """Return whether an audit refutes what was stated, in words."""
    if audit["stated_epsilon"] is None:
        return "no promise was made"
    if is_refuted(audit):
        return "REFUTED: more leaks than stated"
    return "does not contradict the promise"


def is_refuted(audit: Measured) -> bool:
    """Return whether more was proved than was stated."""
    stated = audit["stated_epsilon"]
    return stated is not None and audit["epsilon"] > stated


def _audit_cells(audit: Measured) -> list[str]:
    return [
        _show_stated(audit["stated_epsilon"]),
        f"≥ {audit['epsilon']:.3g}",
        f"{audit['ceiling']:.3g}",
        f"{audit['correct']} of {audit['guesses']}",
        f"{100 * audit['confidence']:g} %",
        judge_audit(audit),
    ]


def _show_stated(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"≤ {epsilon:.3g}"
