"""Pictures of thousands of nodes."""

from __future__ import annotations

import time

from fedgraft.simulations.report.pictures import draw_budget, draw_label_counts, draw_rounds

NODES = 10_000


def test_ten_thousand_nodes_are_drawn_as_one_outline() -> None:
    """A page that takes minutes to be made, and megabytes to be sent."""
    names = [f"node-{number}" for number in range(NODES)]
    labels = {name: (number % 7, 3) for number, name in enumerate(names)}
    rounds = {name: [(1, 0.5, 4), (2, number / NODES, 4)] for number, name in enumerate(names)}
    started = time.process_time()
    pictures = (
        draw_label_counts(labels, ["a", "b"]),
        draw_rounds(rounds, "accuracy"),
        draw_budget(dict.fromkeys(names, 1.0), 3.0),
    )
    # a bar each took 60 s and more
    assert time.process_time() - started < 30
    assert all(len(picture) < 2_000_000 for picture in pictures)
