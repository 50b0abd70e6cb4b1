"""Run scripts and notebooks of this folder one after the other, in one process.

    python run_examples.py FILE…

What each prints goes to FILE.out; of a notebook, what its cells show as text. All begin with the
same backbone, which is made once.
"""

import ast
import contextlib
import functools
import json
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import fedgraft


def run_notebook(file: Path) -> None:
    """Run a notebook's cells in their order; print the value that a cell ends with."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] == "code":
            run_cell("".join(cell["source"]), names)


def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run a cell as a notebook does."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(source, names)
        return
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    for show in ("_repr_html_", "_repr_png_"):
        if hasattr(value, show):
            getattr(value, show)()
    print(repr(value))


def once(pretrain: Any) -> Any:
    """Return a `pretrain` that makes a ready plan's backbone once; it lies in the folder then."""
    make_ready = functools.cache(pretrain)

    def make(plan: Any) -> Any:
        return make_ready(plan) if isinstance(plan, str) else pretrain(plan)

    return make


def run(file: Path) -> None:
    """Run one file; what is wrong with it is in its output, too."""
    with file.with_name(file.name + ".out").open("w") as out, contextlib.redirect_stdout(out):
        try:
            if file.suffix == ".ipynb":
                run_notebook(file)
            else:
                runpy.run_path(str(file), run_name="__main__")
        except BaseException:
            traceback.print_exc(file=out)


if __name__ == "__main__":
    fedgraft.pretrain = once(fedgraft.pretrain)
    for name in sys.argv[1:]:
        run(Path(name))
