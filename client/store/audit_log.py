"""The node's audit log: every message in and out, before it is worked on and before its answer
leaves. Never data.

    in    message, run, kind, plan, round, tensors (name, shape), bytes
    out   the same of the answer, and: decision (sent, refused, late), reason, ε and δ spent,
          seconds

Values of tensors, metrics and configuration are not in it, but for the few named in `_LOGGED`. What
cannot be written down does not happen: a message is refused, an answer stays here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Code, Refused
from fedgraft.common.wire.layout import ADAPTER, Layout
from fedgraft.common.wire.message_size import message_bytes

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

# what of config records is written down, each under its name here
_LOGGED = {
    "plan-hash": "plan",
    "round": "round",
    "fingerprint": "fingerprint",
    "layout": "layout",
    "stored": "stored",
    "has": "has",
    "device": "device",
    "part": "part",
    "parts": "parts",
}
_OF_PRIVACY = ("epsilon", "delta", "unit")
_LONGEST = 200
TOO_LATE = "the coordinator had stopped waiting for it, and drops it"


class Audit:
    """The log of one node.

        audit = Audit(node.audit_path)
        audit.log_arrival(message)
        audit.log_answer(answer, message, layout=layout, seconds=0.2, left=None)

    Args:
        path: the file; None: nothing is written, as at a simulation's nodes.
    """

    def __init__(self, path: Path | None) -> None:
        self.journal = None if path is None else Journal(path)

    def log_arrival(self, message: Message) -> None:
        """Write down a message that arrived. Raises `Refused` where that cannot be done."""
        if self.journal is None:
            return
        body = _head(message) | describe(message.content)
        body["bytes"] = message_bytes(message)
        _append(self.journal, "in", body)

    def log_answer(
        self,
        answer: Message,
        to: Message,
        *,
        layout: Layout | None,
        seconds: float,
        left: float | None,
    ) -> None:
        """Write down an answer that is about to leave.

        Args:
            layout: of the plan's adapter, to name what the flat array holds.
            left: ε that the plan's run may still spend here; None: no ceiling.

        Raises:
            Refused: that cannot be done; do not send it.
        """
        if self.journal is None:
            return
        body = _head(to) | describe(answer.content, layout) | _decision(answer)
        spent = answer.content.config_records.get("privacy")
        if spent:
            for key in _OF_PRIVACY:
                if key in spent:
                    body[key] = spent[key]
            body["epsilon_left"] = left
        body["bytes"] = message_bytes(answer)
        body["seconds"] = round(seconds, 3)
        _append(self.journal, "out", body)


def _append(journal: Journal, kind: str, body: dict[str, Any]) -> None:
    try:
        journal.append(kind, body)
    except Refused as refusal:
        what = f"this node cannot keep its audit log ({refusal.reason})"
        raise Refused(Code.STORAGE, f"{what}; nothing is done") from None


def describe(content: RecordDict, layout: Layout | None = None) -> dict[str, Any]:
    """Return what a content holds: tensors by name and shape, the names of its metrics, and what
    may be written down of its configuration.
    """
    logged = _logged_config(content)
    description: dict[str, Any] = {}
    for key, value in logged.items():
        plain = value if isinstance(value, bool | int) else str(value)[:_LONGEST]
        description[_LOGGED[key]] = plain

    tensors = _shapes(content)
    digest = None if layout is None else layout.digest
    has_adapter = ADAPTER in content.array_records and logged.get("layout") == digest
    if layout is not None and has_adapter:
        tensors = {name: list(shape) for name, shape in layout.shapes}
    if tensors:
        description["tensors"] = tensors

    metrics = {record: sorted(values) for record, values in content.metric_records.items()}
    if metrics:
        description["metrics"] = metrics
    return description


def _logged_config(content: RecordDict) -> dict[str, Any]:
    """Return what may be written down of config records.

    No record hides another one's key: both sides use one record for each purpose.
    """
    logged: dict[str, Any] = {}
    for config in content.config_records.values():
        for key in _LOGGED:
            if key in config:
                logged[key] = config[key]
    return logged


def _shapes(content: RecordDict) -> dict[str, list[int]]:
    shapes = {}
    for record, arrays in content.array_records.items():
        for name, array in arrays.items():
            shapes[f"{record}.{name}"] = list(array.shape)
    return shapes


def _decision(answer: Message) -> dict[str, Any]:
    refused = answer.content.config_records.get("refused")
    if refused is not None:
        return {"decision": "refused", "reason": str(refused.get("reason", ""))}
    if is_late(answer):
        return {"decision": "late", "reason": TOO_LATE}
    return {"decision": "sent"}


def is_late(answer: Message) -> bool:
    """Return whether the coordinator stopped waiting for an answer before it was made."""
    return answer.metadata.ttl <= 0


def in_words(entry: Mapping[str, Any]) -> str:
    """Return one entry's body as a line for people."""
    parts = [f"{entry.get('kind', ''):<15}"]
    if "round" in entry:
        parts.append(f"round {entry['round']}")
    if "plan" in entry:
        parts.append(f"plan {str(entry['plan'])[:19]}…")
    if "tensors" in entry:
        count = len(entry["tensors"])
        parts.append(f"{count} tensor{'s' if count > 1 else ''}")
    parts.append(f"{entry.get('bytes', 0):,} bytes")
    if "epsilon" in entry:
        parts.append(f"ε {entry['epsilon']:.4g} at δ {entry['delta']:g}")
    if "seconds" in entry:
        parts.append(f"{entry['seconds']:.1f} s")
    if entry.get("decision") in ("refused", "late"):
        parts.append(f"✗ {entry['reason']}")
    return "  ".join(parts)


def _head(message: Message) -> dict[str, Any]:
    about = message.metadata
    return {"message": about.message_id, "run": str(about.run_id), "kind": about.message_type}
