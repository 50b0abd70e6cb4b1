"""Every method of adapting on every text network: a no-op at first, merged without a trace, loaded
again, by us and by PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.targets import find_blocks, find_layers
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import PADDING, is_token
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    graft,
    load_adapter,
    save_adapter,
)
from tests.huggingface_folders import ARCHITECTURES, example_texts, library_model, write_folder

pytest.importorskip("transformers")
# layers of a block that LoRA serves: attention's, and the two or three behind it
LAYERS = {"bert": 6, "roberta": 6, "distilbert": 6, "gpt2": 4, "t5": 6, "clip": 6}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Every architecture; never written."""
    base = tmp_path_factory.mktemp("models")
    opened: dict[str, Backbone] = {}
    for name in ARCHITECTURES:
        folder = write_folder(base / name, name)
        opened[name] = load_backbone("huggingface", weights=folder, max_length=16)
    return opened


def tokens_of(backbone: Backbone) -> Tensor:
    return backbone.preprocess(example_texts()).only


def disturb(model: GraftedModel, scale: float = 0.05) -> GraftedModel:
    """Move every trainable value from where it began, so that adapters do something."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}
    for name, value in model.adapter_state().items():
        state[name] = value + scale * torch.randn(value.shape, generator=generator)
    model.load_adapter_state(state)
    return model


def pooled(architecture: str, states: Tensor, here: Tensor) -> Tensor:
    """Return one vector a text of the last states: their mean, or CLIP's last token."""
    if architecture == "clip":
        return states[torch.arange(len(states)), here.sum(1).long() - 1]
    return (states * here[..., None]).sum(1) / here.sum(1, keepdim=True)


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_at_first_then_something_then_merged(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """Grafting must not disturb what the backbone learnt, nor merging what the adapters learnt."""
    backbone = backbones[architecture]
    tokens = tokens_of(backbone)
    with torch.no_grad():
        model = graft(backbone, method=method, classes=3, rank=2, seed=1)
        head = model.net.get_submodule(model.head_name)
        reference = head(backbone.net(tokens))
        assert reference.std() > 1e-2
        torch.testing.assert_close(model(tokens), reference, atol=1e-6, rtol=1e-6)
        disturb(model)
        if method != "head":
            assert (model(tokens) - head(backbone.net(tokens))).abs().max() > 1e-3
        exact = model.double()
        torch.testing.assert_close(exact.merge()(tokens), exact(tokens), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_adapters_and_head_learn(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """A frozen tensor that a step moves spoils the backbone for everybody."""
    backbone = backbones[architecture]
    model = disturb(graft(backbone, method=method, classes=3, rank=2, seed=1))
    model.train()
    before = model.frozen_fingerprint()
    loss = nn.functional.cross_entropy(model(tokens_of(backbone)), torch.tensor([0, 1, 2]))
    loss.backward()
    for name, parameter in model.net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert model.frozen_fingerprint() == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_serves_attention_and_feed_forward(
    architecture: str, backbones: dict[str, Backbone]
) -> None:
    """A layer that is passed over in silence: GPT-2's are no Linear in the library."""
    net = backbones[architecture].net
    assert len(find_blocks(net)) == 2
    assert len(find_layers(net)) == 2 * LAYERS[architecture]


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_loaded(
    architecture: str, method: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """A shared model that gives other outputs than the run that made it."""
    backbone = backbones[architecture]
    model = disturb(graft(backbone, method=method, classes=3, rank=2, seed=1))
    save_adapter(model, tmp_path)
    again = graft(backbone, method=method, classes=3, rank=2, seed=9)
    load_adapter(again, tmp_path)
    tokens = tokens_of(backbone)
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_loads_what_we_save(
    architecture: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """The folder of the model and the run's adapter, opened by the library's own tools."""
    peft = pytest.importorskip("peft")
    backbone = backbones[architecture]
    model = disturb(graft(backbone, method="lora", classes=3, rank=2, seed=1))
    save_adapter(model, tmp_path)
    plain = library_model(architecture)
    plain.classifier = nn.Linear(12, 3)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    tokens = tokens_of(backbone)
    here = is_token(tokens)
    ids = torch.where(here > 0, tokens, 1 if architecture == "roberta" else 0)
    with torch.no_grad():
        states = theirs.get_base_model()(input_ids=ids, attention_mask=here).last_hidden_state
        expected = theirs.get_base_model().classifier(pooled(architecture, states, here))
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_of_all_depths_are_means_over_tokens(
    architecture: str, backbones: dict[str, Backbone]
) -> None:
    """A mean over padding too would tell how long a text is, and little else."""
    backbone = backbones[architecture]
    tokens = tokens_of(backbone)
    choice = DepthChoice("all", "mean", tokens[:1])
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    here = is_token(tokens)
    ids = torch.where(here > 0, tokens, 1 if architecture == "roberta" else 0)
    with torch.no_grad():
        output = library_model(architecture)(
            input_ids=ids, attention_mask=here, output_hidden_states=True
        )
        means = []
        for states in output.hidden_states:
            means.append((states * here[..., None]).sum(1) / here.sum(1, keepdim=True))
        features = model.depths(tokens)
    # where the last states are normalised, the last block's own output is one stage more
    width = features.shape[1] // 12
    assert width == (4 if architecture in ("gpt2", "t5", "clip") else 3)
    torch.testing.assert_close(features[:, :24], torch.cat(means[:2], 1), atol=1e-5, rtol=1e-5)
    last = pooled(architecture, output.last_hidden_state, here)
    torch.testing.assert_close(features[:, -12:], last, atol=1e-5, rtol=1e-5)


def test_deviations_are_over_tokens_alone(backbones: dict[str, Backbone]) -> None:
    """The deviation of padding is none of the text."""
    backbone = backbones["bert"]
    tokens = tokens_of(backbone)[:1]
    count = int((tokens != PADDING).sum())
    choice = DepthChoice(("stem",), "mean-and-deviation", tokens)
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    with torch.no_grad():
        states = library_model("bert").embeddings(input_ids=tokens.clamp(min=0))[:, :count]
        deviation = states.var(1, unbiased=False).sqrt()
        torch.testing.assert_close(model.depths(tokens)[:, 12:], deviation, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("head", {}),
        ("lora", {"targets": "last-block"}),
        ("bottleneck", {"targets": "last-block"}),
        ("bias", {"targets": "last-block"}),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_frozen_in_front_is_the_network_itself(
    architecture: str, method: str, options: dict[str, Any], backbones: dict[str, Backbone]
) -> None:
    """Activations that are kept would be another model's: a mask lost between two stages."""
    backbone = backbones[architecture]
    tokens = tokens_of(backbone)
    model = disturb(graft(backbone, method=method, classes=3, rank=2, seed=1, **options))
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(tokens)), model(tokens))


def test_a_stage_that_is_not_there_is_named(backbones: dict[str, Backbone]) -> None:
    """The names of stages are the library's, and nobody knows them by heart."""
    backbone = backbones["bert"]
    choice = DepthChoice(("layer.9",), "mean", tokens_of(backbone)[:1])
    with pytest.raises(UserError, match=r"stem, encoder\.layer\.0, encoder\.layer\.1, last"):
        graft(backbone, method="head", classes=2, depths=choice)
