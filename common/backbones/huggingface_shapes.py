"""What of a Hugging Face `config.json` a network's tensors have their shapes from; it travels among
the backbone's tensors, so that a node builds the same network without the folder.

A closed list: every key has its bounds, and a key that is not here reaches no other package. So no
configuration can name code, a hub, another precision, or sizes without bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fedgraft.common.backbones.family import Pooling
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown

Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Token = Annotated[int, Field(ge=0, lt=1_000_000)]
Width = Annotated[int, Field(ge=1, le=32_768)]
Layers = Annotated[int, Field(ge=1, le=96)]
Heads = Annotated[int, Field(ge=1, le=256)]
Positions = Annotated[int, Field(ge=4, le=65_536)]
Side = Annotated[int, Field(ge=1, le=4096)]
Few = Annotated[int, Field(ge=1, le=1024)]
Epsilon = Annotated[float, Field(gt=0, le=0.1)]
Activation = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh"
]
# of tokens, where nothing but the last states is needed
PLAIN: tuple[Pooling, ...] = ("mean", "first", "last")
# of the JSON that travels, bytes
LONGEST = 10_000


class HuggingFaceShape(BaseModel):
    """One architecture's shape, under the names of `config.json`.

    Attributes:
        pooling: how tokens become one vector.
        fixed: keys of `config.json` that change what is computed, and the one value that is taken.
        prefix: that files of models with a head have before a tensor's name.
        former: how a tensor's name becomes the one that files have, by regular expressions.
        part: the key of `config.json` that holds this one of a pair of encoders; empty: none.
        of_pair: keys that a pair's `config.json` says for both of them.
        pooled: how tokens become one vector where no folder says it; None: as is usual.
        poolings: the ways in which they may.
        native: the one in which the library's own classifier makes its last Linear's input; None:
            it is not known here.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    fixed: ClassVar[Mapping[str, object]] = {}
    prefix: ClassVar[str] = ""
    former: ClassVar[tuple[tuple[str, str], ...]] = ()
    part: ClassVar[str] = ""
    of_pair: ClassVar[tuple[str, ...]] = ()
    pooled: ClassVar[Pooling | None] = None
    poolings: ClassVar[tuple[Pooling, ...]] = PLAIN
    native: ClassVar[Pooling | None] = None

    model_type: str
    pooling: Pooling = "mean"

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read; None: any number."""
        return None

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        raise NotImplementedError

    def for_library(self) -> dict[str, Any]:
        """Return the keys that the library's own configuration takes."""
        return self.model_dump(exclude={"model_type", "pooling"})

    @model_validator(mode="after")
    def _is_known(self) -> HuggingFaceShape:
        if self.pooling not in self.poolings:
            raise ValueError(f"pooling {self.pooling!r}; known are {', '.join(self.poolings)}")
        return self


class BertShape(HuggingFaceShape):
    """BERT (Devlin et al. 2019), MiniLM among them."""

    fixed: ClassVar[Mapping[str, object]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    prefix: ClassVar[str] = "bert."
    former: ClassVar[tuple[tuple[str, str], ...]] = ((r"^pre_classifier\.", "pooler.dense."),)
    poolings: ClassVar[tuple[Pooling, ...]] = (*PLAIN, "native")
    native: ClassVar[Pooling | None] = "native"

    model_type: Literal["bert"]
    vocab_size: Tokens
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: Width
    max_position_embeddings: Positions
    type_vocab_size: Few = 2
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: Token = 0

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read."""
        return self.max_position_embeddings

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.vocab_size

    @model_validator(mode="after")
    def _divides(self) -> BertShape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


class RobertaShape(BertShape):
    """RoBERTa (Liu et al. 2019): positions are counted from behind the number of the padding."""

    prefix: ClassVar[str] = "roberta."
    former: ClassVar[tuple[tuple[str, str], ...]] = ((r"^pre_classifier\.", "classifier.dense."),)

    model_type: Literal["roberta"]  # pyright: ignore[reportIncompatibleVariableOverride]
    type_vocab_size: Few = 1
    pad_token_id: Token = 1

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read."""
        return self.max_position_embeddings - self.pad_token_id - 1


class DistilBertShape(HuggingFaceShape):
    """DistilBERT (Sanh et al. 2019)."""

    prefix: ClassVar[str] = "distilbert."
    poolings: ClassVar[tuple[Pooling, ...]] = (*PLAIN, "native")
    native: ClassVar[Pooling | None] = "native"

    model_type: Literal["distilbert"]
    vocab_size: Tokens
    dim: Width
    n_layers: Layers
    n_heads: Heads
    hidden_dim: Width
    max_position_embeddings: Positions
    activation: Activation = "gelu"
    pad_token_id: Token = 0

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read."""
        return self.max_position_embeddings

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.vocab_size

    @model_validator(mode="after")
    def _divides(self) -> DistilBertShape:
        _check_heads(self.dim, self.n_heads)
        return self


class Gpt2Shape(HuggingFaceShape):
    """GPT-2 (Radford et al. 2019)."""

    fixed: ClassVar[Mapping[str, object]] = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }
    prefix: ClassVar[str] = "transformer."
    native: ClassVar[Pooling | None] = "last"

    model_type: Literal["gpt2"]
    vocab_size: Tokens
    n_embd: Width
    n_layer: Layers
    n_head: Heads
    n_inner: Width | None = None
    n_positions: Positions
    activation_function: Activation = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read."""
        return self.n_positions

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.vocab_size

    def for_library(self) -> dict[str, Any]:
        """Return the keys that the library's own configuration takes; no token is special."""
        return {**super().for_library(), "bos_token_id": None, "eos_token_id": None}

    @model_validator(mode="after")
    def _divides(self) -> Gpt2Shape:
        _check_heads(self.n_embd, self.n_head)
        return self


class T5Shape(HuggingFaceShape):
    """The encoder of T5 (Raffel et al. 2020)."""

    model_type: Literal["t5"]
    vocab_size: Tokens
    d_model: Width
    d_kv: Width
    d_ff: Width
    num_layers: Layers
    num_heads: Heads
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=1024)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=8, le=8192)] = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "relu"
    pad_token_id: Token = 0

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.vocab_size


# of a layer of attention, as files have them and as the library has
_ATTENTION = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)


class VitShape(HuggingFaceShape):
    """The vision transformer (Dosovitskiy et al. 2021)."""

    prefix: ClassVar[str] = "vit."
    former: ClassVar[tuple[tuple[str, str], ...]] = (
        *_ATTENTION,
        (r"^layers\.", "encoder.layer."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )
    fixed: ClassVar[Mapping[str, object]] = {"num_channels": 3}
    poolings: ClassVar[tuple[Pooling, ...]] = ("first",)
    native: ClassVar[Pooling | None] = "first"

    model_type: Literal["vit"]
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: Width
    image_size: Side
    patch_size: Side
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    qkv_bias: bool = True

    @model_validator(mode="after")
    def _divides(self) -> VitShape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


class Dinov2Shape(HuggingFaceShape):
    """DINOv2 (Oquab et al. 2024), but for the largest, whose feed-forward layers are gated."""

    prefix: ClassVar[str] = "dinov2."
    former: ClassVar[tuple[tuple[str, str], ...]] = _ATTENTION
    fixed: ClassVar[Mapping[str, object]] = {"num_channels": 3, "use_swiglu_ffn": False}
    poolings: ClassVar[tuple[Pooling, ...]] = ("first", "native")
    native: ClassVar[Pooling | None] = "native"

    model_type: Literal["dinov2"]
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = 4
    image_size: Side
    patch_size: Side
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True

    @model_validator(mode="after")
    def _divides(self) -> Dinov2Shape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


class ClipTextShape(HuggingFaceShape):
    """CLIP's encoder of texts (Radford et al. 2021): a text is what stands at its last token."""

    prefix: ClassVar[str] = "text_model."
    part: ClassVar[str] = "text_config"
    pooled: ClassVar[Pooling | None] = "last"

    model_type: Literal["clip"]
    vocab_size: Tokens = 49408
    hidden_size: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 8
    intermediate_size: Width = 2048
    max_position_embeddings: Positions = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    @property
    def positions(self) -> int | None:
        """How many tokens of a text the network can read."""
        return self.max_position_embeddings

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.vocab_size

    def for_library(self) -> dict[str, Any]:
        """Return the keys that the library's own configuration takes; no token is special."""
        return {**super().for_library(), "bos_token_id": None, "eos_token_id": None}

    @model_validator(mode="after")
    def _divides(self) -> ClipTextShape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


class ClipImageShape(HuggingFaceShape):
    """CLIP's encoder of images (Radford et al. 2021); in the space that it shares with that of
    texts, a vector has `projection_dim` values.
    """

    fixed: ClassVar[Mapping[str, object]] = {"num_channels": 3}
    prefix: ClassVar[str] = "vision_model."
    part: ClassVar[str] = "vision_config"
    of_pair: ClassVar[tuple[str, ...]] = ("projection_dim",)
    poolings: ClassVar[tuple[Pooling, ...]] = ("first", "joint")

    model_type: Literal["clip"]
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    image_size: Side = 224
    patch_size: Side = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    projection_dim: Width = 512

    @model_validator(mode="after")
    def _divides(self) -> ClipImageShape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what plays no part where the shared space is not asked for."""
        written = write(self)
        if self.pooling != "joint":
            del written["projection_dim"]
        return written


Window = Annotated[int, Field(ge=1, le=64)]
Windows = Annotated[list[Window], Field(min_length=1, max_length=16)]


class Wav2Vec2Shape(HuggingFaceShape):
    """Wav2vec 2 (Baevski et al. 2020): of the base kind, or of the large one, which normalises
    before each layer.
    """

    fixed: ClassVar[Mapping[str, object]] = {"add_adapter": False, "adapter_attn_dim": None}
    prefix: ClassVar[str] = "wav2vec2."

    model_type: Literal["wav2vec2"]
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: Width
    hidden_act: Activation = "gelu"
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Activation = "gelu"
    conv_dim: Annotated[list[Few], Field(min_length=1, max_length=16)]
    conv_kernel: Windows
    conv_stride: Windows
    conv_bias: bool = False
    num_conv_pos_embeddings: Few = 128
    num_conv_pos_embedding_groups: Few = 16
    do_stable_layer_norm: bool = False
    layer_norm_eps: Epsilon = 1e-5

    @property
    def least_samples(self) -> int:
        """How many samples one frame is made of."""
        samples = 1
        for kernel, stride in zip(self.conv_kernel[::-1], self.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def for_library(self) -> dict[str, Any]:
        """Return the keys that the library's own configuration takes; nothing is masked."""
        return {**super().for_library(), "mask_time_prob": 0.0, "mask_feature_prob": 0.0}

    @model_validator(mode="after")
    def _divides(self) -> Wav2Vec2Shape:
        _check_heads(self.hidden_size, self.num_attention_heads)
        _check_heads(self.hidden_size, self.num_conv_pos_embedding_groups)
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError("convolutions without a width, a window or a stride each")
        return self


def _check_heads(width: int, heads: int) -> None:
    """Raise `ValueError` where a width is no multiple of the heads."""
    if width % heads:
        raise ValueError(f"a width of {width} for {heads} heads")


Shapes = Mapping[str, type[HuggingFaceShape]]
TEXT_SHAPES: Shapes = {
    "bert": BertShape,
    "roberta": RobertaShape,
    "distilbert": DistilBertShape,
    "gpt2": Gpt2Shape,
    "t5": T5Shape,
    "clip": ClipTextShape,
}
AUDIO_SHAPES: Shapes = {"wav2vec2": Wav2Vec2Shape}
IMAGE_SHAPES: Shapes = {"vit": VitShape, "dinov2": Dinov2Shape, "clip": ClipImageShape}
# what one encoder of a pair calls itself in a folder of its own
HALVES = {"clip_text_model": "clip", "clip_vision_model": "clip"}
# keys that would load code, or other numbers than the tensors that are there
REFUSED = ("auto_map", "quantization_config", "compression_config", "custom_pipelines")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
ATTENTION = ("eager", "sdpa", None)
_REMEDY = "give the folder of a published model as it was downloaded"


def read_config(
    config: Mapping[str, Any],
    known: Shapes,
    pooling: Pooling | None,
    where: str,
    asked: Pooling | None = None,
) -> HuggingFaceShape:
    """Return the shape that a folder's `config.json` tells; of a pair of encoders, the one that is
    among the known ones.

    Args:
        pooling: how tokens become one vector, where the folder says it.
        asked: where the plan does.

    Args:
        known: architectures by name.
        pooling: how tokens become one vector; None: as the architecture usually does.

    Raises:
        UserError: an architecture that is not known, a key that asks for code or another
            computation, or a size out of its bounds.
    """
    _check_keys(config, where)
    named = config.get("model_type")
    kind = HALVES.get(str(named), named)
    shape = find_shape(kind, known, where)
    if shape.part and kind == named:
        part = config.get(shape.part)
        if not isinstance(part, dict):
            raise UserError(f"{shape.part} is missing", where=where, remedy=_REMEDY)
        _check_keys(part, where)
        both = {key: config[key] for key in shape.of_pair if key in config}
        config = {**part, **both}
    for key, value in shape.fixed.items():
        if config.get(key, value) != value:
            what = f"{key} is {shown(config[key])}, and {value!r} alone is known here"
            raise UserError(what, where=where, remedy="give another model")
    given = {key: config[key] for key in shape.model_fields if config.get(key) is not None}
    chosen = choose_pooling(shape, str(kind), asked) or pooling or shape.pooled or "mean"
    given |= {"model_type": kind, "pooling": chosen}
    return _validate(shape, given, where)


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for a key that would load code or compute something else."""
    for key in REFUSED:
        if config.get(key):
            what = (
                f"{key!r}, which would load code or other numbers than the tensors there; refused"
            )
            raise UserError(what, where=where, remedy=_REMEDY)
    for key in ATTENTION_KEYS:
        if config.get(key) not in ATTENTION:
            what = f"{key} is {shown(config[key])}; attention is computed by torch's own operations"
            raise UserError(what, where=where, remedy=f"take {key!r} out of the file")


def choose_pooling(
    shape: type[HuggingFaceShape], kind: str, asked: Pooling | None
) -> Pooling | None:
    """Return how tokens become one vector where a plan says it, as it is done: what is native to a
    GPT-2 is its last token.

    Raises:
        UserError: this architecture cannot.
    """
    if asked is None:
        return None
    if asked == "native" and shape.native is not None:
        return shape.native
    if asked in shape.poolings:
        return asked
    of_this = list(shape.poolings)
    if shape.native is not None and "native" not in of_this:
        of_this.append("native")
    what = f"{asked}, and of a {kind} {', '.join(of_this)} can be had"
    remedy = "write one of these, or leave it out"
    if asked == "native":
        remedy += "; native can be had of " + ", ".join(_list_native())
    raise UserError(what, where="backbone.pool", remedy=remedy)


def _list_native() -> list[str]:
    """Return the architectures whose own classifier is known here."""
    known = {**TEXT_SHAPES, **IMAGE_SHAPES}
    return [kind for kind, shape in known.items() if shape.native is not None]


def check_pooling(described: HuggingFaceShape, asked: Pooling | None, where: str) -> None:
    """Raise `UserError` where tensors that were saved pool in another way than a plan says."""
    chosen = choose_pooling(type(described), described.model_type, asked)
    if chosen in (None, described.pooling):
        return
    what = f"pools by {described.pooling}, and the plan says backbone.pool: {asked}"
    remedy = "leave backbone.pool out, or name the model's folder, from which the file was made"
    raise UserError(what, where=where, remedy=remedy)


def find_shape(model_type: object, known: Shapes, where: str) -> type[HuggingFaceShape]:
    """Return the class of an architecture. Raise `UserError` for one that is not known."""
    shape = known.get(str(model_type))
    if shape is None:
        what = f"the architecture {shown(model_type)}"
        remedy = f"known are {', '.join(known)}"
        if model_type in TEXT_SHAPES:
            remedy += "; for texts write backbone.name: huggingface"
        if model_type in IMAGE_SHAPES:
            remedy += "; for images write backbone.name: huggingface-image"
        if model_type in AUDIO_SHAPES:
            remedy += "; for audio write backbone.name: huggingface-audio"
        raise UserError(what, where=where, remedy=remedy)
    return shape


def write_shape(shape: HuggingFaceShape) -> bytes:
    """Return a shape as it travels."""
    return shape.model_dump_json().encode()


def read_shape(content: bytes, known: Shapes, where: str) -> HuggingFaceShape:
    """Return the opposite of `write_shape`. Raise `UserError` for anything else."""
    remedy = "save the backbone again"
    try:
        if len(content) > LONGEST:
            raise ValueError(f"{len(content):,} bytes")
        described = json.loads(content)
        kind = described["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"a description of a network that cannot be read ({type(error).__name__})"
        raise UserError(what, where=where, remedy=remedy) from error
    return _validate(find_shape(kind, known, where), described, where)


def _validate(
    shape: type[HuggingFaceShape], described: Mapping[str, Any], where: str
) -> HuggingFaceShape:
    try:
        return shape.model_validate(described)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"])) or "sizes"
        what = f"{key}: {first['msg']} (there is {shown(first['input'])})"
        if first["type"] == "missing":
            what = f"{key} is missing"
        raise UserError(what, where=where, remedy=_REMEDY) from error
