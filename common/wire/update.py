"""AdapterUpdate ⇄ Flower RecordDict: the only door through which anything leaves a node.

All adapter tensors travel as one flat float32 array, in the order of a `Layout` that both sides
derive from the plan and the backbone. Forty small arrays would cost about 400 bytes of framing
each; one costs 400 in all. The layout's digest travels with it, so that two sides which disagree on
a name, an order or a shape find out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.privacy.accounting import NEIGHBOURS, Spent
from fedgraft.common.privacy.clipping import applied
from fedgraft.common.tasks.classification_sums import Groups, Sums, zero
from fedgraft.common.wire.encoding import decode, error_bound

ADAPTER = "adapter"  # the one array of an adapter's values
HISTORY = ("noise-multipliers", "sample-rates", "steps")  # columns of what was spent
_SPENT = (
    "what was spent of the privacy budget (ε, δ, noise, sample rate, steps), and the seconds that"
    " training took"
)
BESIDE = {  # what goes with every update, in words for people, by privacy.mode
    "none": (
        "the number of training examples, the steps and seconds that training took, and its mean"
        " loss"
    ),
    "sample": _SPENT,
    "local": _SPENT,
    "central": "the seconds that training took",
}
LARGEST = (
    1.0e4  # no adapter value that training can reach is larger; 1e30 from a broken node is refused
)


class BadUpdate(Exception):
    """What came over the wire is not the adapter that was agreed on: wrong keys, shape, dtype, or
    not finite.
    """


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that travel, in their order on the wire.

    Attributes:
        drawn: fingerprint of the adapter tensors that do not travel, since both sides draw them
            from the seed; else empty.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    drawn: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], drawn: Mapping[str, Tensor] | None = None) -> Layout:
        """The layout of an adapter state. Raises `BadUpdate` for a tensor that is not float32."""
        for name, tensor in state.items():
            if tensor.dtype != torch.float32:
                raise BadUpdate(f"{name} is {tensor.dtype}; adapters travel as float32")
        shapes = tuple((name, tuple(state[name].shape)) for name in sorted(state))
        return cls(shapes, fingerprint_of(drawn) if drawn else "")

    @property
    def values(self) -> int:
        """How many numbers travel."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that two sides compare: they agree on every name, order and shape, or
        they differ.
        """
        return hashlib.sha256((json.dumps(self.shapes) + self.drawn).encode()).hexdigest()[:16]


def pack(state: Mapping[str, Tensor], layout: Layout) -> ArrayRecord:
    """Adapter tensors → one flat float32 array."""
    flat = torch.cat([state[name].detach().reshape(-1) for name, _ in layout.shapes])
    return ArrayRecord({ADAPTER: Array(flat.cpu().numpy())})


def unpack(record: ArrayRecord, layout: Layout) -> dict[str, Tensor]:
    """One flat array → adapter tensors by name.

    Raises:
        BadUpdate: other keys, another dtype or length, or values that are not finite or absurdly
            large.
    """
    if list(record.keys()) != [ADAPTER]:
        raise BadUpdate(f"arrays {sorted(record.keys())[:5]}; only {ADAPTER!r} is agreed on")
    array = record[ADAPTER]
    if array.dtype != "float32" or tuple(array.shape) != (layout.values,):
        raise BadUpdate(f"{array.dtype}{list(array.shape)}; float32[{layout.values}] was agreed on")
    try:
        flat = torch.from_numpy(np.array(array.numpy()))
    except (ValueError, TypeError, OSError, EOFError) as error:  # bytes that are no array
        raise BadUpdate(f"the array cannot be read ({type(error).__name__})") from error
    if flat.dtype != torch.float32 or tuple(flat.shape) != (
        layout.values,
    ):  # the bytes, not the label
        raise BadUpdate(f"{flat.dtype}{list(flat.shape)}; float32[{layout.values}] was agreed on")
    _must_be_believable(flat)
    return split_flat(flat, layout)


def _unpack_encoded(
    record: ArrayRecord, layout: Layout, encoding: str, sent: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """An encoded update → the adapter that was sent, moved by it. Raises as `unpack`."""
    if list(record.keys()) != [ADAPTER] or sent is None:
        raise BadUpdate(f"arrays {sorted(record.keys())[:5]}; only {ADAPTER!r} is agreed on")
    try:
        update = decode(record[ADAPTER].numpy(), layout.shapes, encoding)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise BadUpdate(f"the array cannot be read as {encoding} ({error})") from error
    state = applied(sent, update)
    _must_be_believable(torch.cat([tensor.reshape(-1) for tensor in state.values()]))
    return state


@contextlib.contextmanager
def _somebodys_bytes() -> Iterator[None]:
    """Whatever else reading them raises is a `BadUpdate`, too: an infinite count, an archive, a
    header of petabytes.

    One bad reply must not stop the others, and what strange bytes can raise in Flower, NumPy and
    zipfile is no list.
    """
    try:
        yield
    except BadUpdate:
        raise
    except Exception as error:
        raise BadUpdate(f"it cannot be read ({type(error).__name__})") from error


def _must_be_believable(flat: Tensor) -> None:
    largest = float(flat.abs().max()) if flat.numel() else 0.0  # NaN if one of them is
    if not math.isfinite(largest):
        raise BadUpdate("values that are not finite (NaN or infinity)")
    if largest > LARGEST:
        raise BadUpdate(f"a value of {largest:.3g}; none above {LARGEST:g} is believable")


def split_flat(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """A flat float32 tensor `(layout.values,)` → its tensors by name."""
    sizes = [math.prod(shape) for _, shape in layout.shapes]
    parts = zip(layout.shapes, torch.split(flat, sizes), strict=True)
    return {name: part.reshape(shape).clone() for (name, shape), part in parts}


@dataclass(frozen=True)
class AdapterUpdate:
    """What one node sends back after one round.

    Attributes:
        round: the round it belongs to, from 1.
        state: the adapter's tensors after local training.
        examples: training examples behind it (the weight of the average).
        steps: optimizer steps taken.
        train_loss: mean cross-entropy over the local steps, nats; None under differential privacy.
        seconds: time of local training.
        received: sums of metrics of the model as it was *received*, on the node's test split, or
            None.
        spent: what the run has spent at this node so far, under differential privacy.
        rounding: at most this part of the update is lost to its encoding for now.
    """

    round: int
    state: dict[str, Tensor]
    examples: int
    steps: int
    train_loss: float | None
    seconds: float
    received: Sums | None
    spent: Spent | None = None
    rounding: float = 0.0

    def to_record(self, layout: Layout, wire: np.ndarray | None = None) -> RecordDict:
        """The reply's content: one array and a few numbers; nothing else.

        Args:
            wire: the update as `common/wire/encoding.py` encodes it, to travel instead of the
                state.
        """
        numbers: dict[str, Any] = {
            "num-examples": self.examples,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        if self.train_loss is not None:
            numbers["train-loss"] = self.train_loss
        content = RecordDict(
            {
                ADAPTER: (
                    pack(self.state, layout)
                    if wire is None
                    else ArrayRecord({ADAPTER: Array(wire)})
                ),
                "train": MetricRecord(numbers),
                "about": ConfigRecord({"round": self.round, "layout": layout.digest}),
            }
        )
        if self.received is not None:
            content["received"] = MetricRecord(self.received.to_flat())
        if self.spent is not None:
            content["privacy"] = spent_record(self.spent)
        return content

    @classmethod
    @_somebodys_bytes()
    def from_record(
        cls,
        content: RecordDict,
        layout: Layout,
        round_: int,
        classes: int,
        *,
        encoding: str = "none",
        sent: Mapping[str, Tensor] | None = None,
    ) -> AdapterUpdate:
        """Read and check a reply. Raises `BadUpdate` with what is wrong, in words for the result's
        `refused`.

        Args:
            encoding: how the update travels.
            sent: the adapter that it was made of; needed for an encoded update.
        """
        allowed = {ADAPTER, "train", "about", "received", "privacy"}
        if extra := set(content.keys()) - allowed:
            raise BadUpdate(f"unexpected records {sorted(extra)[:5]}")
        try:
            arrays = content.array_records[ADAPTER]
            about = content.config_records["about"]
            numbers = content.metric_records["train"]
            said_round, digest = int(about["round"]), str(about["layout"])  # type: ignore[arg-type]
            examples, steps = int(numbers["num-examples"]), int(numbers["steps"])  # type: ignore[arg-type]
            said_loss, seconds = numbers.get("train-loss"), float(numbers["seconds"])  # type: ignore[arg-type]
            loss = None if said_loss is None else float(said_loss)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise BadUpdate(
                f"a part of the reply is missing or of the wrong type ({error})"
            ) from error
        if said_round != round_:
            raise BadUpdate(f"a reply of round {said_round} in round {round_}")
        if digest != layout.digest:
            raise BadUpdate(
                f"layout {digest}; {layout.digest} was agreed on (other names or shapes)"
            )
        if (
            examples < 1
            or steps < 0
            or not math.isfinite(loss or 0.0)
            or not math.isfinite(seconds)
        ):
            raise BadUpdate(f"{examples} examples, {steps} steps, loss {loss}: not believable")
        received, spent = (
            content.metric_records.get("received"),
            content.config_records.get("privacy"),
        )
        if ("privacy" in content) != (spent is not None):
            raise BadUpdate("what was spent is of the wrong type")
        return cls(
            round=round_,
            state=(
                unpack(arrays, layout)
                if encoding == "none"
                else _unpack_encoded(arrays, layout, encoding, sent)
            ),
            rounding=(
                0.0
                if encoding == "none"
                else error_bound(arrays[ADAPTER].numpy(), layout.shapes, encoding)
            ),
            examples=examples,
            steps=steps,
            train_loss=loss,
            seconds=seconds,
            received=None if received is None else read_sums(received, classes),
            spent=None if spent is None else read_spent(spent),
        )


@_somebodys_bytes()
def read_sums(record: MetricRecord, classes: int) -> Sums:
    """Metric sums from the wire. Raises `BadUpdate` where they contradict themselves."""
    try:
        return Sums.from_flat(dict(record), classes)
    except ValueError as error:
        raise BadUpdate(f"metrics: {error}") from error


def group_records(groups: Groups) -> dict[str, MetricRecord]:
    """Metric sums of groups of people, as they travel: under the numbers of column and group in the
    plan, no name.
    """
    return {_group(at): MetricRecord(sums.to_flat()) for at, sums in groups.items()}


@_somebodys_bytes()
def read_groups(content: RecordDict, sizes: Sequence[int], whole: Sums) -> Groups:
    """What an evaluation tells of groups beside `received`.

    Args:
        sizes: how many groups each column of the plan has; empty where none were asked for.
        whole: the sums of all the node's test records.

    Raises:
        BadUpdate: other records, sums that contradict themselves, or a column's groups together
            more than all.
    """
    asked = {
        _group((column, group)): (column, group)
        for column, size in enumerate(sizes)
        for group in range(size)
    }
    if extra := set(content.keys()) - {"received", *asked}:
        raise BadUpdate(f"unexpected records {sorted(map(str, extra))[:5]}")
    groups = {at: read_sums(content.metric_records[name], whole.classes) for name, at in asked.items()
              if name in content.metric_records}  # fmt: skip
    if len(groups) + 1 != len(content):
        raise BadUpdate("a group's sums are of the wrong type")
    for column in range(len(sizes)):
        together = sum(
            (sums for at, sums in groups.items() if at[0] == column), zero(whole.classes)
        )
        if not together.within(whole):
            raise BadUpdate(f"the groups of column {column} are together more than all records")
    return groups


def _group(at: tuple[int, int]) -> str:
    return f"subgroup.{at[0]}.{at[1]}"


def spent_record(spent: Spent) -> ConfigRecord:
    """What was spent, as it travels; `read_spent` reads it."""
    said: dict[str, Any] = spent.to_json()
    columns = {name: [row[at] for row in spent.history] for at, name in enumerate(HISTORY)}
    del said["history"]
    return ConfigRecord({**said, **columns})


def read_spent(record: ConfigRecord) -> Spent:
    """What was spent, from the wire. Raises `BadUpdate` where it is no ε of any history."""
    try:
        said: dict[str, Any] = dict(record)
        columns = [list(said[name]) for name in HISTORY]
        history = tuple((float(s), float(q), int(n)) for s, q, n in zip(*columns, strict=True))
        spent = Spent(
            float(said["epsilon"]), float(said["delta"]), said["unit"], said["accountant"], history
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadUpdate(f"what was spent is missing or of the wrong type ({error})") from error
    rows = 0 < len(history) <= 10_000 and all(
        0 <= s < math.inf and 0 < q <= 1 and n > 0 for s, q, n in history
    )
    named = spent.unit in NEIGHBOURS and spent.accountant in ("prv", "rdp")
    if not (rows and named and 0 <= spent.epsilon < math.inf and 0 < spent.delta < 1):
        raise BadUpdate("what was spent is no ε of any history")
    return spent


def message_bytes(message: Message) -> int:
    """Size of a message in bytes as Flower serialises it: its header, records, arrays and chunks.

    Children are summed as often as they are referred to: Flower sends a chunk once for each message
    and de-duplicates inside it only, which matters for all-zero tensors; they are counted once
    here, too.
    """
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        no_object_id_recompute,
    )

    with no_object_id_recompute():  # or Flower serialises a child anew for each of its parents
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
