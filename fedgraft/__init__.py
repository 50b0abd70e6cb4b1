"""Federated transfer learning: hospitals graft adapters onto a pre-trained backbone.

    import fedgraft

    run = fedgraft.simulate("pneumonia", set={"train.rounds": 5})
    run.metrics               # a row for each model: accuracy, AUROC, loss, …
    run.plot()                # round by round
    run.shared_model.predict("xrays/")

The rooms (`client`, `common`, `server`, `simulations`) are folders of the repository and links in
this package; in a wheel they are its subpackages. Flower's packer does not follow links: in an app
bundle the rooms lie beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

_HERE = Path(__file__).resolve().parent
if not (_HERE / "common").exists():
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from fedgraft.api import load_run, load_shared_model, pretrain, simulate, study, validate
    from fedgraft.common.errors import RunFailed, UserError
    from fedgraft.common.extensions import offer_extension, register
    from fedgraft.predictor import Predictor
    from fedgraft.run import Run, Runs

# the public names, and where each is: importing fedgraft costs nothing until one is used
_PUBLIC = {
    "simulate": "fedgraft.api",
    "load_run": "fedgraft.api",
    "load_shared_model": "fedgraft.api",
    "validate": "fedgraft.api",
    "pretrain": "fedgraft.api",
    "study": "fedgraft.api",
    "register": "fedgraft.common.extensions",
    "offer_extension": "fedgraft.common.extensions",
    "Run": "fedgraft.run",
    "Runs": "fedgraft.run",
    "Predictor": "fedgraft.predictor",
    "UserError": "fedgraft.common.errors",
    "RunFailed": "fedgraft.common.errors",
}

__all__ = [
    "Predictor",
    "Run",
    "RunFailed",
    "Runs",
    "UserError",
    "load_run",
    "load_shared_model",
    "offer_extension",
    "pretrain",
    "register",
    "simulate",
    "study",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedgraft' has no attribute {name!r}")
    import importlib

    from fedgraft.common.supported_systems import check_system

    check_system()
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
