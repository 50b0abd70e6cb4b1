"""The head of a language model: how likely each token is to come next, out of the backbone's own
table of tokens, which is both ends of the network (Press and Wolf 2017).

It has no values of its own: nothing of it is trained, and nothing of it travels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.token_features import keep_tokens


class VocabularyHead(nn.Module):
    """States (n, tokens, width) → logits of the next token (n, tokens, V).

        head = VocabularyHead(net.wte)

    Args:
        table: of tokens, `(V, width)`; it stays the network's, under its own name there.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        # in a tuple: torch would list a child's values under this head's name, too
        self._table = (table,)

    @property
    def in_features(self) -> int:
        """Return the width of states."""
        return self._table[0].embedding_dim

    @property
    def out_features(self) -> int:
        """Return how many tokens there are."""
        return self._table[0].num_embeddings

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits."""
        return F.linear(states, self._table[0].weight)


def open_vocabulary(backbone: Backbone, net: nn.Module) -> VocabularyHead:
    """Return the head of a language model on a copy of its network, which then gives the states of
    every token.

    Raises:
        UserError: a network that is no language model.
    """
    find = family_of(backbone.name).vocabulary
    table = None if find is None else find(net)
    if table is None:
        what = f"{backbone.name}, and it is no language model that writes from left to right"
        remedy = "write `name: huggingface` and as weights the folder of a GPT-2"
        raise UserError(what, where="backbone.name", remedy=remedy)
    keep_tokens(net, backbone)
    return VocabularyHead(table)
