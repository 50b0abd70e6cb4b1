"""Backbones: names, weights from files, the way to disk and over the wire."""

from __future__ import annotations

import json
import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedgraft.common.backbones.backbone import (
    backbone_from_state,
    backbone_state,
    build_network,
    known_backbones,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.family import NetworkShape, last_linear
from fedgraft.common.errors import UserError


class TestNames:
    def test_the_registry_holds_what_is_promised(self) -> None:
        """A promised family that is missing, or one whose classifier is no Linear, would fail a
        plan late.
        """
        known = known_backbones()
        wanted = [
            "cifar-resnet20",
            "cifar-resnet56",
            "mlp",
            "resnet18",
            "mobilenet_v3_small",
            "efficientnet_b0",
        ]
        wanted += [
            "convnext_tiny",
            "densenet121",
            "vit_b_16",
            "swin_t",
            "swin_v2_t",
            "regnet_y_400mf",
            "maxvit_t",
        ]
        assert set(wanted) <= set(known)
        assert not [name for name in known if name.startswith("squeezenet")]

    def test_an_unknown_name_meets_the_nearest(self) -> None:
        """A typo must be answered with the name that was meant, not with a traceback from
        torchvision.
        """
        with pytest.raises(UserError) as caught:
            load_backbone("resnet_18")
        assert "resnet18" in caught.value.remedy
        with pytest.raises(UserError, match="no backbone"):
            load_backbone("os.system")

    def test_the_classifier_is_found_in_every_network(self) -> None:
        """The last Linear must be the classifier: with it replaced by Identity, features of its
        width come out.
        """
        for name in (
            "alexnet",
            "densenet121",
            "googlenet",
            "inception_v3",
            "maxvit_t",
            "mnasnet1_0",
            "regnet_x_400mf",
        ):
            net = build_network(name, NetworkShape(), None)
            head, layer = last_linear(net)
            assert layer.out_features == 1000, (name, head)

    @pytest.mark.parametrize("name", ["resnet18", "mlp", "cifar-resnet20"])
    def test_random_values_come_from_the_seed_alone(self, name: str) -> None:
        """Two sites that build a backbone from a plan must get the same one, and nobody's random
        state moves.
        """
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = load_backbone(name, columns=3, seed=1)
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(7)
        assert load_backbone(name, columns=3, seed=1).fingerprint == first.fingerprint
        assert load_backbone(name, columns=3, seed=2).fingerprint != first.fingerprint

    def test_a_backbone_is_frozen_and_in_eval_mode(self) -> None:
        """A BatchNorm left in train mode absorbs private data; a parameter left trainable would be
        trained.
        """
        net = load_backbone("cifar-resnet20").net
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())


class TestWeights:
    def test_torchvision_network_with_its_own_file(self, tmp_path: Path) -> None:
        """The features from a .pth must be those of torchvision's network; without its
        classifier.
        """
        from torchvision.models import resnet18

        theirs = resnet18().eval()
        torch.save(theirs.state_dict(), tmp_path / "r.pth")
        ours = load_backbone("resnet18", weights=tmp_path / "r.pth")
        assert (ours.head_name, ours.features) == ("fc", 512)
        theirs.fc = nn.Identity()  # type: ignore[assignment]
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(ours.net(x), theirs(x))

    def test_names_of_older_torchvision_files(self, tmp_path: Path) -> None:
        """DenseNet's published file says `denselayer1.norm.1`, a ViT's said `mlp.linear_1`; both
        must load.
        """
        net = build_network("densenet121", NetworkShape(), seed=0)
        state = net.state_dict()
        old = {
            k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
            for k, v in state.items()
        }
        assert old.keys() != state.keys()
        torch.save(old, tmp_path / "d.pth")
        loaded = backbone_state(load_backbone("densenet121", weights=tmp_path / "d.pth"))
        assert all(torch.equal(loaded[k], state[k]) for k in loaded)

    def test_wrappings_of_published_files(self, tmp_path: Path) -> None:
        """Files saved from DataParallel, under `state_dict`, or without step counters are
        common.
        """
        plain = load_backbone("cifar-resnet20", seed=3)
        state = {
            k: v for k, v in backbone_state(plain).items() if not k.endswith("num_batches_tracked")
        }
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
            tmp_path / "w.pt",
        )
        assert (
            load_backbone("cifar-resnet20", weights=tmp_path / "w.pt").fingerprint
            == plain.fingerprint
        )

    @pytest.mark.slow
    def test_a_vision_transformer_of_another_image_size(self, tmp_path: Path) -> None:
        """Its table of positions has the size of the images: it must be interpolated, as
        torchvision does.
        """
        from torchvision.models.vision_transformer import interpolate_embeddings

        net = build_network("vit_b_16", NetworkShape(image_size=64), seed=0)
        torch.save(net.state_dict(), tmp_path / "v.pth")
        ours = load_backbone("vit_b_16", weights=tmp_path / "v.pth", image_size=96)
        wanted = interpolate_embeddings(96, 16, net.state_dict())["encoder.pos_embedding"]  # type: ignore[arg-type]
        assert torch.equal(backbone_state(ours)["encoder.pos_embedding"], wanted)
        assert ours.net(torch.zeros(1, 3, 96, 96)).shape == (1, 768)
        with pytest.raises(UserError, match="patches of 16"):
            load_backbone("vit_b_16", image_size=50)

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        """Weights come from strangers: opening a file must never run what they put into it."""
        ran = tmp_path / "ran"

        class Bomb:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {ran}",)

        torch.save({"conv1.weight": torch.zeros(1), "x": Bomb()}, tmp_path / "bomb.pth")
        (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb()))
        for file in ("bomb.pth", "bare.pt"):
            with pytest.raises(UserError) as caught:
                load_backbone("cifar-resnet20", weights=tmp_path / file)
            assert "refused" in caught.value.what
            assert not ran.exists()

    def test_bad_files_meet_a_clear_message(self, tmp_path: Path, cifar_weights: Path) -> None:
        """Missing, cut short, foreign, of another network, not finite: each is a UserError that
        names the file.
        """
        from safetensors.torch import load_file, save_file

        whole = cifar_weights.read_bytes()
        state = load_file(cifar_weights)
        (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "empty.safetensors").write_bytes(b"")
        (tmp_path / "text.pth").write_text("not weights")
        (tmp_path / "empty.pth").write_bytes(b"")
        torch.save(state, tmp_path / "whole.pth")
        (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
        torch.save([torch.zeros(2)], tmp_path / "list.pth")
        (tmp_path / "weights.bin").write_bytes(whole)
        save_file(
            {**state, "conv1.weight": torch.full((16, 3, 3, 3), float("nan"))},
            tmp_path / "nan.safetensors",
        )
        save_file(
            {**state, "conv1.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "shape.safetensors"
        )
        save_file(
            {k: v for k, v in state.items() if k != "bn1.bias"}, tmp_path / "less.safetensors"
        )
        (tmp_path / "folder.pth").mkdir()
        for file, word in {
            "none.safetensors": "no such",
            "cut.safetensors": "damaged",
            "empty.safetensors": "damaged",
            "text.pth": "",
            "empty.pth": "damaged",
            "cut.pth": "damaged",
            "list.pth": "no state dict",
            "weights.bin": ".bin",
            "nan.safetensors": "not finite",
            "shape.safetensors": "[16, 1, 3, 3]",
            "less.safetensors": "bn1.bias is missing",
            "folder.pth": "no such",
        }.items():
            with pytest.raises(UserError) as caught:
                load_backbone("cifar-resnet20", weights=tmp_path / file)
            assert word in caught.value.what, file
            assert str(tmp_path / file) in str(caught.value)
            assert caught.value.remedy
        with pytest.raises(UserError, match="not the weights of cifar-resnet32"):
            load_backbone("cifar-resnet32", weights=cifar_weights)

    def test_names_of_weights(self) -> None:
        """A name that torchvision does not know is answered with one it does; ours have files
        only.
        """
        with pytest.raises(UserError) as caught:
            load_backbone("resnet18", weights="IMAGENET1K_V7")
        assert "IMAGENET1K_V1" in caught.value.remedy
        with pytest.raises(UserError, match="no weights called"):
            load_backbone("cifar-resnet20", weights="IMAGENET1K_V1")

    def test_offline_says_how_to_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hospitals have no internet: the message must name the file to carry there."""
        from torchvision.models import _api

        def unreachable(*args: object, **kwargs: object) -> None:
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(_api, "load_state_dict_from_url", unreachable)
        with pytest.raises(UserError) as caught:
            load_backbone("resnet18", weights="IMAGENET1K_V1")
        assert "resnet18-f37072fd.pth" in caught.value.what
        assert "copy it here" in caught.value.remedy

    def test_another_fingerprint_than_agreed(self, cifar_weights: Path) -> None:
        """A swapped backbone must not be trained on."""
        found = load_backbone("cifar-resnet20", weights=cifar_weights).fingerprint
        assert (
            load_backbone("cifar-resnet20", weights=cifar_weights, fingerprint=found).fingerprint
            == found
        )
        with pytest.raises(UserError, match="fingerprint"):
            load_backbone("cifar-resnet20", weights=cifar_weights, fingerprint="sha256:" + "0" * 64)

    def test_the_random_baseline_keeps_only_what_is_no_learning(
        self, tmp_path: Path, cifar_weights: Path
    ) -> None:
        """The baseline must lack what was learnt and nothing else: same preprocessing, same
        standardisation.
        """
        learnt = load_backbone("cifar-resnet20", weights=cifar_weights)
        bare = load_backbone("cifar-resnet20", weights=cifar_weights, random=True, seed=4)
        assert bare.preprocess == learnt.preprocess
        assert bare.fingerprint == load_backbone("cifar-resnet20", seed=4).fingerprint

        table = load_backbone("mlp", columns=3, hidden=(4,), seed=1)
        table.net.standardise.mean.fill_(7.0)  # type: ignore[union-attr, operator]
        save_backbone(table, tmp_path / "m.safetensors", {})
        state = backbone_state(
            load_backbone(
                "mlp", weights=tmp_path / "m.safetensors", hidden=(4,), random=True, seed=2
            )
        )
        assert torch.equal(state["standardise.mean"], torch.full((3,), 7.0))
        assert not torch.equal(
            state["layers.0.linear.weight"], backbone_state(table)["layers.0.linear.weight"]
        )


class TestSaving:
    def test_round_trip(self, tmp_path: Path) -> None:
        """What pretraining keeps must come back with its fingerprint and preprocessing."""
        made = load_backbone("cifar-resnet20", image_size=8, seed=3)
        path = tmp_path / "deep" / "b.safetensors"
        save_backbone(made, path, {"data": "digits 0-4"})
        back = load_backbone("cifar-resnet20", weights=path)
        assert (back.fingerprint, back.preprocess) == (made.fingerprint, made.preprocess)
        about = json.loads((tmp_path / "deep" / "b.safetensors.json").read_text())
        assert about["fingerprint"] == made.fingerprint
        assert about["provenance"] == {"data": "digits 0-4"}
        assert sorted(p.name for p in path.parent.iterdir()) == [
            "b.safetensors",
            "b.safetensors.json",
        ]
        first = path.read_bytes()
        save_backbone(made, path, {"data": "digits 0-4"})
        assert path.read_bytes() == first
        with pytest.raises(UserError, match="cifar-resnet20"):
            load_backbone("cifar-resnet32", weights=path)

    def test_a_damaged_or_foreign_description(self, tmp_path: Path) -> None:
        """The .json beside the weights is input, too."""
        save_backbone(load_backbone("cifar-resnet20"), tmp_path / "b.safetensors", {})
        beside = tmp_path / "b.safetensors.json"
        good = json.loads(beside.read_text())
        huge = {**good["preprocess"], "size": 10**9}
        for bad in (
            "{",
            "[]",
            json.dumps({**good, "preprocess": {"size": "x"}}),
            json.dumps({**good, "preprocess": huge}),
        ):
            beside.write_text(bad)
            with pytest.raises(UserError) as caught:
                load_backbone("cifar-resnet20", weights=tmp_path / "b.safetensors")
            assert caught.value.where == str(beside)

    def test_over_the_wire(self) -> None:
        """A node builds the backbone from tensors alone; foreign tensors are refused."""
        for name in ("cifar-resnet20", "mlp", "mobilenet_v3_small"):
            made = load_backbone(name, columns=4, hidden=(8, 6), seed=1)
            state = {k: v.clone() for k, v in backbone_state(made).items()}
            assert backbone_from_state(name, state, made.preprocess).fingerprint == made.fingerprint
            with pytest.raises(UserError):
                backbone_from_state(name, {**state, "extra": torch.zeros(1)}, made.preprocess)
            with pytest.raises(UserError):
                backbone_from_state(name, {}, made.preprocess)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Nothing half-written, and no traceback."""
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            save_backbone(load_backbone("cifar-resnet20"), tmp_path / "file" / "b.safetensors", {})
