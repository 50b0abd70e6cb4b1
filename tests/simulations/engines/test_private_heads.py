"""Private heads of many nodes at once against one by one."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch

from fedgraft.client.privacy.ledger import Ledger
from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.simulations.engines import private_heads, together
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.engines.together import train_together
from tests.simulations.conftest import DESK

TOGETHER = {"together": functools.partial(train_together, DESK), "workers": 1}
SAMPLE = (
    "adapter={method: head}",
    "privacy={mode: sample, noise_multiplier: 0.8, delta: 1.0e-4, accountant: rdp}",
)


def adapters(folder):
    return load_shared_model(folder / "shared_model").model.adapter_state()


def ledgers(federation):
    """Return each node's lines, but for their time."""
    books = []
    for node in federation.nodes:
        lines = Ledger(load_simulated_node(node).ledger_path).book().lines
        books.append([(line.round, line.purpose, line.row, line.settled) for line in lines])
    return books


def forget_everything(federation):
    """Take away each node's ledger and the answers that it keeps."""
    for path in federation.nodes:
        node = load_simulated_node(path)
        shutil.rmtree(node.store / "answers")
        for file in node.ledger_path.parent.glob(f"{node.ledger_path.name}*"):
            file.unlink()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.local_epochs=3", "train.proximal=0.1", "aggregate.strategy=fedprox"),
        ("train.loss=focal", "train.class_weights=[1, 3]"),
        ("train.batch_size=1", "train.rounds=1"),
        (
            "train.optimizer={name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.01}",
            "train.schedule=cosine",
        ),
    ],
)
def test_the_same_as_one_by_one(tiny, tmp_path, overrides) -> None:
    """Another node's noise, an empty place that counts, a step without records left out, another ε.

    The nodes have 32 to 56 training examples: 4 to 7 steps of 8; with a batch of one a third of
    the lots is empty.
    """
    federation = tiny(4)
    apart, _ = federation.run(tmp_path / "apart", (*SAMPLE, *overrides), workers=1)
    alone = ledgers(federation)
    forget_everything(federation)
    at_once, _ = federation.run(tmp_path / "at_once", (*SAMPLE, *overrides), **TOGETHER)
    for name, value in adapters(tmp_path / "apart").items():
        torch.testing.assert_close(adapters(tmp_path / "at_once")[name], value, rtol=0, atol=1e-5)
    assert alone == ledgers(federation)
    assert all(line[-1] for book in alone for line in book)
    assert at_once["privacy"] == apart["privacy"]
    assert at_once["refused"] == apart["refused"] == []


def test_it_is_really_used(tiny, tmp_path, monkeypatch) -> None:
    """A comparison of one by one with one by one."""
    sizes = []
    real = private_heads.run_private_rounds
    monkeypatch.setattr(
        together,
        "run_private_rounds",
        lambda opened, round_: sizes.append(len(opened)) or real(opened, round_),
    )
    tiny(4).run(tmp_path / "out", (*SAMPLE, "train.rounds=2"), **TOGETHER)
    assert sizes == [4, 4]


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter={method: lora, rank: 2}",),
        ("privacy.grad_sample_mode=ghost",),
    ],
)
def test_what_it_does_not_know_is_asked_one_by_one(tiny, tmp_path, monkeypatch, overrides) -> None:
    """An adapter or a way of clipping that the plan names, and another one done."""
    monkeypatch.setattr(
        together, "run_private_rounds", lambda *given: pytest.fail("trained at once")
    )
    result, _ = tiny(3).run(tmp_path / "out", (*SAMPLE, *overrides, "train.rounds=1"), **TOGETHER)
    assert len(result["privacy"]) == 3


@pytest.mark.parametrize(
    "error",
    [
        Refused(Code.BUDGET, "nothing is left"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_node_that_cannot_reserve_is_left_out_alone(tiny, tmp_path, monkeypatch, error) -> None:
    """A budget that is spent, a ledger on a full disk: gradients without a reservation, or the
    others refused as well.
    """
    reserve = Ledger.reserve
    federation = tiny(3)
    full = load_simulated_node(federation.nodes[1]).ledger_path

    def of_one_that_cannot(self, *given, **options):
        if self.path == full:
            raise error
        return reserve(self, *given, **options)

    monkeypatch.setattr(Ledger, "reserve", of_one_that_cannot)
    plan = (*SAMPLE, "train.rounds=2", "aggregate.round_timeout=20")
    result, _ = federation.run(tmp_path / "out", plan, **TOGETHER)
    assert [(row["node"], row["round"]) for row in result["refused"]] == [("h1", 1), ("h1", 2)]
    assert set(result["privacy"]) == {"h0", "h2"}
    assert [len(book) for book in ledgers(federation)] == [2, 0, 2]


def test_what_fails_after_the_reservation_stays_counted_and_is_not_asked_again(
    tiny, tmp_path, monkeypatch
) -> None:
    """A second answer with fresh noise to one reservation: ε of one, spent of two."""
    federation = tiny(3)
    calls = []

    def broken(self, lots):
        calls.append(len(lots))
        raise ZeroDivisionError

    monkeypatch.setattr(private_heads.PrivateStack, "step", broken)
    plan = (*SAMPLE, "train.rounds=1", "aggregate.round_timeout=20")
    with pytest.raises(Exception, match="round 1"):
        federation.run(tmp_path / "out", plan, **TOGETHER)
    assert calls == [3]
    for book in ledgers(federation):
        assert [line[-1] for line in book] == [False]


def test_a_round_that_was_answered_is_answered_with_the_same_bytes(
    tiny, tmp_path, monkeypatch
) -> None:
    """A round that is asked twice gets two draws of the noise, whose mean has half of it."""
    sent = []
    real = train_together

    def twice(messages, contexts):
        first = real(DESK, messages, contexts)
        second = real(DESK, messages, contexts)
        assert first is not None
        assert second is not None
        for one, other in zip(first, second, strict=True):
            arrays = [m.content.array_records["adapter"] for m in (one, other)]
            sent.append(arrays[0] == arrays[1])
        return second

    federation = tiny(3)
    federation.run(tmp_path / "out", (*SAMPLE, "train.rounds=2"), workers=1, together=twice)
    assert sent == [True] * 6
    assert [len(book) for book in ledgers(federation)] == [2, 2, 2]
