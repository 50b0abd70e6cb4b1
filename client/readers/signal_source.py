"""Signals that were read at once, out of a table or an archive, as a `Source`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedgraft.client.readers.recording import BrokenSignal, Recording, check_recording
from fedgraft.client.readers.source import (
    Label,
    Prepare,
    Source,
    content_digest,
    did_you_mean,
    digest,
)
from fedgraft.common.errors import UserError


@dataclass(frozen=True)
class Beside:
    """What is known of signals beside samples and labels.

    Attributes:
        places: where a person finds each.
        columns: name → gives each signal's text in that column.
        identities: SHA-256 of everything that stands there of each; empty: not known.
    """

    places: Sequence[str]
    columns: Mapping[str, Callable[[], list[str]]] = field(default_factory=dict)
    identities: Sequence[bytes] = ()


def signal_source(
    where: str,
    recordings: Sequence[Recording | BrokenSignal],
    labels: Sequence[Label],
    beside: Beside,
) -> Source:
    """Return a `Source` over signals; those that cannot be used are left out and counted.

    Raises:
        UserError: none can be used.
    """
    used: list[Recording] = []
    rows: list[int] = []
    problems: Counter[str] = Counter()
    for row, recording in enumerate(recordings):
        try:
            if isinstance(recording, BrokenSignal):
                raise recording
            used.append(check_recording(recording))
            rows.append(row)
        except BrokenSignal as error:
            problems[str(error)] += 1
    if not used:
        counts = [f"{count}: {problem}" for problem, count in problems.most_common(5)]
        what = f"no signal that can be used ({'; '.join(counts) or 'there are none'})"
        raise UserError(what, where=where, remedy="give records without missing samples")
    own = [labels[row] for row in rows]
    contents = [recording.content() for recording in used]

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Any:
        picked = [used[row].signal() for row in rows.tolist()]
        return picked if prepare is None else prepare(picked)

    def column(name: str) -> list[str]:
        if name not in beside.columns:
            what = f"no column {name!r}{did_you_mean(name, list(beside.columns))}"
            remedy = f"it has {', '.join(beside.columns) or 'none'}"
            raise UserError(what, where=where, remedy=remedy)
        texts = beside.columns[name]()
        return [texts[row] for row in rows]

    identities = [beside.identities[row] for row in rows] if beside.identities else None
    return Source(
        where=where,
        labels=own,
        digests=[digest(content, label) for content, label in zip(contents, own, strict=True)],
        read=read,
        place=lambda row: beside.places[rows[row]],
        column=column,
        skipped=sum(problems.values()),
        problems=dict(problems.most_common()),
        contents=[content_digest(content) for content in contents],
        identities=identities,
        plural="signals",
    )
