"""What a family of backbones says of itself: names, network, classifier, blocks, order, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.statistics.histograms import TableHistograms

State = Mapping[str, Tensor]
# a child's dotted name, or a function of the network and its input
Step = str | Callable[[Any, Tensor], Tensor]
Call = Callable[[Any, Callable[..., Any], Tensor], Tensor]
# how tokens become one vector; native: as the architecture's own classifier does; joint: in the
# space that the encoders of a pair share
Pooling = Literal["mean", "first", "last", "native", "joint"]


@dataclass(frozen=True)
class NetworkShape:
    """What a network's tensors have their shapes from, beside its name.

    Attributes:
        image_size: pixels; None where it does not matter.
        max_length: tokens of a text; None where it does not matter.
        pool: how tokens become one vector, where a plan says it.
        columns: inputs of a table's row; 0: told by the weights.
        hidden: widths of the hidden layers, for networks whose name does not say them.
        category_sizes: of each column of a table, how many categories it has; 0: it holds numbers.
            Empty: told by the weights.
        hinges: whether a table's numbers are bent at knots.
        ranges: of each number of a table, low and high, where the plan declares them; None: nodes'
            histograms tell them.
        learns_scales: whether nodes' histograms tell mean and deviation of a table's numbers.
        channels: of an image, a volume or a signal; None where it does not matter.
        files: what a network is described by beside its name, bytes by the name of the tensor that
            holds them.
    """

    image_size: int | None = None
    max_length: int | None = None
    pool: Pooling | None = None
    columns: int = 0
    hidden: tuple[int, ...] = ()
    category_sizes: tuple[int, ...] = ()
    hinges: bool = True
    ranges: tuple[tuple[float, float], ...] | None = None
    learns_scales: bool = False
    channels: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Learnt:
    """Constants of a network that are learnt from nodes' histograms, in a round of their own.

    Attributes:
        module: dotted name of the child whose parameters they are; they travel with the head. It
            has no parameters where a plan declares the constants, or weights bring them.
        learn: (merged histograms of a table's numbers, hinges) → its tensors by name.
    """

    module: str
    learn: Callable[[TableHistograms, bool], dict[str, Tensor]]


# ── what a family with nothing of its own here says ───────────────────────────────────────────────
def refuse_to_fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Raise `UserError`: no weights of this network are known by a name."""
    raise UserError(
        f"{name} has no weights called {weights!r}",
        where="backbone.weights",
        remedy=f"give a file in {', '.join(SUFFIXES)}, or null for a random initialisation",
    )


def keep_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the shape: the name says it all."""
    return shape


def own_weights(name: str) -> str:
    """Return the name: files of weights are this network's own."""
    return name


def keep_state(net: nn.Module, state: State) -> State:
    """Return the tensors as they are."""
    return state


ReadFolder = Callable[[Path, int | None, Pooling | None], tuple[State, Preparation]]
WeighTexts = Callable[[Path, Sequence[Sequence[str]]], Tensor]


# ── the record ────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Family:
    """One family of pre-trained networks.

        family = family_of("resnet18")
        net = family.build("resnet18", NetworkShape(image_size=224))
        name, classifier = last_linear(net)

    Names, network and preparation are all that a family must have.

    Attributes:
        names: all names, which may take an import to list; raises `UserError` where that is an
            extra and not installed.
        build: (name, shape) → the network with its classifier, in torch's own initialisation;
            raises `UserError` for a shape that it cannot have.
        preparation: (name, weights, size) → what its inputs go through first; size: pixels of an
            image's side, or tokens of a text, None: as is usual.
        fetch: (name, weights' name) → tensors that are known by a name; raises `UserError` where
            there are none, or no network to fetch them.
        read_shape: (tensors, shape, where) → the shape that these tensors have; raises `UserError`
            where they are not this family's, or contradict the shape.
        fit: (network, tensors) → the tensors under today's names, in the network's sizes.
        block_types: residual blocks by their class's qualified name, and whether their output has
            its channels last. The last Linear or convolution of each gives as many channels as the
            block itself.
        order: by a network's class, the order in which it calls its children, whose outputs are
            its stages; operation for operation the network itself.
        used_by_steps: layers that a function among the steps uses, where a network has them.
        calls: blocks that are not called with one tensor alone, by class: (network, the block or an
            adapter behind it, what passes between stages) → the same with the block's output.
        places: (prepared inputs) → which positions of a block's output count, 1 or 0, `(n,
            positions)`; None: all do.
        read_folder: (folder, size, pooling) → tensors and preparation of a model that lies in a
            folder, size and pooling its own where they are None; raises `UserError`; None: its
            weights are files.
        kept_when_random: tensors that are preparation rather than learnt, and stay in a random
            backbone; patterns of `fnmatch`.
        learnt: constants that nodes' histograms tell; None: it has none.
        weights_of: (name) → the network that files of weights for it are of.
        joined: (shape) → how many features enter the classifier behind the last block's, such as
            those of a table; None: there are none.
        reference: (network) → centre `(d,)` and linear map `(d, d)` of its features that follow
            from what the plan declares, see `reference.py`; None: public records tell them.
        keep_tokens: (network) → nothing; lets it give its classifier the states of every token `(n,
            tokens, width)`, not one vector of them; None: its records have no tokens.
        vocabulary: (network) → its table of tokens, which is the head of its language model, too;
            None: it has none.
        weigh_texts: (folder, texts of each class) → the weights `(classes, features)` of the head
            that these texts give, where a folder holds the encoder of texts that its network was
            trained in a pair with; raises `UserError` where it does not; None: there are no pairs.
    """

    names: Callable[[], Sequence[str]]
    build: Callable[[str, NetworkShape], nn.Module]
    preparation: Callable[[str, str | None, int | None], Preparation]
    fetch: Callable[[str, str], dict[str, Tensor]] = refuse_to_fetch
    read_shape: Callable[[State, NetworkShape, str], NetworkShape] = keep_shape
    fit: Callable[[nn.Module, State], State] = keep_state
    block_types: Mapping[str, bool] = field(default_factory=dict)
    order: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    used_by_steps: Mapping[Step, tuple[str, ...]] = field(default_factory=dict)
    calls: Mapping[str, Call] = field(default_factory=dict)
    places: Callable[[Tensor], Tensor] | None = None
    read_folder: ReadFolder | None = None
    kept_when_random: tuple[str, ...] = ()
    learnt: Learnt | None = None
    weights_of: Callable[[str], str] = own_weights
    joined: Callable[[NetworkShape], int] | None = None
    reference: Callable[[Any], tuple[Tensor, Tensor]] | None = None
    keep_tokens: Callable[[Any], None] | None = None
    vocabulary: Callable[[Any], nn.Embedding | None] | None = None
    weigh_texts: WeighTexts | None = None


def last_linear(net: nn.Module) -> tuple[str, nn.Linear]:
    """Return dotted name and module of the last Linear: the classifier of every known network."""
    last: tuple[str, nn.Linear] | None = None
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            last = (name, module)
    if last is None:
        raise ValueError("a network without a Linear has no classifier that is known here")
    return last


def kind_of(module: nn.Module) -> str:
    """Return the qualified name of a module's class, as `block_types` and `order` have it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
