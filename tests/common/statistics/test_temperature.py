"""The temperature: that of pooled records, whoever has which; and none where outputs are right."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.statistics.temperature import (
    TEMPERATURES,
    choose_temperature,
    divide_head,
    sum_losses,
)
from fedgraft.common.tasks.classification import cross_entropies


@given(seed=st.integers(0, 99), cut=st.integers(0, 40), classes=st.integers(2, 5))
def test_sums_of_parts_are_those_of_the_whole(seed: int, cut: int, classes: int) -> None:
    """Hospitals that find another temperature than their pooled records have."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 4 * torch.randn((40, classes), generator=generator)
    targets = torch.randint(classes, (40,), generator=generator)
    whole = sum_losses(cross_entropies, outputs, targets)
    parts = sum_losses(cross_entropies, outputs[:cut], targets[:cut])
    parts = parts + sum_losses(cross_entropies, outputs[cut:], targets[cut:])
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert choose_temperature(parts) == choose_temperature(whole)


@given(place=st.integers(4, 28))
def test_outputs_that_were_multiplied_are_divided_by_as_much(place: int) -> None:
    """A temperature upside down, or off by a place of the grid."""
    generator = torch.Generator().manual_seed(0)
    outputs = 1.5 * torch.randn((20_000, 3), generator=generator)
    targets = torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]
    factor = TEMPERATURES[place]
    found = choose_temperature(sum_losses(cross_entropies, factor * outputs, targets))
    assert found == factor


def test_without_a_difference_nothing_is_divided() -> None:
    """Outputs that are all equal divided by 1/8, since it comes first."""
    assert TEMPERATURES[0] == 1 / 8
    assert TEMPERATURES[-1] == 8
    assert choose_temperature(np.zeros(len(TEMPERATURES))) == 1.0


def test_a_divided_head_divides_outputs() -> None:
    """A bias that is forgotten, or an adapter below the head that is divided, too."""
    head = torch.nn.Linear(4, 3)
    state = {"head.weight": head.weight.data, "head.bias": head.bias.data, "lora": torch.ones(2)}
    divided = divide_head(state, "head", 2.0)
    features = torch.randn(5, 4)
    other = features @ divided["head.weight"].T + divided["head.bias"]
    torch.testing.assert_close(other, head(features) / 2)
    assert torch.equal(divided["lora"], state["lora"])
    # what came in is as it was
    assert torch.equal(state["head.weight"], head.weight)
