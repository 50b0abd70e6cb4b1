"""A bundle that somebody made to harm whoever unpacks it, as an administrator does."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import MOST_FILES, build_bundle, read_bundle, unpacked

HONEST = unpacked(build_bundle())


def pack(
    files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda entry: None
) -> bytes:
    """Pack files as Flower does, with a manifest that fits."""
    lines = [f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}\n" for n, c in files.items()]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | {".info/CONTENT": "".join(lines).encode()}).items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            change(entry)
            archive.writestr(entry, content)
    return made.getvalue()


def of_kind(kind: int) -> Callable[[zipfile.ZipInfo], None]:
    """Make the module `client/link.py` a link, a device, a pipe."""

    def change(entry: zipfile.ZipInfo) -> None:
        if entry.filename == "client/link.py":
            entry.external_attr = (kind | 0o777) << 16

    return change


def test_what_is_packed_honestly_is_read() -> None:
    """A door so narrow that no release passes."""
    assert unpacked(read_bundle(pack(HONEST))) == HONEST


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/job",
        "../outside.py",
        "client/../../outside.py",
        "client/./app.py",
        "client//x.py",
        "client\\..\\..\\x.py",
        "C:/x.py",
        "client/x.so",
        "client/__pycache__/x.pyc",
        "client/",
        "sitecustomize.py",
        "client/x.py\x00.txt",
        "client/ünd.py",
        "CLIENT/app.py",
    ],
)
def test_names_that_are_none_of_a_bundle_are_refused(name: str) -> None:
    """A file outside the new folder, or one that Python runs by itself."""
    with pytest.raises(UserError, match=r"is no file of a bundle|in it twice|not those of its"):
        read_bundle(pack({**HONEST, name: b"x"}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_links_and_devices_are_refused(kind: int) -> None:
    """Another release of Python's zipfile may make what the entry says."""
    with pytest.raises(UserError, match="is no plain file"):
        read_bundle(pack({**HONEST, "client/link.py": b"/etc/shadow"}, of_kind(kind)))


def test_a_name_twice_and_more_than_can_be_are_refused() -> None:
    """Two readers that take another of the two; an archive that fills the disk or the table."""
    doubled = io.BytesIO(pack(HONEST))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(doubled, "a") as archive:
        archive.writestr("client/app.py", b"evil")
    with pytest.raises(UserError, match="in it twice"):
        read_bundle(doubled.getvalue())
    with pytest.raises(UserError, match="in it twice"):
        read_bundle(pack({**HONEST, "client/App.py": b"evil"}))
    many = {f"client/m{number}.py": b"" for number in range(MOST_FILES)}
    with pytest.raises(UserError, match="a bundle has at most"):
        read_bundle(pack({**HONEST, **many}))
    bomb = {"client/bomb.py": bytes(120 * 1024 * 1024)}
    with pytest.raises(UserError, match="unpacks to more than ten times"):
        read_bundle(pack({**HONEST, **bomb}))


def test_the_command_writes_nothing_outside(tmp_path: Path) -> None:
    """`sudo fedgraft node approve --bundle`: what the issue was found with."""
    (tmp_path / "node.yaml").write_text(
        "name: hospital\ndata: {path: data.npz}\nstore: store\npolicy: {approved_plans: recorded}\n"
    )
    absolute = tmp_path / "absolute.py"
    evil = {**HONEST, str(absolute): b"x", "../../../../outside.py": b"x"}
    (tmp_path / "evil.fab").write_bytes(pack(evil))
    command = [sys.executable, "-m", "fedgraft", "node", "approve", "pneumonia"]
    command += ["--node", "node.yaml", "--bundle", "evil.fab", "--yes", "--by", "admin"]
    before = sorted(tmp_path.rglob("*"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "is no file of a bundle" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before
