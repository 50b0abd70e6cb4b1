"""Transformers for texts: the layers of Hugging Face's library under its own names, called one
after the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.targets import count_channels
from fedgraft.common.backbones.family import Step
from fedgraft.common.backbones.forward_steps import mean_of_places
from fedgraft.common.backbones.huggingface_library import build_library_model, drop_tables
from fedgraft.common.backbones.huggingface_shapes import HuggingFaceShape
from fedgraft.common.backbones.huggingface_tensors import HEAD
from fedgraft.common.backbones.masked_states import Run, call_block, last_token, pack, unpack
from fedgraft.common.inputs.text import is_token
from fedgraft.common.inputs.tokenizer_file import tensor_of

# of a network's pooling: there is none
EACH_TOKEN = "each-token"


class TextNetwork(nn.Module):
    """A transformer for texts, with the children of the library's model and their names.

        net = BertNetwork(shape, files={})
        net(tokens)  # int64 (n, length), −1 behind the end of a text → (n, 2)

    Attributes:
        model, configuration: classes of the library.
        options: of its model.
        blocks: dotted name of its blocks.
        turned: ends of the names of weights that the library keeps the other way round.

    Args:
        shape: sizes of all layers.
        files: kept among its tensors, bytes by name: what it was described by, its tokenizer.
    """

    model: ClassVar[str]
    configuration: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    blocks: ClassVar[str]
    turned: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: HuggingFaceShape, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.pooling = shape.pooling
        self.padding = int(getattr(shape, "pad_token_id", 0))
        whole = build_library_model(self.model, self.configuration, shape, self.options)
        for name, child in whole.named_children():
            self.add_module(name, child)
        self.settle()
        drop_tables(self)
        for name, content in files.items():
            self.register_buffer(name, tensor_of(content))
        width = count_channels(self.get_submodule(self.blocks))
        if shape.pooling == "native":
            self.pre_classifier = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 2)

    def settle(self) -> None:
        """Change what of the library's model is another layer here."""

    @abstractmethod
    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Tokens (n, length), 0 where there is none, and mask (n, length) → states (n, length,
        width).
        """

    @abstractmethod
    def call(self, run: Run, states: Tensor, here: Tensor) -> Any:
        """Run a block on states (n, length, width) under a mask (n, length)."""

    def finish(self, states: Tensor) -> Tensor:
        """Return the last states as the library's model gives them."""
        return states

    def activate(self, hidden: Tensor) -> Tensor:
        """Return what stands behind the first Linear of the library's own classifier (n, width)."""
        return torch.tanh(hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) → logits (n, 2)."""
        x = embed(self, tokens)
        for block in self.get_submodule(self.blocks).children():
            x = call_block(self, block, x)
        return self.classifier(pool(self, x))


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────
def embed(net: Any, tokens: Tensor) -> Tensor:
    """Tokens (n, length) → states and mask (n, length, width + 1)."""
    here = is_token(tokens)
    return pack(net.embed(tokens.clamp(min=0), here), here)


def pool(net: Any, x: Tensor) -> Tensor:
    """States and mask (n, length, width + 1) → one vector a text (n, width), or one a token (n,
    length, width).
    """
    states, here = unpack(x)
    states = net.finish(states)
    if net.pooling == EACH_TOKEN:
        return states
    if net.pooling == "native":
        return net.activate(net.pre_classifier(states[:, 0]))
    if net.pooling == "first":
        return states[:, 0]
    if net.pooling == "last":
        return last_token(states, here)
    return mean_of_places(states, here)


def keep_tokens(net: Any) -> None:
    """Let a network give its classifier every token's states, and not one vector of them."""
    net.pooling = EACH_TOKEN


def find_vocabulary(net: Any) -> nn.Embedding | None:
    """Return the table of tokens of a network that is a language model; None: it is none."""
    if not isinstance(net, Gpt2Network):
        return None
    table = net.get_submodule("wte")
    assert isinstance(table, nn.Embedding)
    return table


def list_positions(tokens: Tensor) -> Tensor:
    """Return the number of each place `(1, length)`, from 0."""
    return torch.arange(tokens.shape[-1], device=tokens.device)[None]


def allow_earlier(here: Tensor) -> Tensor:
    """Return which place may look at which `(n, 1, length, length)`: none at a later one."""
    places = torch.arange(here.shape[1], device=here.device)
    is_before = places <= places[:, None]
    return is_before & (here[:, None, None] > 0)


def mask_attention(allowed: Tensor, states: Tensor) -> Tensor:
    """Return what is added to attention, in the states' precision: 0 where one place may look at
    another, else what is as good as −∞.
    """
    least = torch.finfo(states.dtype).min
    nothing = torch.zeros_like(allowed, dtype=states.dtype)
    return nothing.masked_fill(~allowed, least)


# ── architectures ─────────────────────────────────────────────────────────────────────────────────
class BertNetwork(TextNetwork):
    """BERT's encoder, without the pooler that it was trained with."""

    model = "BertModel"
    configuration = "BertConfig"
    options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    blocks = "encoder.layer"

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width)."""
        return self.get_submodule("embeddings")(
            input_ids=tokens,
            token_type_ids=torch.zeros_like(tokens),
            position_ids=list_positions(tokens),
        )

    def call(self, run: Run, states: Tensor, here: Tensor) -> Any:
        """Run a block."""
        return run(states, mask_attention(here[:, None, None] > 0, states))


class RobertaNetwork(BertNetwork):
    """RoBERTa's encoder."""

    model = "RobertaModel"
    configuration = "RobertaConfig"

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width); positions are counted from behind the padding's."""
        count = here.cumsum(1) * here
        return self.get_submodule("embeddings")(
            input_ids=torch.where(here > 0, tokens, self.padding),
            token_type_ids=torch.zeros_like(tokens),
            position_ids=count.long() + self.padding,
        )


class DistilBertNetwork(BertNetwork):
    """DistilBERT's encoder."""

    model = "DistilBertModel"
    configuration = "DistilBertConfig"
    options: ClassVar[Mapping[str, Any]] = {}
    blocks = "transformer.layer"

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width)."""
        embeddings = self.get_submodule("embeddings")
        return embeddings(input_ids=tokens, position_ids=list_positions(tokens))

    def activate(self, hidden: Tensor) -> Tensor:
        """Return what stands behind the first Linear of the library's own classifier (n, width)."""
        return F.relu(hidden)


class Gpt2Network(TextNetwork):
    """GPT-2, its layers as Linear: the library keeps their weights the other way round."""

    model = "GPT2Model"
    configuration = "GPT2Config"
    blocks = "h"
    turned: ClassVar[tuple[str, ...]] = ("c_attn.weight", "c_proj.weight", "c_fc.weight")

    def settle(self) -> None:
        """Put a Linear in the place of every layer whose weight lies the other way round."""
        for name, module in list(self.named_modules()):
            if type(module).__name__ == "Conv1D":
                self.set_submodule(name, as_linear(module))

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width)."""
        of_tokens = self.get_submodule("wte")(tokens)
        return of_tokens + self.get_submodule("wpe")(list_positions(tokens))

    def call(self, run: Run, states: Tensor, here: Tensor) -> Any:
        """Run a block: no token looks at a later one."""
        return run(states, attention_mask=mask_attention(allow_earlier(here), states))

    def finish(self, states: Tensor) -> Tensor:
        """Return the last states, normalised."""
        return self.get_submodule("ln_f")(states)


class T5Network(TextNetwork):
    """The encoder of T5; how far tokens look is told by a table of the first block."""

    model = "T5EncoderModel"
    configuration = "T5Config"
    blocks = "encoder.block"

    def settle(self) -> None:
        """Leave out the second name of the table of tokens."""
        del self.get_submodule("encoder").embed_tokens

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width)."""
        return self.get_submodule("shared")(tokens)

    def call(self, run: Run, states: Tensor, here: Tensor) -> Any:
        """Run a block."""
        length = states.shape[1]
        first: Any = self.get_submodule("encoder.block.0.layer.0.SelfAttention")
        bias = first.compute_bias(length, length)
        mask = mask_attention(here[:, None, None] > 0, states)
        return run(states, attention_mask=mask, position_bias=bias)

    def finish(self, states: Tensor) -> Tensor:
        """Return the last states, normalised."""
        return self.get_submodule("encoder.final_layer_norm")(states)


class ClipTextNetwork(TextNetwork):
    """CLIP's encoder of texts; a token sees those before it."""

    model = "CLIPTextModel"
    configuration = "CLIPTextConfig"
    blocks = "encoder.layers"

    def embed(self, tokens: Tensor, here: Tensor) -> Tensor:
        """Return states (n, length, width)."""
        positions = list_positions(tokens)
        return self.get_submodule("embeddings")(input_ids=tokens, position_ids=positions)

    def call(self, run: Run, states: Tensor, here: Tensor) -> Any:
        """Run a block: no token looks at a later one."""
        return run(states, attention_mask=mask_attention(allow_earlier(here), states))

    def finish(self, states: Tensor) -> Tensor:
        """Return the last states, normalised."""
        return self.get_submodule("final_layer_norm")(states)


def as_linear(layer: Any) -> nn.Linear:
    """Return the Linear that computes what a layer of GPT-2 does."""
    inputs, outputs = layer.weight.shape
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs)
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
    linear.bias = nn.Parameter(layer.bias.detach())
    return linear


NETWORKS: Mapping[str, type[TextNetwork]] = {
    "bert": BertNetwork,
    "roberta": RobertaNetwork,
    "distilbert": DistilBertNetwork,
    "gpt2": Gpt2Network,
    "t5": T5Network,
    "clip": ClipTextNetwork,
}
_LIBRARY = "transformers.models"
# by class: whether channels are last
BLOCK_TYPES: Mapping[str, bool] = {
    f"{_LIBRARY}.bert.modeling_bert.BertLayer": True,
    f"{_LIBRARY}.roberta.modeling_roberta.RobertaLayer": True,
    f"{_LIBRARY}.distilbert.modeling_distilbert.TransformerBlock": True,
    f"{_LIBRARY}.gpt2.modeling_gpt2.GPT2Block": True,
    f"{_LIBRARY}.t5.modeling_t5.T5Block": True,
    f"{_LIBRARY}.clip.modeling_clip.CLIPEncoderLayer": True,
}
CALLS = dict.fromkeys(BLOCK_TYPES, call_block)
USED_BY_STEPS: Mapping[Step, tuple[str, ...]] = {
    embed: ("embeddings", "wte", "wpe", "shared"),
    pool: ("ln_f", "encoder.final_layer_norm", "final_layer_norm", "pre_classifier"),
}


def _list_order() -> dict[str, tuple[Step, ...]]:
    order: dict[str, tuple[Step, ...]] = {}
    for network in NETWORKS.values():
        order[f"{__name__}.{network.__qualname__}"] = (embed, network.blocks, pool, HEAD)
    return order


ORDER: Mapping[str, tuple[Step, ...]] = _list_order()
