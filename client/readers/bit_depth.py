"""How many of 16 bits images use: a detector's 12 bits in a file of 16 are 6 % of white.

Where the file itself says it (PNG's sBIT, TIFF's BitsPerSample and MaxSampleValue, DICOM's
BitsStored), its values are spread over all 16 when it is decoded. Where it does not, a person says
it: `data.bits`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write

FULL = 16
# of an image that has no more than 8 bits, or whose file says how many it has
NOT_ASKED = -1
# an image that uses all 16 bits is somewhere as bright as this
HALF = 1 << (FULL - 1)


def spread(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Return values of so many bits on 16 bits: uint16, their white is 65,535.

    Raises:
        ValueError: a value that has more bits.
    """
    if bits == FULL:
        return pixels.astype(np.uint16)
    white = (1 << bits) - 1
    if pixels.size and int(pixels.max()) > white:
        raise ValueError(f"a value of {int(pixels.max()):,}, which has more than {bits} bits")
    return np.rint(pixels * (65535 / white)).astype(np.uint16)


def check_brightest(where: str, brightest: Sequence[int], bits: int | None) -> None:
    """Raise UserError where no image uses the upper half of 16 bits and nobody has said why, or
    where some image has more bits than were said.

    Args:
        where: the data, for messages.
        brightest: the highest value of each image of 16 bits; `NOT_ASKED` of others.
        bits: how many a person said; None: nobody did.
    """
    wide = [value for value in brightest if value != NOT_ASKED]
    if not wide:
        return
    highest = max(wide)
    used = max(8, highest.bit_length())
    if bits is None and highest < HALF:
        raise UserError(
            f"{len(wide):,} images of 16 bits are dark: none has a value above {highest:,} of"
            f" 65,535, as images of {used} bits have",
            where=where,
            remedy=(
                f"say how many bits they have, such as {to_write('bits', str(used))}; if they are"
                " as dark as they should be: 16"
            ),
        )
    if bits is not None and highest >= 1 << bits:
        above = sum(value >= 1 << bits for value in wide)
        raise UserError(
            f"{above:,} of {len(wide):,} images have values above those of {bits} bits, up to"
            f" {highest:,}",
            where=where,
            remedy=f"`bits` says {bits}: write {used}, or leave it out",
        )


def digests_at(bits: int | None, digests: Sequence[bytes]) -> Sequence[bytes]:
    """Return digests that tell what is trained on: files read at other bits are other images."""
    if bits is None:
        return digests
    depth = f"{bits} bits".encode()
    return [hashlib.sha256(digest + depth).digest() for digest in digests]
