"""Which device a text means, and what is said where it is not there. There is no card here: what
torch tells of cards is made up.
"""

from __future__ import annotations

import os

import pytest
import torch

from fedgraft.common.errors import UserError
from fedgraft.common.model.devices import (
    WORKSPACE,
    find_device,
    list_devices,
    prepare_device,
    spread_over,
)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("cards")
def test_what_a_text_means() -> None:
    assert find_device("auto") == torch.device("cuda", 0)
    assert find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    assert list_devices()[:2] == ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("no_cards")
def test_without_a_card() -> None:
    assert find_device("auto") == torch.device("cpu")
    assert list_devices() == ["cpu"]


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("text", ["cuda:2", "cuda:x", "mps", "tpu", "meta", ""])
def test_what_is_not_there_is_told_with_what_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of torch's, or a model on a device of which nobody spoke."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="is not here") as told:
        find_device(text)
    assert "cuda:0, cuda:1, cpu" in str(told.value.remedy)


@pytest.mark.usefixtures("cards")
def test_simulated_nodes_are_spread_over_cards() -> None:
    assert spread_over("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert spread_over("auto", 2) == ["cuda:0", "cuda:1"]
    assert spread_over("cuda:1", 3) == ["cuda:1"] * 3
    assert spread_over("cpu", 2) == ["cpu", "cpu"]


def test_what_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 in convolutions, which is torch's default; sums in another order each time."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        prepare_device(torch.device("cpu"), tf32=False)
        assert torch.are_deterministic_algorithms_enabled() == before
        prepare_device(torch.device("cuda", 0), tf32=False)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert os.environ[WORKSPACE] == ":4096:8"
        prepare_device(torch.device("cuda", 0), tf32=True)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
