"""The bundle must be the same bytes wherever the same release is: else hospitals cannot approve it
by themselves.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.common.constant import FAB_MAX_SIZE

from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import (
    build_bundle,
    contents_of,
    read_bundle,
    unpacked,
    write_app,
)

ROOT = Path(__file__).resolve().parents[3]


def test_another_copy_of_the_release_gives_the_same_bytes(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for room in ("fedgraft", "client", "server", "common", "tests"):
        shutil.copytree(ROOT / room, copy / room, symlinks=True)
    (copy / "common" / "__pycache__").mkdir(exist_ok=True)
    (copy / "common" / "notes.txt").write_text("not part of it")
    again, first = build_bundle(copy), build_bundle()
    assert again.data == first.data
    assert first.hash == f"sha256:{hashlib.sha256(first.data).hexdigest()}"


def test_flower_packs_the_written_folder_into_the_same_bytes(tmp_path: Path) -> None:
    """`flwr build` is what `flwr run` does before it sends: an independent way to the same file."""
    folder = write_app(tmp_path / "app")
    program = Path(sys.executable).parent / "flwr"
    subprocess.run(
        [str(program), "build", "--app", str(folder)], cwd=tmp_path, check=True, capture_output=True
    )
    bundle = build_bundle()
    assert (tmp_path / bundle.filename).read_bytes() == bundle.data


def test_one_changed_byte_is_another_bundle(tmp_path: Path) -> None:
    folder = write_app(tmp_path / "app")
    (folder / "client" / "round.py").write_bytes(
        (folder / "client" / "round.py").read_bytes() + b"#"
    )
    altered = build_bundle(folder)
    assert altered.hash != build_bundle().hash
    assert altered.contents != build_bundle().contents


def test_contents_do_not_depend_on_compression_or_order() -> None:
    bundle = build_bundle()
    files = unpacked(bundle)
    stored = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(bundle.data)) as old,
        zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as new,
    ):
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    again = read_bundle(stored.getvalue())
    assert again.hash != bundle.hash
    assert again.contents == bundle.contents == contents_of(files)


def test_only_what_runs_at_a_hospital_is_in_it() -> None:
    """Edits to tests, papers or deployment would change the approved hash; or a file that runs is
    missing.
    """
    names = set(unpacked(build_bundle()))
    assert {name.split("/")[0] for name in names} == {
        "client",
        "common",
        "fedgraft",
        "server",
        "pyproject.toml",
    }
    assert {
        "client/app.py",
        "server/app.py",
        "client/readers/table_file.py",
    } <= names
    assert not [name for name in names if not name.endswith((".py", "pyproject.toml"))]
    assert len(build_bundle().data) < FAB_MAX_SIZE / 2


def test_nothing_of_a_simulation_is_in_it() -> None:
    """Nodes by number, or noise that can be repeated, at a hospital: the one takes another node's
    data, the other protects nobody.
    """
    files = unpacked(build_bundle())
    assert not [name for name in files if name.endswith("together.py")]
    for name, content in files.items():
        words = ["partition-id", "seeded-noise", "simulations.engines"]
        # the server may be told to draw its own noise from the seed; no node hears of it
        if not name.startswith("server/"):
            words.append("seeded_noise")
        assert not [word for word in words if word in content.decode()], name


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "does not say what it is"),
        (
            {
                "pyproject.toml": (
                    b'[project]\nname = "a"\nversion = "1/../../x"\n[tool.flwr.app]\npublisher'
                    b' = "p"'
                )
            },
            "calls",
        ),
        (
            {
                "pyproject.toml": (
                    b'[project]\nname = "../a"\nversion = "1"\n[tool.flwr.app]\npublisher = "p"'
                )
            },
            "calls",
        ),
    ],
)
def test_a_bundle_that_is_none_is_told(files: dict[str, bytes], says: str) -> None:
    """A version `1/../../x` would have Flower unpack the code outside its own folder."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        lines = [
            f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}"
            for name, content in files.items()
        ]
        archive.writestr(".info/CONTENT", "\n".join(lines))
    with pytest.raises(UserError, match=says):
        read_bundle(made.getvalue())


def test_a_file_that_is_not_its_manifest_is_told() -> None:
    bundle, made = build_bundle(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"#" if name == "client/app.py" else b""))
    with pytest.raises(UserError, match="manifest"):
        read_bundle(made.getvalue())
    with pytest.raises(UserError, match="not a bundle"):
        read_bundle(b"PK nothing")
