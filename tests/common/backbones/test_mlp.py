"""The family of perceptrons: holes in a table, and a shape that is in the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.mlp_network import LearntStandardise, Mlp, Standardise, learn_scales
from fedgraft.common.errors import UserError
from fedgraft.common.statistics.histograms import count_columns


class TestMlp:
    def test_standardises_around_holes(self) -> None:
        """Means and deviations must leave missing values out (numpy's nanmean), and never divide by
        zero.
        """
        table = torch.tensor(
            [[1.0, float("nan"), 5.0], [3.0, float("nan"), 5.0], [float("nan"), float("nan"), 5.0]]
        )
        layer = Standardise(3)
        layer.fit(table)
        np.testing.assert_allclose(layer.mean[0], np.nanmean(table[:, 0]))
        np.testing.assert_allclose(layer.std[0], np.nanstd(table[:, 0]))
        assert layer.mean.tolist()[1:] == [0.0, 5.0]
        assert layer.std.tolist()[1:] == [1.0, 1.0]
        wanted = [[-1.0, 0.0, 0.0, 0, 1, 0], [1.0, 0.0, 0.0, 0, 1, 0], [0.0, 0.0, 0.0, 1, 1, 0]]
        torch.testing.assert_close(layer(table), torch.tensor(wanted))

    def test_declared_ranges_scale_its_numbers(self) -> None:
        """Income beside age, unscaled: credit was told at an AUROC of 0.65, loss 19.

        Numbers that are even between low and high come out with mean 0 and deviation 1; categories,
        0 or 1, stay.
        """
        made = load_backbone(
            "mlp",
            columns=4,
            hidden=(8,),
            category_sizes=(0, 2, 0),
            ranges=((20.0, 90.0), (0.0, 1e6)),
        )
        assert isinstance(made.net, Mlp)
        rows = torch.stack(
            [
                torch.linspace(20, 90, 10_001),
                torch.ones(10_001),
                torch.zeros(10_001),
                torch.linspace(0, 1e6, 10_001),
            ],
            dim=1,
        )
        scaled = made.net.standardise(rows)[:, :4]
        for number in (0, 3):
            np.testing.assert_allclose(scaled[:, number].mean(), 0, atol=1e-5)
            np.testing.assert_allclose(scaled[:, number].std(), 1, rtol=1e-3)
        assert torch.equal(scaled[:, 1:3], rows[:, 1:3])
        plain = load_backbone("mlp", columns=4, hidden=(8,))
        assert made.fingerprint != plain.fingerprint, "hospitals would scale unlike one another"

    def test_scales_that_histograms_tell(self) -> None:
        """A value that a hospital never saw must not explode, nor one that was counted with
        others as one.
        """
        nan = float("nan")
        table = torch.tensor(
            [[5.0, 2e9, 1.0, nan], [5.0, 2e9 + 1e7, 3.0, nan], [5.0, 2e9, nan, nan]]
        )
        scales = LearntStandardise((0, 0, 0, 0))
        state = learn_scales(count_columns(table.numpy()))
        for name, tensor in state.items():
            scales.get_parameter(name.removeprefix("standardise.")).data.copy_(tensor)
        scaled = scales(table)
        assert scaled[:, 0].tolist() == [0.0, 0.0, 0.0]
        assert scaled[:, 1].abs().max() < 1
        torch.testing.assert_close(scaled[:, 2], torch.tensor([-1.0, 1.0, 0.0]))
        assert scaled[:, 6].tolist() == [0.0, 0.0, 1.0]
        assert not scaled.requires_grad, "steps would move what was counted"
        elsewhere = scales(torch.tensor([[250.0, 2e9, 2.0, 250.0]]))
        assert elsewhere[:, [0, 2, 3]].abs().max() == 0

    def test_shape(self, tmp_path: Path) -> None:
        """Its shape is in its file: a plan that says otherwise is corrected, not crashed on."""
        made = load_backbone("mlp", columns=13, hidden=(32, 16))
        assert (made.head_name, made.features) == ("head", 16)
        assert isinstance(made.net, Mlp)
        assert made.net(torch.full((2, 13), float("nan"))).isfinite().all()
        save_backbone(made, tmp_path / "m.safetensors", {})
        with pytest.raises(UserError) as caught:
            load_backbone("mlp", weights=tmp_path / "m.safetensors", hidden=(64, 64))
        assert "[32, 16]" in caught.value.remedy
        with pytest.raises(UserError, match="13 columns"):
            load_backbone("mlp", weights=tmp_path / "m.safetensors", hidden=(32, 16), columns=12)
        with pytest.raises(UserError, match="without columns"):
            load_backbone("mlp")
