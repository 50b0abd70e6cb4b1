"""Images as a backbone was trained on them: torchvision's presets, depths, the way to JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedgraft.common.backbones.backbone import preparation_of
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess, for_images


class TestPreprocess:
    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_t", "vit_b_16"])
    def test_equals_torchvisions_preset(self, name: str) -> None:
        """Weights work as well as published only behind the preprocessing that they were measured
        with.
        """
        from sklearn.datasets import load_sample_image
        from torchvision.models import get_model_weights

        preset = get_model_weights(name)["DEFAULT"].transforms()
        photographs = [np.array(load_sample_image(file)) for file in ("china.jpg", "flower.jpg")]
        images = torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2)[:, :, :400, :]
        for batch in (images, images.transpose(2, 3), images.float() / 255, images[:, :, :50, :70]):
            torch.testing.assert_close(
                preparation_of(name)(batch).only, preset(batch), atol=1e-6, rtol=0
            )

    def test_grey_and_sixteen_bit_images(self) -> None:
        """X-rays are grey and often 16 bit: three equal channels, and the same picture whatever its
        depth.
        """
        eight = torch.arange(0, 252, 4, dtype=torch.uint8).view(1, 1, 7, 9)
        same = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
        grey = same(eight).only
        assert grey.shape == (1, 3, 7, 9)
        torch.testing.assert_close(grey, same(eight.expand(1, 3, 7, 9)).only)
        torch.testing.assert_close(same((eight.to(torch.int32) * 257).to(torch.uint16)).only, grey)
        torch.testing.assert_close(grey[0, 2], (eight[0, 0] / 255 - 0.3) / 0.1)
        with pytest.raises(UserError, match="channels"):
            same(torch.zeros(1, 2, 4, 4))

    def test_networks_of_other_channels(self) -> None:
        """Colour in the place of a sequence, or a grey image whose mean is that of red."""
        colour = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
        grey = colour.with_channels(1)
        images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
        red, green, blue = (images.double() / 255).unbind(1)
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        seen = grey(images).only
        expected = ((luminance - 0.4) / (0.5 / 3)).float()[:, None]
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
        assert grey(images[:, :1]).only.shape == (2, 1, 5, 6)

        four = colour.with_channels(4)
        assert four.mean == (0.5, 0.4, 0.3, 0.5)
        assert Preprocess.from_json(json.loads(json.dumps(four.to_json()))) == four
        assert four(torch.rand(2, 4, 5, 6)).only.shape == (2, 4, 5, 6)
        for wrong in (1, 3, 5):
            with pytest.raises(UserError, match="4 channels are needed"):
                four(torch.rand(2, wrong, 5, 6))

    def test_as_json(self) -> None:
        """It travels with the backbone; what comes back must be equal, and nonsense refused."""
        for made in (
            for_images(28),
            Preprocess(),
            Preprocess(256, 224, (0.5,) * 3, (1.0,) * 3, "bicubic", False),
        ):
            assert Preprocess.from_json(json.loads(json.dumps(made.to_json()))) == made
        good = for_images(28).to_json()
        for bad in (
            {"size": -1},
            {"std": [0.0, 1.0, 1.0]},
            {"mean": [1.0]},
            {"interpolation": "magic"},
            {"crop": 1e9},
            {"more": 1},
            {"mean": [float("nan")] * 3},
        ):
            with pytest.raises(UserError):
                Preprocess.from_json({**good, **bad})
