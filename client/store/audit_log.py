"""The node's audit log: every message in and out, before it is worked on and before its answer
leaves. Never data.

    in    message, run, kind, plan, round, tensors (name, shape), bytes
    out   the same of the answer, and: decision (sent, refused), reason, ε and δ spent, seconds

Values of tensors, metrics and configuration are not in it, but for the few named in `_SAID`. What
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

# what config records may say here
_SAID = ("plan-hash", "round", "fingerprint", "layout", "stored", "has", "part", "parts")


class Audit:
    """The log of one node.

    Args:
        path: the file; None: nothing is written, as at a simulation's nodes.
    """

    def __init__(self, path: Path | None) -> None:
        self.journal = None if path is None else Journal(path)

    def came(self, message: Message) -> None:
        """Write down a message that arrived. Raises `Refused` where that cannot be done."""
        if self.journal is not None:
            self._append(
                "in",
                _head(message) | described(message.content) | {"bytes": message_bytes(message)},
            )

    def goes(
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
        body = _head(to) | described(answer.content, layout)
        refused = answer.content.config_records.get("refused")
        body["decision"] = "sent" if refused is None else "refused"
        if refused is not None:
            body["reason"] = str(refused.get("reason", ""))
        if spent := answer.content.config_records.get("privacy"):
            body |= {key: spent[key] for key in ("epsilon", "delta", "unit") if key in spent}
            body["epsilon_left"] = left
        self._append("out", body | {"bytes": message_bytes(answer), "seconds": round(seconds, 3)})

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        assert self.journal is not None
        try:
            self.journal.append(kind, body)
        except Refused as refusal:
            raise Refused(
                Code.STORAGE,
                f"this node cannot keep its audit log ({refusal.reason}); nothing is done",
            ) from None


def described(content: RecordDict, layout: Layout | None = None) -> dict[str, Any]:
    """What a content holds: tensors by name and shape, the names of its metrics, and what `_SAID`
    allows.
    """
    found: dict[str, Any] = {}
    said = {
        key: config[key]
        for config in content.config_records.values()
        for key in _SAID
        if key in config
        # a later record does not hide an earlier one's key: both sides use one record for each
        # purpose
    }
    for key, value in said.items():
        found[{"plan-hash": "plan"}.get(key, key)] = (
            value if isinstance(value, bool | int) else str(value)[:200]
        )
    tensors = {
        f"{record}.{name}": list(array.shape)
        for record, arrays in content.array_records.items()
        for name, array in arrays.items()
    }
    if (
        layout is not None
        and ADAPTER in content.array_records
        and said.get("layout") == layout.digest
    ):
        tensors = {name: list(shape) for name, shape in layout.shapes}
    if tensors:
        found["tensors"] = tensors
    if metrics := {record: sorted(values) for record, values in content.metric_records.items()}:
        found["metrics"] = metrics
    return found


def in_words(entry: Mapping[str, Any]) -> str:
    """One entry's body as a line for people."""
    parts = [f"{entry.get('kind', ''):<15}"]
    if "round" in entry:
        parts.append(f"round {entry['round']}")
    if "plan" in entry:
        parts.append(f"plan {str(entry['plan'])[:19]}…")
    if "tensors" in entry:
        parts.append(f"{len(entry['tensors'])} tensor{'s' if len(entry['tensors']) > 1 else ''}")
    parts.append(f"{entry.get('bytes', 0):,} bytes")
    if "epsilon" in entry:
        parts.append(f"ε {entry['epsilon']:.4g} at δ {entry['delta']:g}")
    if "seconds" in entry:
        parts.append(f"{entry['seconds']:.1f} s")
    if entry.get("decision") == "refused":
        parts.append(f"✗ {entry['reason']}")
    return "  ".join(parts)


def _head(message: Message) -> dict[str, Any]:
    about = message.metadata
    return {"message": about.message_id, "run": str(about.run_id), "kind": about.message_type}
