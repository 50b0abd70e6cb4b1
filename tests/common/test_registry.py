"""Closed tables: a name picks a line, an unknown one is answered, and nothing is imported early."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedgraft.common.errors import UserError
from fedgraft.common.registry import Line, Registry

SHAPES: Registry[object] = Registry(
    "drawing.shape",
    "shape",
    {"line": "fractions:Fraction", "square": Line("decimal:Decimal"), "gone": "no.module:X"},
)


def test_members_by_name() -> None:
    from decimal import Decimal
    from fractions import Fraction

    assert SHAPES["line"] is Fraction
    assert SHAPES["square"] is Decimal
    assert SHAPES.names == tuple(SHAPES) == ("line", "square", "gone")
    assert "line" in SHAPES
    assert "circle" not in SHAPES
    with pytest.raises(ModuleNotFoundError):
        SHAPES.values()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("sqare", "did you mean 'square'?"), ("os:system", "write one of line, square, gone")],
)
def test_an_unknown_name_is_answered_with_one_that_exists(name: str, remedy: str) -> None:
    """A name out of a plan that becomes the name of a module, or a KeyError and a traceback."""
    with pytest.raises(UserError) as caught:
        SHAPES[name]
    assert caught.value.where == "drawing.shape"
    assert caught.value.what == f"no shape is called {name!r}"
    assert caught.value.remedy == remedy


def test_names_are_read_without_importing_a_member() -> None:
    """A plan or a node file that takes seconds to read, since its names import torch."""
    program = """
import sys
from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones import FAMILIES, family_line
from fedgraft.common.inputs import INPUTS
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.tasks import TASKS

assert METHODS.names and FAMILIES.names and INPUTS.names and TASKS.names
assert family_line("resnet18").material == "image"
load_plan("digits")
print(*{"torch", "torchvision", "flwr"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
