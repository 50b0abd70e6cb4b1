"""The app bundle: the code that runs at coordinator and hospitals, as one file that has the same
bytes everywhere.

    fedgraft/__init__.py  client/**/*.py  server/**/*.py  common/**/*.py  and a pyproject.toml of
    Flower's own keys

It is made from the installed package itself, in a checkout or out of a wheel, so a hospital that
has the same release makes the very bundle that the coordinator sends, and approves it without
having to trust the sender.

Flower names a bundle by the SHA-256 of its file. Compression differs between releases of zlib, so
two machines may pack the same code into different bytes: `contents` is what they compare then.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError

ROOMS = ("client", "server", "common")
LARGEST = 10 * 1024 * 1024  # bytes; Flower takes no larger bundle
_MANIFEST = ".info/CONTENT"

# pyproject.toml of the repository names another app, with what only a simulation has; a test holds
# the files of both together
APP: dict = {
    "publisher": "fedgraft",
    "fab-include": ["fedgraft/__init__.py", "client/**/*.py", "server/**/*.py", "common/**/*.py"],
    "components": {
        "serverapp": "fedgraft.server.app:app",
        "clientapp": "fedgraft.client.app:app",
    },
    "config": {
        "plan": "",
        "weights": "",
        "out": "",
        "nodes-expected": 0,
        "resume": False,
    },
}


@dataclass(frozen=True)
class Bundle:
    """A Flower app bundle.

    Attributes:
        data: the file's bytes, a zip archive.
        name: publisher, name and version with dots between, as Flower names the installed folder.
        hash: "sha256:…" over the bytes, Flower's name for it.
        contents: "sha256:…" over names and bytes of the files in it, whatever their compression and
            order.
    """

    data: bytes = field(repr=False)
    name: str
    hash: str
    contents: str

    @property
    def folder(self) -> str:
        """Name of the folder under `$FLWR_HOME/apps` that Flower runs it from."""
        return f"{self.name}.{self.hash.removeprefix('sha256:')[:8]}"

    @property
    def filename(self) -> str:
        """The file's name as `flwr install` demands it."""
        first, second, release = self.name.split(".", 2)
        number = release.replace(".", "-")
        digest = self.hash.removeprefix("sha256:")
        return f"{first}.{second}.{number}.{digest[:8]}.fab"


def app_files(root: Path | None = None) -> dict[str, bytes]:
    """Return the bundle's files by their path in it.

    Args:
        root: the folder that holds the rooms; default: the one that this file was imported from.
    """
    files = {"pyproject.toml": describe_app(APP)}
    for path, content in source_files(root or own_root(), ROOMS).items():
        files[path] = content
    return files


def own_root() -> Path:
    """Return the folder that holds the rooms: a checkout, an unpacked app, or the package."""
    return Path(__file__).resolve().parents[2]


def describe_app(app: Mapping[str, Any]) -> bytes:
    """Return the pyproject.toml of an app of this release."""
    import tomli_w

    about = {
        "name": "fedgraft",
        "version": version("fedgraft"),
        "description": "federated transfer learning",
    }
    return tomli_w.dumps({"project": about, "tool": {"flwr": {"app": app}}}).encode()


def source_files(root: Path, rooms: Sequence[str]) -> dict[str, bytes]:
    """Return the Python sources of some rooms, and the package that they are in."""
    package = root / "fedgraft" if (root / "fedgraft").is_dir() else root
    files = {"fedgraft/__init__.py": (package / "__init__.py").read_bytes()}
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            if "__pycache__" not in path.parts:
                files[path.relative_to(root).as_posix()] = path.read_bytes()
    return files


def write_app(folder: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """Lay an app's files out in a new folder, which `flwr run FOLDER` packs; by default the
    bundle's, into the same bytes as `build_bundle`.

    Flower walks the whole folder that it is given; in a checkout that is `.venv`, too, which takes
    20 s.
    """
    for name, content in (files or app_files()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def build_bundle(root: Path | None = None) -> Bundle:
    """The bundle of this release, as `flwr run` makes it. Raises `UserError` where Flower does not
    take the files.
    """
    from flwr.cli.build import build_fab_from_files

    try:
        data, _ = build_fab_from_files(app_files(root))
    except ValueError as error:
        raise UserError(f"no bundle can be made: {error}", remedy="install fedgraft anew") from None
    return read_bundle(data)


def signed_name() -> str:
    """What this release is called where a hub serves it with signatures:
    `@fedgraft/fedgraft==0.1.0`.
    """
    return f"@{APP['publisher']}/fedgraft=={version('fedgraft')}"


def bundle() -> tuple[bytes, str]:
    """The bundle's bytes and their SHA-256, 64 hex digits: what Flower calls the FAB hash."""
    made = build_bundle()
    return made.data, made.hash.removeprefix("sha256:")


def read_bundle(data: bytes, where: str = "bundle") -> Bundle:
    """A bundle from its bytes; nothing of it is run or unpacked to disk.

    Raises:
        UserError: not a bundle of fedgraft, larger than Flower allows, or not what its own manifest
            says.
    """
    remedy = (
        "it must be the .fab file that the coordinator's `fedgraft server run` or `flwr build` made"
    )
    if len(data) > LARGEST:
        raise UserError(
            f"{len(data):,} bytes; Flower takes {LARGEST:,}", where=where, remedy=remedy
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise UserError("a name is in it twice", where=where, remedy=remedy)
            if sum(entry.file_size for entry in archive.infolist()) > 10 * LARGEST:
                raise UserError(
                    "it unpacks to more than ten times what Flower allows",
                    where=where,
                    remedy=remedy,
                )
            files = {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f"not a bundle: {error}", where=where, remedy=remedy) from None
    listed = _manifest(files.pop(_MANIFEST, b""))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if listed != digests:
        raise UserError("its files are not those of its manifest", where=where, remedy=remedy)
    return Bundle(
        data,
        _name(files, where, remedy),
        f"sha256:{hashlib.sha256(data).hexdigest()}",
        contents_of(files),
    )


def contents_of(files: Mapping[str, bytes]) -> str:
    """ "sha256:…" over files by their path: what the same code has in common, however it was
    packed.
    """
    lines = sorted(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()
    )
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def unpacked(bundle: Bundle) -> dict[str, bytes]:
    """The files of a bundle, without its manifest."""
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != _MANIFEST}


def _manifest(text: bytes) -> dict[str, str]:
    """Path → SHA-256 (hex) of each line `path,sha256,bits`."""
    rows = [line.rsplit(",", 2) for line in text.decode("utf-8", "replace").splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3}


def _name(files: Mapping[str, bytes], where: str, remedy: str) -> str:
    """Publisher, name and version. Only plain words: Flower makes a folder's name of them without
    looking.
    """
    import tomllib

    try:
        data = tomllib.loads(files["pyproject.toml"].decode())
        parts = (
            data["tool"]["flwr"]["app"]["publisher"],
            data["project"]["name"],
            data["project"]["version"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"its pyproject.toml does not say what it is: {error}", where=where, remedy=remedy
        ) from None
    if (
        not all(isinstance(part, str) and part and set(part) <= _PLAIN for part in parts)
        or "." in parts[0] + parts[1]
    ):
        raise UserError(
            f"it calls itself {'.'.join(map(str, parts))[:100]!r}", where=where, remedy=remedy
        )
    return ".".join(parts)


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_")
