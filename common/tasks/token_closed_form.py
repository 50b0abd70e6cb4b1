"""The closed form of tags of tokens: every token of every text is a row of the sums.

Under differential privacy a text is the unit, not a token. Its tokens' features have norm 1, and
they share the text's weight of 1 among them: half of it the tokens of its entities, half all
others, so that the many tokens that are none of an entity do not drown them. What a text adds to
the sums by tag is Σ share · φ codeᵀ, of norm Σ share = 1 at most, however long it is.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.class_scores import describe_scores, discriminant
from fedgraft.common.statistics.noisy_means import solve_counted
from fedgraft.common.statistics.noisy_places import share_halves
from fedgraft.common.statistics.noisy_products import solve_products
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.class_head import check_counts
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm
from fedgraft.common.tasks.entity_tags import count_tags


def tags_of(task: TaskSection) -> int:
    """Return how many tags there are."""
    return count_tags(len(task.classes))


def one_hot_tags(tags: Tensor, task: TaskSection) -> np.ndarray:
    """Return 1 in the column of each token's tag, int64 `(m, tags)`."""
    return np.eye(tags_of(task), dtype=np.int64)[tags.numpy()]


def solve_tags(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose softmax is the probability of each tag of a token.

    Args:
        prior: "shares": of the tags among the tokens; "equal": none is more frequent. A tag that no
            token has is never answered.
    """
    classes = describe_scores(solution)
    shares = classes.counts / classes.counts.sum()
    if prior == "equal":
        present = (shares > 0).astype(np.float64)
        shares = present / present.sum()
    onto_logits, shift = discriminant(classes, shares)
    weights, bias = solution.head()
    return onto_logits @ weights, onto_logits @ bias + shift


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def code_tags(tags: Tensor, task: TaskSection, shares: str) -> np.ndarray:
    """Return 1 in the column of each token's tag, `(m, tags)`."""
    return np.eye(tags_of(task))[tags.numpy()]


def solve_noisy_tags(noisy: NoisySums, task: TaskSection, shares: str, prior: str) -> Head:
    """Return the head that noisy sums give, and products, where they were released; how frequent
    tags are is as texts weigh them.
    """
    if noisy.products.size:
        return solve_products(noisy, prior)
    return solve_counted(noisy, prior)


TOKEN_HEAD = ClosedForm(
    by="by tag, over the tokens of texts",
    counts="counts of tags",
    columns=tags_of,
    targets=one_hot_tags,
    check=check_counts,
    head=solve_tags,
    noisy=NoisyForm(
        shape=lambda task, shares: (tags_of(task), tags_of(task)),
        codes=code_tags,
        counted=code_tags,
        head=solve_noisy_tags,
        parts=share_halves,
    ),
)
