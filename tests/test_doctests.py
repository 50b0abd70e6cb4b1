"""The examples in the public docstrings work as they stand there."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import fedgraft

# in this order: what comes later opens what earlier ones made
DOCUMENTED = (
    fedgraft.validate,
    fedgraft.pretrain,
    fedgraft.simulate,
    fedgraft.load_run,
    fedgraft.load_shared_model,
    fedgraft.Run,
    fedgraft.Runs,
    fedgraft.Predictor,
)


@pytest.mark.slow
def test_the_examples_of_the_public_functions_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An example is what people copy first."""
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    for documented in DOCUMENTED:
        names = {"fedgraft": fedgraft, "np": np, documented.__name__: documented}
        tests = finder.find(documented, globs=names)
        assert any(test.examples for test in tests), f"{documented.__name__} has no example"
        for test in tests:
            runner.run(test)
    outcome = runner.summarize(verbose=False)
    assert not outcome.failed, capsys.readouterr().out
