"""What `flwr run .` refuses, and in which words; tests/e2e/test_flwr_run.py has the real one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.simulations.engines.flower_app import check_supernodes, count_dealt, log_in_words


def config(folder: Path, **changes: str) -> dict[str, str]:
    return {"plan": "digits", "out": str(folder / "out"), "nodes": str(folder)} | changes


def test_nodes_that_were_dealt_records_are_counted(tmp_path: Path) -> None:
    """A run that expects other nodes than there are."""
    for number in range(3):
        (tmp_path / f"node-{number}.yaml").touch()
    assert count_dealt(config(tmp_path)) == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("plan", "", "names no plan"),
        ("out", "", "names no out"),
        ("nodes", "", "names no nodes"),
        ("out", "runs/new", "Flower works in another folder than yours"),
        ("nodes", "nodes", "Flower works in another folder than yours"),
        ("nodes", "/no/such/folder", "there is no node-0.yaml in /no/such/folder"),
    ],
)
def test_what_lacks_is_named(tmp_path: Path, key: str, value: str, words: str) -> None:
    """A run with paths of another folder; a mistake that is a traceback."""
    (tmp_path / "node-0.yaml").touch()
    with pytest.raises(UserError, match=words) as raised:
        count_dealt(config(tmp_path, **{key: value}))
    assert raised.value.remedy


def test_fewer_supernodes_than_nodes_are_refused() -> None:
    """A run of two of five nodes that says completed; or waits two minutes for the others."""
    check_supernodes(5, 5)
    with pytest.raises(UserError, match="5 nodes were dealt records") as raised:
        check_supernodes(2, 5)
    assert "num-supernodes=5" in raised.value.remedy
    with pytest.raises(UserError, match="started 10"):
        check_supernodes(10, 5)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (UserError("no such file", where="weights", remedy="fedgraft pretrain digits"), 2),
        (RunFailed("2 of 5 nodes joined"), 1),
        (ValueError("of ours"), 0),
    ],
)
def test_a_mistake_is_a_sentence_in_flowers_log(
    error: Exception, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback for a backbone that is not there yet; a mistake of ours without one."""
    logger = logging.getLogger("fedgraft-test-flower-app")
    logger.addFilter(log_in_words)
    try:
        raise error
    except Exception as raised:
        logger.error("%s raised an exception", "Simulation", exc_info=raised)
    if lines == 0:
        assert "Traceback" in caplog.text
    else:
        assert "Traceback" not in caplog.text
        assert caplog.messages == [str(error)]
        assert len(caplog.messages[0].splitlines()) == lines
