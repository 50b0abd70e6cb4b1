"""Vision transformers cut images into square patches, which must fill the image."""

from __future__ import annotations

from fedgraft.common.errors import UserError


def check_patches(network: str, patch: int, side: int | None) -> None:
    """Raise `UserError` where patches do not fill an image: the rest would be cut off.

    Args:
        network: what is said to cut, such as a name.
        patch: side of a patch, pixels.
        side: of an image, pixels; None: the network's own.
    """
    if side is None or side % patch == 0:
        return
    multiple = max(patch, side // patch * patch)
    raise UserError(
        f"{side} pixels; {network} cuts images into patches of {patch}",
        where="backbone.image_size",
        remedy=f"give a multiple of {patch}, such as {multiple}",
    )
