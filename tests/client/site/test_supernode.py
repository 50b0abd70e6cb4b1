"""Flower's SuperNode with shorter pauses: it leans on one name inside Flower, which is read
here.
"""

from __future__ import annotations

import inspect
import time

import flwr.supernode.cli as cli
import flwr.supernode.start_client_internal as loop
import pytest

from fedgraft.client.site import supernode


def test_a_pause_is_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of Flower that waits in another way, and rounds that take two seconds longer
    without a word.
    """
    source = inspect.getsource(loop)
    assert "time.sleep(3)" in source
    assert source.count("time.") == source.count("time.sleep(") + source.count(
        "limit to the total time."
    )
    slept: list[float] = []
    monkeypatch.setattr(loop, "time", time)
    monkeypatch.setattr(time, "sleep", slept.append)

    def pause() -> None:
        for seconds in (3, 0.5):
            getattr(loop, "time").sleep(seconds)  # noqa: B009

    monkeypatch.setattr(cli, "flower_supernode", pause)
    supernode.main()
    assert slept == [supernode.PAUSE, 0.5]


def test_another_flower_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", None)
    with pytest.raises(SystemExit, match="this release of Flower"):
        supernode.main()
