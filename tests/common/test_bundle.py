"""What hospitals approve: the bytes of the app bundle."""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from common.bundle import APP, bundle, write_app

ROOT = Path(__file__).parents[2]


def test_a_folder_gives_the_same_bytes(tmp_path):
    """`flwr run` builds from a folder: another hash there than a hospital approved, and every node refuses."""
    made, digest = bundle()
    assert build_fab_from_disk(write_app(tmp_path / "app")) == made
    assert hashlib.sha256(made).hexdigest() == digest
    assert len(made) < 2_000_000


def test_only_what_runs_at_a_hospital_is_in_it():
    """Edits to tests, papers or deployment change the approved hash; or a file that runs is missing."""
    names = set(zipfile.ZipFile(io.BytesIO(bundle()[0])).namelist())
    rooms = {name.split("/")[0] for name in names}
    assert rooms == {"client", "common", "server", "pyproject.toml", ".info"}
    assert {"client/app.py", "server/app.py", "common/plans/digits.yaml", "client/readers/table.py"} <= names
    assert not [name for name in names if not name.endswith((".py", ".yaml", "pyproject.toml", "CONTENT"))]


def test_the_checkout_says_the_same():
    """`flwr run .` and `fedgraft server run` start other apps or know other keys of the run config."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert table == APP
