"""Features of tokens: what a frozen network gives at each token of a text, of some of its depths.

A head that answers for each token reads them where others read one vector of a text: what enters
the classifier, or with it what enters and leaves each block, one beside the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.depth_features import (
    LAST,
    Selection,
    list_stages,
    refer,
    select_stages,
    thin_out,
    watching,
    widen,
)


@dataclass(frozen=True)
class TokenChoice:
    """Which features of a token a head reads.

    Attributes:
        example: a prepared batch of one, which shows the length.
        features: "all", "last" or names of stages, of a head that is solved from sums; None: what
            enters the network's own classifier, for one that is trained by steps.
        of_vocabulary: the head is the network's own, see `vocabulary_head.py`.
    """

    example: Tensor
    features: Selection | None = None
    of_vocabulary: bool = False

    @property
    def places(self) -> int:
        """Return how many places for tokens a text has."""
        return self.example.shape[1]


class TokenFeatures:
    """Outputs of some stages of a network at each token, one beside the other.

        features = TokenFeatures(net, head_name="classifier", stages=("stem", "last"))
        features(tokens).shape  # (n, tokens, 384 + 384)

    Args:
        net: the network, which keeps its tokens apart, see `keep_tokens`.
        head_name: dotted name of the classifier.
        stages: names of blocks, "stem" and "last", in the order of the features.
    """

    # of `DepthFeatures`: how places are pooled
    pool = "none"

    def __init__(self, net: nn.Module, *, head_name: str, stages: Sequence[str]) -> None:
        self.net = net
        self.head_name = head_name
        self.stages = tuple(stages)

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens (n, length) → features (n, length, d)."""
        with watching(self.net, self.stages, self.head_name) as outputs:
            self.net(x)
        states = [widen(outputs[name][0]) for name in self.stages]
        return refer(self.net, torch.cat(states, dim=-1))


def keep_tokens(net: nn.Module, backbone: Backbone) -> None:
    """Let a copy of a backbone's network give its classifier every token's states (n, length,
    width), and not one vector of a text.

    Raises:
        UserError: a network that has no tokens which could be told apart.
    """
    keep = family_of(backbone.name).keep_tokens
    if keep is None:
        what = f"{backbone.name}, and it does not tell the tokens of a text apart"
        remedy = "take a transformer with its tokenizer: `name: huggingface`, weights: its folder"
        raise UserError(what, where="backbone.name", remedy=remedy)
    keep(net)


def open_tokens(backbone: Backbone, net: nn.Module, choice: TokenChoice) -> TokenFeatures:
    """Return the chosen features of a copy of a backbone's network. Raise `UserError` as
    `keep_tokens`, and for a name that is no stage.
    """
    keep_tokens(net, backbone)
    stages = choose_token_stages(backbone, net, choice)
    return TokenFeatures(net, head_name=backbone.head_name, stages=stages)


@torch.no_grad()
def choose_token_stages(backbone: Backbone, net: nn.Module, choice: TokenChoice) -> tuple[str, ...]:
    """Return the stages that a plan selects, in the network's order.

    "all" leaves the last block out, as what enters the classifier is that; of a large network it
    takes as few as `thin_out` does.
    """
    stages = list_stages(net)
    if choice.features == "last" or len(stages) == 1:
        return (LAST,)
    if choice.features not in ("all", None):
        return select_stages(stages, choice.features)
    del stages[-2]
    with watching(net, stages, backbone.head_name) as outputs:
        net(choice.example)
    first = {name: outputs[name][0][:, 0] for name in stages}
    return thin_out(stages, first)


@torch.no_grad()
def count_of_token(features: TokenFeatures, example: Tensor) -> int:
    """Return how many features a token has."""
    return features(example).shape[-1]
