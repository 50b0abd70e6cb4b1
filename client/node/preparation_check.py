"""How inputs are prepared: as the approved plan says it, and as it was at first.

What a backbone's inputs go through is sent as JSON beside the plan. Where it is among the
backbone's tensors its fingerprint covers it; else a plan may name its hash, `backbone.preparation`,
which is then part of what a hospital approves. In any case it stays what it was when the same plan
came with the same backbone first. docs/adr/0016-preparations.md says why.
"""

from __future__ import annotations

import json

from fedgraft.client.desk import Offer
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.common.backbones.backbone import preparation_from_json
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.inputs.material import hash_preparation
from fedgraft.common.plan.agreement import Agreement


def check_preparation(offer: Offer, plan: Agreement, identity: str, store: BackboneStore) -> None:
    """Raise `Refused` where an offer's preparation is none, or not the one that was agreed on.

    Args:
        identity: the agreement's hash.
        store: of this node, which keeps the offer that came first.
    """
    sent = _hash_sent(offer.preparation, plan.backbone.name)
    agreed = plan.backbone.preparation
    if agreed is not None and sent != agreed:
        what = f"inputs would be prepared as {sent}, and the plan says {agreed}"
        raise Refused(Code.MISMATCH, f"backbone.preparation: {what}")
    earlier = store.find_plan(identity)
    if earlier is None:
        return
    first = Offer.read(earlier)
    if first.fingerprint != offer.fingerprint:
        return
    if _hash_sent(first.preparation, plan.backbone.name) != sent:
        what = "inputs would be prepared in another way than when this plan came first"
        raise Refused(Code.MISMATCH, f"{what}; give the plan another name")


def _hash_sent(text: str, backbone: str) -> str:
    """Return the hash of a preparation as it came. Raise `Refused` where it is none."""
    try:
        return hash_preparation(preparation_from_json(backbone, json.loads(text)))
    except (UserError, ValueError, TypeError, AttributeError) as error:
        what = f"a preparation of inputs that {backbone} cannot have"
        raise Refused(Code.MISMATCH, what) from error
