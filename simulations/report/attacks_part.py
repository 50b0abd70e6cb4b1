"""The page's part on attacks: what each found, against what guessing would find; empirical ε beside
the stated one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedgraft.simulations.report import page
from fedgraft.simulations.report.pictures import roc_curves
from fedgraft.simulations.study.study_table import numbers

CAVEATS = {  # what must not be concluded from an attack
    "inversion": (
        "An image that does not come back is no proof that it cannot. This attack rebuilds images"
        " of 8 × 8 and 12 × 12 pixels; at 28 × 28 it does about as well as the mean image, which"
        " anybody has. A better one may do more."
    ),
    "properties": (
        "An ε for an example or a patient does not promise to hide what is true of a whole"
        " hospital. Only noise on its whole update does (privacy.mode: local)."
    ),
}
Found = Mapping[str, Any]  # attacks.json of one run
Named = Sequence[tuple[str, Found]]  # of several, by what tells them apart; one run has the name ""

NAMES = {"loss-threshold": "by the loss", "lira": "LiRA"}
MEANINGS = {
    "loss-threshold": "calls those records members that the model fits best",
    "lira": "compares the model with shadow models that were trained with and without each record",
}


def membership(found: Named) -> str:
    """A table and curves of every attack that tells members from strangers."""
    rows = []
    for name, attack, view, measured in _views(found):
        rates = measured["tpr"]
        rows.append(
            [
                *([name] if name else []),
                f"{NAMES.get(attack, attack)}, {view}",
                _with(measured["auc"], measured["auc_interval"], 1.0),
                *(
                    _with(rates[rate], measured["tpr_interval"][rate], 100.0, " %")
                    for rate in rates
                ),
                verdict(measured),
            ]
        )
    if not rows:
        return ""
    several = any(name for name, *_ in _views(found))
    rates = [
        f"hits at {100 * float(rate):g} % false alarms" for rate in next(_views(found))[3]["tpr"]
    ]
    head = [*(["plan"] if several else []), "attack", "AUC (guessing: 0.5)", *rates, "in words"]
    words = [0, len(head) - 1] if not several else [0, 1, len(head) - 1]
    tried = dict.fromkeys(attack for _, attack, *_ in _views(found))
    meant = [f"{NAMES[name]}: {MEANINGS[name]}" for name in tried if name in MEANINGS]
    picture = roc_curves(_curves(found, one_each=several))
    return (
        page.heading("Can it be told who was in the training data?", 3)
        + page.paragraph(
            "An attacker holds a person's record and asks whether it was trained on. Guessing finds"
            " as many members as it raises false alarms: 1 % at 1 %. In brackets: 95 % intervals"
            " over the records drawn."
        )
        + page.bullets(meant)
        + page.table(head, rows, texts=words)
        + page.figure(
            picture,
            "Hits against false alarms, both on log axes. On the dotted line an attacker might as "
            "well guess; a curve above it at the left names some members with certainty."
            + (" Of each plan the attack with the largest area." if several else ""),
        )
    )


def _curves(found: Named, *, one_each: bool) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Every attack's curve, or of each plan that of the most successful one."""
    seen: dict[str, list[tuple[float, str, Mapping[str, Any]]]] = {}
    for name, attack, view, measured in _views(found):
        what = ": ".join(word for word in (name, f"{NAMES.get(attack, attack)}, {view}") if word)
        seen.setdefault(name, []).append((measured["auc"], what, measured["roc"]))
    if one_each:
        seen = {name: [max(each, key=lambda one: one[0])] for name, each in seen.items()}
    chosen = [one for each in seen.values() for one in each]
    return {what: (roc["fpr"], roc["tpr"]) for _, what, roc in chosen[:8]}


def verdict(measured: Mapping[str, Any]) -> str:
    """What an attack's numbers mean, in words."""
    low, high = measured["auc_interval"]
    rate = max(measured["tpr"], key=float)
    surely = measured["tpr_interval"][rate][0] > float(rate)
    if low > 0.5 or surely:
        return (
            "leaks strongly"
            if measured["auc"] >= 0.7 or measured["tpr"][rate] >= 0.1
            else "leaks a little"
        )
    return "not told from guessing" if high >= 0.5 else "worse than guessing"


def worst(found: Found) -> Mapping[str, Any] | None:
    """The most successful membership attack on one run."""
    measured = [each for *_, each in _views([("", found)])]
    return max(measured, key=lambda each: each["auc"], default=None)


def audits(found: Named) -> list[tuple[str, Mapping[str, Any]]]:
    """Every audit of a mechanism, by what tells the runs apart."""
    return [
        (name, each) for name, run in found for each in run.values() if each.get("kind") == "audit"
    ]


def empirical(found: Named) -> str:
    """Lower bounds on ε that canaries proved, beside the stated upper bounds."""
    rows = [
        [
            *([name] if name else []),
            "none" if each["stated_epsilon"] is None else f"≤ {each['stated_epsilon']:.3g}",
            f"≥ {each['epsilon']:.3g}",
            f"{each['ceiling']:.3g}",
            f"{each['correct']} of {each['guesses']}",
            f"{100 * each['confidence']:g} %",
            contradiction(each),
        ]
        for name, each in audits(found)
    ]
    if not rows:
        return ""
    head = [
        "ε stated",
        "ε proved",
        "most that could be proved",
        "right guesses",
        "confidence",
        "in words",
    ]
    several = any(name for name, _ in audits(found))
    return (
        page.heading("Does the noise do what is claimed?", 3)
        + page.paragraph(
            "Marked records (canaries) are put into one hospital's data by the toss of a coin, and"
            " somebody who sees every step guesses which are in (Steinke, Nasr and Jagielski 2023)."
            " From the right guesses follows a lower bound on ε. On a mechanism that keeps its"
            " promise it stays below the stated ε."
        )
        + page.table(
            [*(["plan"] if several else []), *head],
            rows,
            texts=[0, len(head)] if several else [len(head) - 1],
        )
    )


def contradiction(each: Mapping[str, Any]) -> str:
    """Whether an audit refutes what was stated."""
    if each["stated_epsilon"] is None:
        return "no promise was made"
    return "REFUTED: more leaks than stated" if refuted(each) else "does not contradict the promise"


def refuted(each: Mapping[str, Any]) -> bool:
    """Whether more was proved than was stated."""
    return each["stated_epsilon"] is not None and each["epsilon"] > each["stated_epsilon"]


def others(found: Named) -> str:
    """Attacks of another kind: what each found beside what guessing finds; one that is not known
    here as it is.
    """
    rows, rest = [], []
    several = any(name for name, _ in found)
    for name, run in found:
        for attack, each in run.items():
            kind = each.get("kind")
            if kind in KINDS:
                rows += [[*([name] if several else []), *row] for row in KINDS[kind](each)]
            elif kind not in ("membership", "audit"):
                rest.append(_as_it_is(name, attack, each))
    if not rows:
        return "".join(rest)
    head = [
        *(["plan"] if several else []),
        "what was tried",
        "measure",
        "found",
        "guessing",
        "in words",
    ]
    words = [0, 1, 2, 5] if several else [0, 1, 4]
    kinds = {each.get("kind") for _, run in found for each in run.values()}
    return (
        page.heading("What does a hospital's update give away?", 3)
        + page.table(head, rows, texts=words)
        + page.bullets(words for kind, words in CAVEATS.items() if kind in kinds)
        + "".join(rest)
    )


def _inversion(each: Mapping[str, Any]) -> list[list[str]]:
    """Images rebuilt from an update, beside the mean image, which anybody has."""
    return [
        [
            f"rebuild {each['images']} images, {each['together']} to a step",
            "similarity (SSIM; 1: the same image)",
            f"{each['ssim']:.3f}",
            f"{each['ssim_mean']:.3f}",
            f"{each['better']} of {each['images']} closer than the mean image",
        ]
    ]


def _labels(each: Mapping[str, Any]) -> list[list[str]]:
    """Labels read from the head's gradient."""
    low = each["counts_interval"][0]
    return [
        [
            f"count the labels in steps of {each['together']}",
            "share counted rightly",
            _with(each["counts"], each["counts_interval"], 1.0),
            f"{each['counts_chance']:.3f}",
            "leaks" if low > each["counts_chance"] else "not told from guessing",
        ],
        [
            "name the label of a step of one record",
            "share named rightly",
            f"{each['single']:.3f}",
            f"{each['single_chance']:.3f}",
            "leaks" if each["single"] > each["single_chance"] + 0.1 else "not told from guessing",
        ],
    ]


def _properties(each: Mapping[str, Any]) -> list[list[str]]:
    """A hospital's share of a class, read from its update."""
    better = each["error"] < 0.8 * each["error_chance"]
    return [
        [
            f"the share of {each['share_of']} at each of {each['nodes']} hospitals",
            "mean error of the share",
            f"{each['error']:.3f}",
            f"{each['error_chance']:.3f}",
            "leaks: ε does not promise to hide it" if better else "not told from guessing",
        ]
    ]


KINDS: Mapping[str, Callable[[Mapping[str, Any]], list[list[str]]]] = {
    "inversion": _inversion,
    "labels": _labels,
    "properties": _properties,
}


def _as_it_is(name: str, attack: str, each: Mapping[str, Any]) -> str:
    rows = [
        [key.lstrip(".").replace("_", " "), _number(value)]
        for key, value in numbers(each, "").items()
        if not key.endswith("seconds")
    ]
    title = ": ".join(word for word in (name, attack.replace("-", " ")) if word)
    return page.heading(title, 3) + page.table(["measured", "value"], rows) if rows else ""


def _views(found: Named) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for name, run in found:
        for attack, each in run.items():
            if each.get("kind") == "membership":
                for view, measured in each["views"].items():
                    yield name, attack, view, measured


def _with(value: float, interval: Sequence[float], times: float, unit: str = "") -> str:
    digits = 3 if times == 1 else 1
    low, high = (f"{times * each:.{digits}f}" for each in interval)
    return f"{times * value:.{digits}f}{unit} ({low} to {high})"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "∞"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:,}"
