"""Of which images a plan's volumes are made: one, several in a file, or one a sequence."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.common.plan.backbone_section import BackboneSection


@dataclass(frozen=True)
class ScanForm:
    """How the plan's volumes are read.

        ScanForm(sequences=("t1", "t1ce", "t2", "flair"))

    Attributes:
        channels: images in one file.
        sequences: names of the images where each has a file of its own, in order; none: one file.
    """

    channels: int = 1
    sequences: tuple[str, ...] = ()

    @classmethod
    def of(cls, backbone: BackboneSection) -> ScanForm:
        """Return what a plan's backbone says of its volumes."""
        section = backbone.volume
        if section is None:
            return ONE_IMAGE
        # windows make channels of one image, in the preparation
        channels = 1 if section.windows else section.channels
        return cls(channels, section.sequences)


ONE_IMAGE = ScanForm()
