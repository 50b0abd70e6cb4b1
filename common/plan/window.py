"""Windows of intensities, as radiologists set them: what of a scan is seen, from black to white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedgraft.common.plan.section import Problem

Intensity = Annotated[float, Field(ge=-1e6, le=1e6)]
# lowest and highest value; beyond them it is cut
Window = tuple[Intensity, Intensity]


def check_windows(key: str, windows: Sequence[Window]) -> list[Problem]:
    """Return the problem of each window under a key that does not begin below its end."""
    problems: list[Problem] = []
    for window in windows:
        if not window[0] < window[1]:
            what = f"{list(window)} begins where it ends, or behind"
            problems.append(Problem(key, what, "write the lowest intensity first"))
    return problems
