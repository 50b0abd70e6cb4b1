"""ULMFiT's encoder: outputs of torch's own LSTM, fastai's names and pooling, every adapter, and
what a stranger's folder may not.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.one_pass import knows_layers
from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.targets import find_blocks, find_layers
from fedgraft.common.backbones.awd_lstm import LstmLayer
from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    preparation_from_json,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.inputs.text import is_token
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    graft,
    load_adapter,
    save_adapter,
)
from fedgraft.common.tasks.classification import cross_entropies
from tests.awd_lstm_folders import (
    VOCABULARY,
    WIDTH,
    name_as_fastai,
    their_encoder,
    write_encoder,
)

TEXTS = ["Fever", "No rash, three weeks.", "a cough and pain and a rash and nothing"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny encoder; never written."""
    return load(write_encoder(tmp_path_factory.mktemp("models") / "ulmfit"))


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone("fastai/awd-lstm", weights=folder, **{"max_length": 14, **options})


def lively(backbone: Backbone, method: str, **options: Any) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.1)
    return model


def pool_as_fastai(output: Tensor, length: int) -> Tensor:
    """Return the last state, the largest and the mean of one text's (length, width)."""
    real = output[:length]
    return torch.cat([real[-1], real.max(0).values, real.mean(0)])


@pytest.mark.parametrize("layers", [1, 3])
def test_outputs_are_those_of_torchs_own_lstm(layers: int, tmp_path: Path) -> None:
    """Gates in another order, a bias that is lost, the weights that dropout has made."""
    backbone = load(write_encoder(tmp_path / "model", layers))
    tokens = backbone.preprocess(TEXTS).only
    theirs = their_encoder(layers)
    with torch.no_grad():
        ours = backbone.net(tokens)
        for row, numbers in zip(ours, tokens, strict=True):
            length = int(is_token(numbers).sum())
            # a text by itself: nothing is padded
            output = theirs(numbers[None, :length])[-1][0]
            expected = pool_as_fastai(output, length)
            torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)
    assert backbone.features == 3 * WIDTH
    assert ours.std() > 0.05


def test_every_file_of_fastais_is_the_same_encoder(tmp_path: Path) -> None:
    """`learn.save_encoder`, and `learn.save` of a language model or a classifier."""
    fingerprints: set[str] = set()
    for number, prefix in enumerate(("", "0.", "0.module.")):
        folder = write_encoder(tmp_path / str(number))
        (folder / "encoder.pth").unlink()
        state = name_as_fastai(their_encoder(), prefix)
        state["1.decoder.bias"] = torch.zeros(3)
        save_file(state, folder / "learner.safetensors")
        fingerprints.add(load(folder).fingerprint)
    folder = tmp_path / "0"
    (folder / "vocab.json").unlink()
    # a line break cannot be written so
    words = ["<n>" if word == "\n" else word for word in VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    assert len(fingerprints) == 1
    assert load(folder).preprocess(["Fever"]).only[0, :3].tolist() == [2, 8, 12]


def test_it_travels_without_its_folder(backbone: Backbone, tmp_path: Path) -> None:
    """A node has tensors and the preparation's JSON; a file of ours is the same."""
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    unbound = preparation_from_json("fastai/awd-lstm", backbone.preprocess.to_json())
    arrived = backbone_from_state("fastai/awd-lstm", state, unbound)
    assert arrived.fingerprint == backbone.fingerprint
    tokens = arrived.preprocess(TEXTS).only
    assert torch.equal(tokens, backbone.preprocess(TEXTS).only)
    with torch.no_grad():
        assert torch.equal(arrived.net(tokens), backbone.net(tokens))
    save_backbone(backbone, tmp_path / "ulmfit.safetensors", {})
    again = load_backbone("fastai/awd-lstm", weights=tmp_path / "ulmfit.safetensors")
    assert again.fingerprint == backbone.fingerprint
    random = load_backbone(
        "fastai/awd-lstm", weights=tmp_path / "ulmfit.safetensors", random=True, seed=3
    )
    assert random.fingerprint != backbone.fingerprint
    assert torch.equal(random.preprocess(TEXTS).only, tokens)


def test_padding_changes_nothing(backbone: Backbone, tmp_path: Path) -> None:
    """How far a text is padded would tell how long the longest is."""
    long = load(write_encoder(tmp_path / "model"), max_length=30)
    with torch.no_grad():
        ours = backbone.net(backbone.preprocess(["No rash."]).only)
        padded = long.net(long.preprocess(["No rash."]).only)
    torch.testing.assert_close(ours, padded, atol=1e-6, rtol=1e-6)


def test_stages_are_the_lstms(backbone: Backbone) -> None:
    """One round reads the mean over words of each, and what the head reads."""
    tokens = backbone.preprocess(TEXTS).only
    choice = DepthChoice("all", "mean", tokens[:1])
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    assert model.depths.stages == ("stem", "rnns.0", "rnns.1", "rnns.2", "last")
    theirs = their_encoder()
    with torch.no_grad():
        features = model.depths(tokens)
        for row, numbers in zip(features, tokens, strict=True):
            real = numbers[is_token(numbers) > 0][None]
            parts = [theirs.encoder(real)[0].mean(0)]
            parts += [output[0].mean(0) for output in theirs(real)]
            parts.append(backbone.net(numbers[None])[0])
            torch.testing.assert_close(row, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS.names)
def test_every_adapter_works(method: str, backbone: Backbone, tmp_path: Path) -> None:
    """Nothing at first, something then; merged, and loaded again, with the same outputs."""
    tokens = backbone.preprocess(TEXTS).only
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        torch.testing.assert_close(fresh(tokens), head(backbone.net(tokens)), atol=1e-6, rtol=1e-6)
        model = lively(backbone, method)
        assert (model(tokens) - fresh(tokens)).abs().max() > 1e-3
        save_adapter(model, tmp_path)
        load_adapter(fresh, tmp_path)
        assert torch.equal(fresh(tokens), model(tokens))
        exact = model.double()
        torch.testing.assert_close(exact.merge()(tokens), exact(tokens), atol=1e-9, rtol=1e-9)


def test_adapters_serve_what_words_give_to_the_gates(backbone: Backbone) -> None:
    """A layer that is called once a word has no gradient of single examples in one pass."""
    assert list(find_layers(backbone.net)) == [f"rnns.{number}.inputs" for number in range(3)]
    assert list(find_blocks(backbone.net)) == [f"rnns.{number}" for number in range(3)]


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "scale-shift", "bias"])
def test_gradients_of_single_texts_are_those_of_a_loop(
    method: str, mode: str, backbone: Backbone
) -> None:
    """A gradient that is missing in a norm is clipped too little."""
    model = lively(backbone, method)
    check_gradients(model, mode, backbone.preprocess(TEXTS[1:]).only, cross_entropies)
    assert knows_layers(model)


def test_the_whole_network_is_not_trained_under_privacy(backbone: Backbone) -> None:
    """The map from state to state is no layer whose gradients of single examples are known."""
    model = graft(backbone, method="full", classes=3)
    with pytest.raises(Refused, match=r"adapter full[\s\S]*write adapter\.method: lora"):
        check_gradients(model, "hooks", backbone.preprocess(TEXTS[1:]).only, cross_entropies)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
def test_what_is_frozen_in_front_is_the_network_itself(method: str, backbone: Backbone) -> None:
    """Activations that are kept would be another model's."""
    targets = "auto" if method == "head" else "last-block"
    model = lively(backbone, method, targets=targets)
    prefix = frozen_prefix(model)
    assert prefix is not None
    tokens = backbone.preprocess(TEXTS).only
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(tokens)), model(tokens))


def test_gradients_flow_through_frozen_lstms() -> None:
    """An adapter behind the first layer learns nothing if those behind it stop its gradient."""
    layer = LstmLayer(4, 5)
    theirs = nn.LSTM(4, 5, batch_first=True)
    theirs.load_state_dict(
        {
            "weight_ih_l0": layer.inputs.weight,
            "bias_ih_l0": layer.inputs.bias,
            "weight_hh_l0": layer.recurrent,
            "bias_hh_l0": torch.zeros(20),
        }
    )
    x = torch.randn(2, 7, 4, requires_grad=True)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (expected,) = torch.autograd.grad(theirs(x)[0].square().sum(), x)
    torch.testing.assert_close(ours, expected)


# ── hostile and broken folders ────────────────────────────────────────────────────────────────────
class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_learner_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """`learn.export()` writes a pickle."""
    folder = write_encoder(tmp_path / "model")
    touched = tmp_path / "touched"
    (folder / "encoder.pth").write_bytes(pickle.dumps(Bomb(touched)))
    with pytest.raises(UserError):
        load(folder)
    assert not touched.exists()


def test_a_folder_that_lacks_something_says_what(tmp_path: Path) -> None:
    """The person who saved it must know what to write in fastai."""
    folder = write_encoder(tmp_path / "model")
    (folder / "vocab.json").write_text(json.dumps(list(VOCABULARY[:-1])))
    with pytest.raises(UserError, match=r"23 tokens for an encoder that knows 24"):
        load(folder)
    (folder / "vocab.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match="without xxunk"):
        load(folder)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"0 vocabularies[\s\S]*dls\.vocab"):
        load(folder)
    (folder / "other.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 files of tensors[\s\S]*save_encoder"):
        load(folder)
    with pytest.raises(UserError, match="and none is named"):
        load_backbone("fastai/awd-lstm")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rnns.1.weight_hh_l0_raw", r"rnns\.1\.weight_hh_l0_raw is missing"),
        ("rnns.0.module.bias_ih_l0", r"bias_ih_l0 is missing"),
        ("encoder.weight", r"encoder\.weight is missing"),
    ],
)
def test_other_tensors_are_no_encoder(name: str, words: str, tmp_path: Path) -> None:
    """A QRNN, or an encoder of another release."""
    folder = write_encoder(tmp_path / "model")
    state = name_as_fastai(their_encoder())
    del state[name]
    torch.save(state, folder / "encoder.pth")
    with pytest.raises(UserError, match=words):
        load(folder)


def test_one_that_reads_both_ways_is_refused(tmp_path: Path) -> None:
    """Its other half would be left out in silence."""
    folder = write_encoder(tmp_path / "model")
    state = name_as_fastai(their_encoder())
    state["rnns.0.module.weight_ih_l0_reverse"] = torch.zeros(4, 4)
    torch.save(state, folder / "encoder.pth")
    with pytest.raises(UserError, match="both ways"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocabulary", b"{}", "vocabulary that cannot be read"),
        ("vocabulary", b'{"rule": "spacy", "tokens": []}', "by the rule 'spacy'"),
        ("vocabulary", b'{"rule": "fastai", "tokens": [1]}', "no list of tokens"),
        ("vocabulary", None, "no|not the tensors"),
        ("rnns.0.inputs.weight", None, "not the tensors of an AWD-LSTM"),
        ("rnns.2.recurrent", None, r"rnns\.2\.recurrent is missing"),
    ],
)
def test_a_server_that_sends_something_else_is_refused(
    name: str, content: bytes | None, words: str, backbone: Backbone
) -> None:
    """A node builds what the tensors say; they come from a server."""
    state = dict(backbone_state(backbone))
    del state[name]
    if content is not None:
        state[name] = tensor_of(content)
    with pytest.raises(UserError, match=words):
        backbone_from_state("fastai/awd-lstm", state, backbone.preprocess)
