"""The server's end of the release chain: its order, and what each step lets through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.wire.layout import BadUpdate, Layout
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.intake.admit import STEPS, admit
from fedgraft.server.intake.incoming import Incoming, Terms
from fedgraft.server.rounds import Round

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3)}
LAYOUT = Layout.of(STATE)
SPENT = Spent(1.5, 1e-5, "example", "prv", ((2.0, 0.5, 4),))


def terms(offered: int = 40, **privacy: Any) -> Terms:
    content = {
        "name": "tiny",
        "task": {"kind": "image-classification", "classes": ["no", "yes"]},
        "backbone": {"name": "cifar-resnet8"},
        "adapter": {"method": "head"},
        "privacy": privacy or {"mode": "none"},
    }
    plan = Plan.model_validate(content)
    return Terms(Round(plan, 3, LAYOUT, STATE, ["north"]), offered)


def reply(examples: int = 40, spent: Spent | None = None) -> RecordDict:
    update = AdapterUpdate(3, STATE, examples, 1, 0.5, 0.1, received=None, spent=spent)
    return update.to_record(LAYOUT)


def test_the_steps_in_their_order() -> None:
    """A check that runs on what is not decoded yet, or after the weight was changed."""
    assert [step.__name__ for step in STEPS] == ["decode", "check_promises", "weigh"]
    with pytest.raises(BadUpdate, match="no update"):
        STEPS[1](Incoming(reply()), terms())


def test_an_update_that_keeps_to_what_was_agreed_on() -> None:
    update = admit(reply(examples=30), terms())
    assert (update.examples, update.round) == (30, 3)
    assert torch.equal(update.state["head.weight"], STATE["head.weight"])


def test_a_weight_beyond_what_it_joined_with() -> None:
    """A node that buys itself the average."""
    with pytest.raises(BadUpdate, match=r"claims a weight of 41 examples; it joined with 40"):
        admit(reply(examples=41), terms())


@pytest.mark.parametrize("mode", ["none", "sample"])
def test_a_reply_under_another_privacy(mode: str) -> None:
    """An update without noise among private ones, or one that says it was made with noise."""
    private = {"mode": "sample", "noise_multiplier": 1.0} if mode == "sample" else {}
    spent = None if mode == "sample" else SPENT
    with pytest.raises(BadUpdate, match=f"privacy.mode is {mode}"):
        admit(reply(spent=spent), terms(**private))


def test_under_privacy_all_weigh_the_same() -> None:
    """A sensitivity of the average that depends on what a node says."""
    private = terms(mode="sample", noise_multiplier=1.0)
    assert admit(reply(examples=17, spent=SPENT), private).examples == 1
