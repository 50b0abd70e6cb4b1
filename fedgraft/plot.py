"""A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Plot(Figure):
    """Matplotlib's figure.

    plot = run.plot()
    plot.savefig("rounds.png")
    """

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=70)
        return picture.getvalue()
