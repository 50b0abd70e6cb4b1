"""What the server's messages carry to the nodes of a round."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedgraft.common.plan.plan_file import agreement_hash
from fedgraft.common.wire.layout import ADAPTER, pack
from fedgraft.server.rounds import Round


def round_content(round_: Round) -> RecordDict:
    """Return what a train or evaluate message carries.

    That is the adapter, the agreement's hash, the round, and the server's clipping norm, if any.
    """
    about: dict[str, Any] = {
        "plan-hash": agreement_hash(round_.plan),
        "round": round_.number,
        "layout": round_.layout.digest,
    }
    if round_.clip is not None:
        about["clip"] = round_.clip
    adapter = pack(round_.sent, round_.layout)
    return RecordDict({ADAPTER: adapter, "about": ConfigRecord(about)})
