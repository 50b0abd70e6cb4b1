"""Units that are patients: whose each example is, and which of their examples a step takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.privacy.randomness import Randomness

# of a patient with more, so many are drawn anew in each step: memory stays bounded
IMAGES_PER_PATIENT = 16


def positions_by_patient(
    identities: Sequence[str], rows: np.ndarray, where: str
) -> list[np.ndarray]:
    """Return the positions within a split of each patient's examples.

    Args:
        identities: of every row of the file.
        rows: row numbers of the split.

    Raises:
        UserError: a row that does not say whose it is.
    """
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(rows.tolist()):
        identity = str(identities[row]).strip()
        if not identity:
            what = "a row without a patient"
            raise UserError(what, where=where, remedy="say for every row whose it is")
        positions.setdefault(identity, []).append(position)
    return [np.array(own, np.int64) for own in positions.values()]


def draw_examples(
    patients: Sequence[np.ndarray], drawn: np.ndarray, randomness: Randomness
) -> tuple[np.ndarray, Tensor]:
    """Return positions of the drawn patients' examples, and which of the drawn patients each
    belongs to.
    """
    positions = [np.empty(0, np.int64)]
    owners = [np.empty(0, np.int64)]
    for owner, patient in enumerate(drawn.tolist()):
        own = patients[patient]
        if len(own) > IMAGES_PER_PATIENT:
            order = np.argsort(randomness.uniform(len(own)))
            own = own[order[:IMAGES_PER_PATIENT]]
        positions.append(own)
        owners.append(np.full(len(own), owner))
    return np.concatenate(positions), torch.from_numpy(np.concatenate(owners))
