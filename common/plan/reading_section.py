"""What a person has decided about data that look like something else than they are.

A reader refuses what it cannot be sure of and names the key to write. A hospital writes it into
node.yaml (`data`), a researcher into a plan (`simulation.reading`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fedgraft.common.plan.section import Section, Text

# of `patient_from`: the names of the files do not say whose they are
NOBODY = "none"
Patterns = Annotated[tuple[Text, ...], Field(max_length=100)]


def _is_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return text


class ReadingSection(Section):
    """What a person has decided about data that look like something else than they are."""

    bits: Annotated[int, Field(ge=8, le=16)] | None = Field(
        default=None,
        description=(
            "how many of 16 bits images use whose files do not say it, such as 12; 16: dark as they"
            " are, they are right (default: refused where no image uses the upper half)"
        ),
    )
    leave_out: Patterns | None = Field(
        default=None,
        description=(
            "patterns of files below the folder that are no records, such as '*_mask*' or"
            " 'previews/*'; []: all images are records (default: refused where names speak of masks"
            " or previews, or DICOM lies beside other images)"
        ),
    )
    unknown_categories: Literal["refuse", "missing"] = Field(
        default="refuse",
        description=(
            "what a value is that the plan's categories do not name; missing: as an empty cell, up"
            " to half of a column"
        ),
    )
    labels_left_out: Literal["refuse", "allow"] = Field(
        default="refuse",
        description=(
            "whether records with labels that the plan's task.labels does not name, or with none"
            " where a number is the answer, may be left out"
        ),
    )
    patient_unknown: Literal["refuse", "apart", "together"] = Field(
        default="refuse",
        description=(
            "whose a record is that names nobody, such as NA or ANONYMOUS, or one who has more than"
            " half of all; apart: each is another person's; together: they are one person's"
        ),
    )
    patient_from: Annotated[Text, AfterValidator(_is_expression)] | None = Field(
        default=None,
        description=(
            "a regular expression that finds in a file's path whose it is, such as 'person[0-9]+'"
            " (its first group, if it has one); none: paths do not say it"
        ),
    )
    max_shared: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="part of the data's own test images that may be in their training split, too",
    )


UNDECIDED = ReadingSection()


def to_write(key: str, value: str) -> str:
    """Return what a person writes to decide, for a remedy: in node.yaml or in a plan."""
    return f"data.{key}: {value} in node.yaml (simulation.reading.{key} in a plan)"
