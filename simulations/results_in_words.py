"""What the table at the end of a simulation means, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgraft.common.privacy.accounting import shown
from fedgraft.common.result import Calibration, OperatingFacts, Validation
from fedgraft.common.tasks.measures import Measure, main_measures
from fedgraft.server.papers.validation_words import (
    describe_calibration,
    describe_operating_point,
    describe_validation,
)
from fedgraft.simulations.answers import describe_answers, question_of
from fedgraft.simulations.readable import show_bytes

Result = Mapping[str, Any]


def describe_results(results: Sequence[Result], *, privacy: bool = True) -> list[str]:
    """Return sentences on what answers are worth, on bytes, on what the backbone brings, on ε, and
    on whoever was left out.

    Args:
        results: result.json of each seed.
        privacy: whether ε and its ledger are among them.
    """
    sentences = [*describe_answers(results), *_describe_choices(results)]
    sentences.append(_describe_bytes(results[0]))
    for measure in main_measures(question_of(results[0])):
        sentences += _describe_gain(results, measure)
    if privacy:
        sentences += _describe_privacy(results)
    sentences += _list_missing(results)
    sentences += _list_notes(results)
    for result in results:
        sentences += _list_refusals(result)
    return sentences


def _describe_choices(results: Sequence[Result]) -> list[str]:
    """Return what was chosen by validation records, seed by seed where there are several."""
    sentences = []
    for result in results:
        seed = f"seed {result['seed']}: " if len(results) > 1 else ""
        for sentence in _describe_choice(result):
            sentences.append(f"{seed}{sentence}")
    return sentences


def _describe_choice(result: Result) -> list[str]:
    sentences = []
    if result.get("validation"):
        validation = Validation.model_validate(result["validation"])
        sentences += describe_validation(validation, result["rounds_done"])
    if result.get("calibration"):
        calibration = Calibration.model_validate(result["calibration"])
        sentences.append(describe_calibration(calibration))
    if result.get("operating_point"):
        point = OperatingFacts.model_validate(result["operating_point"])
        classes = result.get("data", {}).get("classes") or ["class 0", "class 1"]
        sentences.append(describe_operating_point(point, classes[1]))
    return sentences


def count_largest_reply(result: Result) -> float:
    """Return the mean bytes that a node sent in the round in which that was most."""
    rounds = result["bytes"]["rounds"]
    return max((row["up"] / max(row["nodes"], 1) for row in rounds), default=0)


def _describe_bytes(result: Result) -> str:
    spent = result["bytes"]
    size = spent["adapter"]
    what = "one update is"
    if result.get("closed_form"):
        size = count_largest_reply(result)
        what = "the sums of one node are"
    if not spent["rounds"]:
        size = 0
        what = "the updates of one node are"
    full = spent["full_model"]
    beside = ""
    # a table without a network has nothing else to send
    if full > size > 0:
        times = full / size
        beside = f"full fine-tuning would send {show_bytes(full)}, {times:.0f} times as much; "
    backbone = f"the backbone ({show_bytes(spent['backbone'])}) went out once"
    nodes = spent["handout"]["nodes"]
    return f"{what} {show_bytes(size)}; {beside}{backbone} to each of {nodes} nodes"


def _describe_gain(results: Sequence[Result], measure: Measure) -> list[str]:
    """Return what the pre-trained backbone brings over a random one, where both were measured."""
    gains = []
    for result in results:
        ours = result["final"]["global"].get(measure.key)
        theirs = result["baselines"].get("random-backbone", {}).get(measure.key)
        if ours and theirs:
            gains.append(ours - theirs)
    if not gains:
        return []

    least = max(gains) if measure.lower else min(gains)
    mean = f"{np.mean(gains):+.3f} of"
    shown_least = f"{least:+.3f}"
    if measure.in_points:
        mean = f"{100 * np.mean(gains):+.1f} points of"
        shown_least = f"{100 * least:+.1f}"
    sentence = f"what the pre-trained backbone brings: {mean} {measure.words} over a random one"
    if len(gains) > 1:
        sentence += f" (least {shown_least} over {len(gains)} seeds)"
    return [sentence]


def _describe_privacy(results: Sequence[Result]) -> list[str]:
    """Return the largest ε of any node and seed, with all that it needs to mean something, and
    where it is counted.
    """
    spent: list[Mapping[str, Any]] = []
    for result in results:
        spent += result["privacy"].values()
    if not spent:
        return []

    most = max(spent, key=lambda entry: entry["epsilon"])
    sentences = [
        f"privacy: ε ≤ {shown(most['epsilon'])} at δ = {most['delta']:g} at every node, for"
        f" {most['neighbours']}; all rounds composed, {most['accountant'].upper()} accountant;"
        " report.html lists what ε does not cover"
    ]
    ledger = results[0].get("ledger")
    if ledger:
        sentences.append(f"ledger: {ledger}")
    return sentences


def _list_missing(results: Sequence[Result]) -> list[str]:
    """Return what to know of runs that began without some of the expected nodes."""
    sentences = []
    for result in results:
        missing = result.get("missing", 0)
        if missing:
            took_part = (
                f"{len(result['nodes'])} nodes took part, {missing} were expected and not there"
            )
            sentences.append(
                f"seed {result['seed']}: {took_part}; this tells nothing of their records"
            )
    return sentences


def _list_notes(results: Sequence[Result]) -> list[str]:
    """Return every note once, in the order in which the seeds bring them."""
    notes: dict[str, None] = {}
    for result in results:
        notes |= dict.fromkeys(result.get("notes", []))
    return list(notes)


def _list_refusals(result: Result) -> list[str]:
    sentences = []
    for refusal in result["refused"]:
        when = f"seed {result['seed']}, round {refusal['round']}"
        sentences.append(f"{when}: {refusal['node']} left out: {refusal['reason']}")
    return sentences
