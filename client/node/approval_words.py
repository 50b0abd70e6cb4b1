"""A proposal in plain words, for a person who does not read YAML: what is trained, how long, what
leaves, at what ε.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedgraft.client.node.approve import Proposal
from fedgraft.client.node.node_file import Node
from fedgraft.common.adapters import METHODS
from fedgraft.common.files.bundle import Bundle, contents_of, extensions_in, unpacked
from fedgraft.common.model.solve_head import (
    closed_form_of,
    noisy_form_of,
    releases_products,
    sums_products,
)
from fedgraft.common.plan.chosen_by_validation import (
    calibrates,
    chooses_point,
    chooses_round,
    measures_validation,
)
from fedgraft.common.plan.phases import begins_with_texts, rounds_for, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.statistics.gram_sums import LEAST_RECORDS_A_FEATURE
from fedgraft.common.statistics.noisy_sums import count_products
from fedgraft.common.statistics.temperature import TEMPERATURES
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.update import BESIDE

# tensors that are listed one by one, and how many of more
_MOST_LISTED = 12
_LISTED_OF_MORE = 10
_TRUSTED = (
    "it has the node's rights and sees the records: what is said here holds if it is what it seems"
)
# bytes of a value
_FLOAT32 = 4

_WHOSE = {
    "example": "a single record",
    "patient": "all records of one patient",
    "node": "what all of this hospital's data did to the model",
}
_HOW = {
    "sample": "each step's gradient is clipped and noised here, before anything leaves",
    "local": "what leaves is noised here",
    "central": "the noise is added by the server, which sees what this hospital sends",
}


def in_words(node: Node, proposal: Proposal) -> str:
    """Return the proposal as a page of text."""
    plan = proposal.plan
    bundle = proposal.bundle
    release = bundle.name.split(".", 2)[2]
    parts = [
        (f"Plan {plan.name}", [proposal.identity]),
        ("What it learns", _what_it_learns(plan)),
        ("How long", [_how_long(plan)]),
        ("What leaves this hospital", list(_what_leaves(node, proposal))),
        ("Differential privacy", list(_privacy(node, plan))),
        ("Code that would run", [f"fedgraft {release}, {bundle.hash}", *_extensions(proposal)]),
    ]
    if proposal.refusals:
        crossed = [f"✗ {clause}" for clause in proposal.refusals]
        parts.append(("This node's policy refuses it, approved or not:", crossed))
    return "\n\n".join(_part(title, lines) for title, lines in parts)


def code_in_words(bundle: Bundle, folder: Path) -> str:
    """Return which code a bundle holds that is not fedgraft's, for who shall read it.

    Args:
        folder: where it was unpacked.
    """
    lines = []
    for name, files in extensions_in(unpacked(bundle)).items():
        count = sum(content.count(b"\n") for content in files.values())
        lines.append(f"{name}: {len(files)} files, {count:,} lines, {contents_of(files)}")
        lines += [f"  {folder / path}" for path in files]
    lines.append(_TRUSTED)
    return _part("The coordinator's bundle holds code that is not fedgraft's", lines)


def _extensions(proposal: Proposal) -> Iterator[str]:
    """Give the code that is not fedgraft's, and whether the plan uses it."""
    used = {extension.name for extension in proposal.plan.extensions}
    for name, identity in proposal.extensions.items():
        use = "which the plan uses" if name in used else "which this plan does not use"
        yield f"and extension {name}, {use}, {identity}"
    if proposal.extensions:
        yield _TRUSTED


def _part(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _what_it_learns(plan: Plan) -> list[str]:
    task = plan.task
    question = TASKS[task.question].describe(task)
    method = METHODS[plan.adapter.method]
    trained = method.describe(method.read_options(plan.adapter.model_dump()))
    learnt = f"trained is the {trained}"
    if trains_nothing(plan.train):
        learnt = "nothing is trained"
    computed = ""
    if plan.backbone.precision != "float32":
        computed = f" and computed in {plan.backbone.precision}"
    if plan.backbone.quantization is not None:
        computed += f", its weights quantized to {plan.backbone.quantization}"
    return [
        f"{question} ({task.kind.replace('-', ' ')})",
        f"on a frozen {plan.backbone.name}, which is not changed{computed}; {learnt}",
        *_first_head(plan),
        _how_prepared(plan),
    ]


def _first_head(plan: Plan) -> Iterator[str]:
    """Give the texts that the first head is made of, where texts make one."""
    if not begins_with_texts(plan.train):
        return
    yield "the head that comes first is made of texts, and of no records:"
    texts = plan.task.texts
    for name, of_class in list(zip(plan.task.classes, texts, strict=True))[:_MOST_LISTED]:
        first, *others = of_class
        more = f" and {len(others)} more" if others else ""
        yield f"  {name}: “{first}”{more}"
    if len(texts) > _MOST_LISTED:
        yield f"  and those of {len(texts) - _MOST_LISTED} more classes"


def _how_prepared(plan: Plan) -> str:
    agreed = plan.backbone.preparation
    if agreed is not None:
        return f"records are prepared as {agreed}, and in no other way"
    return (
        "how records are prepared for it comes with it, and stays as it was at first"
        " (backbone.preparation names it in a plan)"
    )


def _how_long(plan: Plan) -> str:
    train = plan.train
    if train.method == "closed-form":
        return "one round: this hospital's training data are read once"
    if trains_nothing(train):
        return "no training: this hospital's test data are read once, to measure"
    passes = "1 pass" if train.local_epochs == 1 else f"{train.local_epochs} passes"
    if train.local_steps is not None:
        passes = f"{train.local_steps} steps"
    each = f"in each, {passes} over this hospital's training data"
    histograms = rounds_for(train, "histograms")
    sums = rounds_for(train, "sums")
    if not sums and not histograms:
        most = "at most " if train.patience is not None else ""
        return f"{most}{train.rounds} rounds; {each}, {train.batch_size} records at a time"
    steps = f"{len(rounds_for(train, 'steps'))} of {train.rounds} rounds are training; {each}"
    words = f"{steps}, {train.batch_size} records at a time"
    if histograms:
        words += "; the first for histograms, read once"
    if sums:
        ends = " and ".join("first" if number == 1 else "last" for number in sums)
        words += f"; the {ends} for sums, read once"
    return words


def _what_leaves(node: Node, proposal: Proposal) -> Iterator[str]:
    plan = proposal.plan
    layout = proposal.layout
    each_round = proposal.bytes_each_round
    numbers = f"{layout.values:,} numbers in {len(layout.shapes)} tensors"
    in_all = _size(len(rounds_for(plan.train, "steps")) * each_round)
    if rounds_for(plan.train, "steps"):
        which = "each round of training" if proposal.sums else "each round"
        yield f"after {which} {numbers}, {_size(each_round)}; {in_all} in all"
        yield from _tensors(layout)
        yield f"with it {BESIDE[plan.privacy.mode]}"
    yield from _histograms(plan)
    for number, features in proposal.sums.items():
        yield from _sums(node, plan, number, features)
    yield _metrics(node, plan)
    yield from _validation(node, plan)
    yield from _groups(node, plan)
    yield "no record, no image, no label, no file name"


def _sums(node: Node, plan: Plan, number: int, features: int) -> Iterator[str]:
    """Give what leaves in a round of sums."""
    when = "once" if plan.train.method == "closed-form" else f"in round {number}"
    closed = closed_form_of(plan)
    if plan.privacy.at_node:
        what = f"sums of {features:,} features {closed.by}"
        if releases_products(plan):
            what += f", of their {count_products(features):,} products with one another"
        yield f"{when}: {what}, and {closed.counts}, with noise"
        yield "with it what was spent of the privacy budget, and the seconds that it took"
        return
    if not sums_products(plan):
        yield (
            f"{when}: sums over the training records of {features:,} features and of their squares,"
            f" {closed.by}, and {closed.counts}, {_size(8 * features)} each"
        )
        yield "  of a class with one record they are that record's features; of few, nearly so;"
        yield f"  this node takes part from {node.policy.min_examples:,} records on (min_examples)"
        yield "  sent again after a record came or went, the difference is that record"
        return
    pairs = count_products(features)
    yield (
        f"{when}: sums over the training records of {features:,} features, their {pairs:,} products"
        f" with one another, {closed.by}, and {closed.counts}, {_size(8 * pairs)}"
    )
    least = LEAST_RECORDS_A_FEATURE * features
    yield f"  of fewer than {least:,} records (twice the features) they tell of any record at hand"
    yield "  whether it is among them, and of a few dozen they give every record's features back;"
    yield f"  this node takes part from {node.policy.min_examples:,} records on (min_examples)"
    yield "  sent again after a record came or went, the difference is that record"


def _tensors(layout: Layout) -> list[str]:
    """Return the largest tensors, one a line."""
    by_size = sorted(layout.shapes, key=lambda shape: (-math.prod(shape[1]), shape[0]))
    lines = []
    for name, shape in by_size:
        sides = " × ".join(map(str, shape)) or "1"
        lines.append(f"  {name}  {sides}  {_size(_FLOAT32 * math.prod(shape))}")
    if len(lines) <= _MOST_LISTED:
        return lines
    rest = len(lines) - _LISTED_OF_MORE
    return [*lines[:_LISTED_OF_MORE], f"  and {rest} smaller ones"]


def _histograms(plan: Plan) -> Iterator[str]:
    """Give what a round of histograms tells, where the plan has one."""
    if not rounds_for(plan.train, "histograms"):
        return
    yield "in the first round, of each column of numbers, how often each value occurs among the"
    yield "training records, rounded to eight significant bits, without noise: the server sees"
    yield "values that a single person has, but not what else that person has"


def _metrics(node: Node, plan: Plan) -> str:
    if node.policy.noises_metrics(plan.privacy):
        counts = "counts of right and wrong answers on the test records"
        return f"{counts}, with noise that the ledger counts"
    if not node.policy.reports(plan.privacy):
        return "no metrics (this node's policy)"
    sums = f"sums over the test records ({TASKS[plan.task.question].reports})"
    return f"{sums}, from which {', '.join(plan.evaluate.metrics)} are computed"


def _validation(node: Node, plan: Plan) -> Iterator[str]:
    """Give what leaves of validation records, where the plan measures them."""
    if not measures_validation(plan.train, plan.evaluate):
        return
    share = plan.evaluate.validation_fraction
    if share:
        kept = "where the data has no validation records of its own"
        yield f"{share:.0%} of the training records are kept out of training, {kept}"
    if not node.policy.reports(plan.privacy):
        yield "nothing of validation records, which the plan asks for (this node's policy)"
        return
    when = "after the last round"
    if chooses_round(plan.train):
        when = "after each round" if plan.evaluate.every == 1 else "between rounds"
    yield f"{when} the same sums over the validation records"
    if chooses_point(plan.train):
        yield "once more the same sums, from which a threshold between the two classes is chosen"
    if calibrates(plan.train):
        count = len(TEMPERATURES)
        yield f"once the loss over the validation records at {count} temperatures, a sum each"


def _groups(node: Node, plan: Plan) -> Iterator[str]:
    """Give which groups of people the plan measures by themselves, and whether this node does."""
    columns = []
    for column in plan.evaluate.subgroups:
        columns.append(f"{column.column} ({', '.join(column.groups)})")
    if not columns:
        return
    least = node.policy.least_in_group(plan.privacy)
    if least is None:
        why = "ε would not cover it"
        if plan.privacy.mode == "none":
            why = "this node's policy"
        nothing = "nothing of groups of people, which the plan asks for"
        yield f"{nothing} ({why}): {'; '.join(columns)}"
        return
    same = "after the last round the same sums for groups of people"
    away = "nor of any that would give such a group away"
    yield f"{same}, by the columns that the plan names; of none with"
    yield f"fewer than {least} test records, {away} (min_subgroup):"
    for column in columns:
        yield f"  {column}"


def _privacy(node: Node, plan: Plan) -> Iterator[str]:
    privacy = plan.privacy
    if privacy.mode == "none":
        yield "none"
        yield "What leaves was computed from the records and may say something about single ones."
        return
    how = _HOW[privacy.mode]
    if privacy.mode == "sample" and plan.train.method == "closed-form":
        how = "each record's features have norm 1, and their sums are noised here"
        if noisy_form_of(plan).parts is not None:
            how = "the places of a record, of norm 1 each, share its weight; sums are noised here"
    yield how
    if privacy.target_epsilon is None:
        amount = f"noise multiplier {privacy.noise_multiplier:g}"
    else:
        amount = f"ε at most {privacy.target_epsilon:g} for the whole run"
    yield f"{amount} at δ = {privacy.delta:g}; it hides {_WHOSE[privacy.unit]}"
    ceilings = node.policy.ceilings(privacy)
    if ceilings.run is not None:
        yield f"this node stops at ε = {ceilings.run:g} in this run"
    if ceilings.total is not None:
        yield f"and at ε = {ceilings.total:g} over everything ever run on this data"


def _size(count: float) -> str:
    """Return bytes in words: three digits and a unit."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 100:
            return f"{count:.1f} {unit}"
        if count < 1000:
            return f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} GB"
