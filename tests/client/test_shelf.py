"""What a desk keeps open: bounded, at a cost in proportion to what is opened."""

from __future__ import annotations

from fedgraft.client.desk import Shelf


def open_all(things: int, most_bytes: int) -> tuple[int, int]:
    """Open so many things of a byte each; return how often a size was asked, and those left."""
    asked = 0
    made = 0

    def size(thing: int) -> int:
        nonlocal asked
        asked += 1
        return 1

    def make() -> int:
        nonlocal made
        made += 1
        return made

    shelf: Shelf[int] = Shelf(most_bytes, size)
    for number in range(things):
        shelf.get(number, make)
    for number in reversed(range(things)):
        before = made
        shelf.get(number, make)
        if made > before:
            return asked, things - 1 - number
    return asked, things


def test_opening_many_things_does_not_take_the_square_of_their_number() -> None:
    """Ten thousand simulated nodes that take minutes to be counted at every message."""
    few, _ = open_all(500, 10**9)
    many, _ = open_all(5000, 10**9)
    assert many < 12 * few
    assert many < 20 * 5000


def test_what_is_kept_stays_within_an_eighth_of_the_bound() -> None:
    """Memory that grows with the number of nodes; things that are thrown away while there is
    room.
    """
    _, kept = open_all(5000, 800)
    assert 700 <= kept <= 800 + 800 // 8 + 1
