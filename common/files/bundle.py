"""The app bundle: the code that runs at coordinator and hospitals, as one file that has the same
bytes everywhere.

    fedgraft/__init__.py  client/**/*.py  server/**/*.py  common/**/*.py  and a pyproject.toml of
    Flower's own keys; extensions/NAME/**/*.py where a coordinator adds code of its own

It is made from the installed package itself, in a checkout or out of a wheel, so a hospital that
has the same release makes the very bundle that the coordinator sends, and approves it without
having to trust the sender.

Flower names a bundle by the SHA-256 of its file. Compression differs between releases of zlib, so
two machines may pack the same code into different bytes: `contents` is what they compare then.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError

ROOMS = ("client", "server", "common")
# the folder of code that is no part of fedgraft, a package each
EXTENSIONS = "extensions"
EXTENSION_NAME = r"[a-z][a-z0-9_]{0,39}"
# bytes; Flower takes no larger bundle
LARGEST = 10 * 1024 * 1024
MOST_UNPACKED = 10 * LARGEST
REMEDY = (
    "it must be the .fab file that the coordinator's `fedgraft server run` or `flwr build` made"
)
_MANIFEST = ".info/CONTENT"
# every path that a bundle may have: the manifest, its description, and modules of its rooms
_OWN_NAME = re.compile(
    r"\.info/CONTENT|pyproject\.toml"
    r"|(fedgraft/__init__|(client|server|common)(/[A-Za-z0-9_]+)+)\.py"
    rf"|{EXTENSIONS}/{EXTENSION_NAME}(/[A-Za-z0-9_]+)+\.py"
)
MOST_FILES = 5000

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

        bundle = build_bundle()
        (folder / bundle.filename).write_bytes(bundle.data)

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
        """Return the name of the folder under `$FLWR_HOME/apps` that Flower runs it from."""
        return f"{self.name}.{self._short_hash}"

    @property
    def filename(self) -> str:
        """Return the file's name as `flwr install` demands it."""
        publisher, name, release = self.name.split(".", 2)
        number = release.replace(".", "-")
        return f"{publisher}.{name}.{number}.{self._short_hash}.fab"

    @property
    def _short_hash(self) -> str:
        return self.hash.removeprefix("sha256:")[:8]


def app_files(
    root: Path | None = None, extensions: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Return the bundle's files by their path in it.

    Args:
        root: the folder that holds the rooms; default: the one that this file was imported from.
        extensions: sources by their path from `extensions/`: `NAME/__init__.py`.
    """
    files = {"pyproject.toml": describe_app(APP, extended=bool(extensions))}
    files |= place_extensions(extensions or {})
    for path, content in source_files(root or own_root(), ROOMS).items():
        files[path] = content
    return files


def own_root() -> Path:
    """Return the folder that holds the rooms: a checkout, an unpacked app, or the package."""
    return Path(__file__).resolve().parents[2]


def place_extensions(extensions: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return sources of extensions by their path in an app."""
    return {f"{EXTENSIONS}/{path}": content for path, content in extensions.items()}


def describe_app(app: Mapping[str, Any], *, extended: bool = False) -> bytes:
    """Return the pyproject.toml of an app of this release.

    Args:
        extended: whether there are extensions among its files.
    """
    from importlib.metadata import version

    import tomli_w

    if extended:
        # Flower refuses a pattern that no file matches
        app = {**app, "fab-include": [*app["fab-include"], f"{EXTENSIONS}/**/*.py"]}

    about = {
        "name": "fedgraft",
        "version": version("fedgraft"),
        "description": "federated transfer learning",
    }
    return tomli_w.dumps({"project": about, "tool": {"flwr": {"app": app}}}).encode()


def source_files(root: Path, rooms: Sequence[str]) -> dict[str, bytes]:
    """Return the Python sources of some rooms, and the package that they are in."""
    package = root
    if (root / "fedgraft").is_dir():
        package = root / "fedgraft"
    files = {"fedgraft/__init__.py": (package / "__init__.py").read_bytes()}
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if "__pycache__" not in path.parts:
                files[name] = path.read_bytes()
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


def build_bundle(root: Path | None = None, extensions: Mapping[str, bytes] | None = None) -> Bundle:
    """Return the bundle of this release, as `flwr run` makes it; arguments as of `app_files`.

    Raises:
        UserError: Flower does not take the files.
    """
    from flwr.cli.build import build_fab_from_files

    try:
        data, _ = build_fab_from_files(app_files(root, extensions))
    except ValueError as error:
        raise UserError(f"no bundle can be made: {error}", remedy="install fedgraft anew") from None
    return read_bundle(data)


def signed_name() -> str:
    """Return what this release is called where a hub serves it with signatures:
    `@fedgraft/fedgraft==0.1.0`.
    """
    from importlib.metadata import version

    return f"@{APP['publisher']}/fedgraft=={version('fedgraft')}"


def read_bundle(data: bytes, where: str = "bundle") -> Bundle:
    """Return a bundle from its bytes; nothing of it is run or unpacked to disk.

    Raises:
        UserError: not a bundle of fedgraft, larger than Flower allows, or not what its own manifest
            says.
    """
    try:
        files = _unpack(data)
        name = _name_in(files)
    except _NoBundle as error:
        raise UserError(str(error), where=where, remedy=REMEDY) from None
    return Bundle(data, name, f"sha256:{_digest(data)}", contents_of(files))


def contents_of(files: Mapping[str, bytes]) -> str:
    """Return "sha256:…" over files by their path: what the same code has in common, however it was
    packed.
    """
    lines = [f"{_digest(content)}  {name}\n" for name, content in files.items()]
    text = "".join(sorted(lines))
    return f"sha256:{_digest(text.encode())}"


def unpacked(bundle: Bundle) -> dict[str, bytes]:
    """Return the files of a bundle, without its manifest."""
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files.pop(_MANIFEST, None)
    return files


def extensions_in(files: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return the extensions among a bundle's files: sources by their path from `extensions/`, by
    name.
    """
    found: dict[str, dict[str, bytes]] = {}
    for path, content in sorted(files.items()):
        room, _, inside = path.partition("/")
        if room == EXTENSIONS:
            name = inside.partition("/")[0]
            found.setdefault(name, {})[inside] = content
    return found


def hash_extensions(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the hash of each extension among a bundle's files, by name."""
    hashes: dict[str, str] = {}
    for name, sources in extensions_in(files).items():
        hashes[name] = contents_of(sources)
    return hashes


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ── a file that may be anything ───────────────────────────────────────────────────────────────────
class _NoBundle(Exception):
    """Why bytes are no bundle."""


def _unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of a bundle, without its manifest, held against it."""
    if len(data) > LARGEST:
        raise _NoBundle(f"{len(data):,} bytes; Flower takes {LARGEST:,}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_entries(archive)
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _NoBundle(f"not a bundle: {error}") from error
    listed = _read_manifest(files.pop(_MANIFEST, b""))
    digests = {name: _digest(content) for name, content in files.items()}
    if listed != digests:
        raise _NoBundle("its files are not those of its manifest")
    return files


def _check_entries(archive: zipfile.ZipFile) -> None:
    """Raise `_NoBundle` for an archive that holds anything but plain files of fedgraft's own names:
    an administrator unpacks it.
    """
    names = archive.namelist()
    if len(names) > MOST_FILES:
        raise _NoBundle(f"{len(names):,} files; a bundle has at most {MOST_FILES:,}")
    # as a file system sees them that knows no capitals
    if len({name.casefold() for name in names}) != len(names):
        raise _NoBundle("a name is in it twice")
    for entry in archive.infolist():
        # absolute names, `..`, and links would write outside the folder that it is unpacked to
        if _OWN_NAME.fullmatch(entry.filename) is None:
            raise _NoBundle(f"{entry.filename[:100]!r} is no file of a bundle")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _NoBundle(f"{entry.filename[:100]!r} is no plain file")
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MOST_UNPACKED:
        raise _NoBundle("it unpacks to more than ten times what Flower allows")


def _read_manifest(text: bytes) -> dict[str, str]:
    """Return the SHA-256 (hex) by path, of lines `path,sha256,bits`."""
    listed: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        row = line.rsplit(",", 2)
        if len(row) == 3:
            listed[row[0]] = row[1]
    return listed


def _name_in(files: Mapping[str, bytes]) -> str:
    """Return publisher, name and version, with dots between.

    Only plain words: Flower makes a folder's name of them without looking.
    """
    import tomllib

    try:
        data = tomllib.loads(files["pyproject.toml"].decode())
        publisher = data["tool"]["flwr"]["app"]["publisher"]
        name = data["project"]["name"]
        release = data["project"]["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise _NoBundle(f"its pyproject.toml does not say what it is: {error}") from error
    is_plain = all(map(_is_plain, (publisher, name, release)))
    if not is_plain or "." in publisher or "." in name:
        full = f"{publisher}.{name}.{release}"
        raise _NoBundle(f"it calls itself {full[:100]!r}")
    return f"{publisher}.{name}.{release}"


def _is_plain(part: Any) -> bool:
    return isinstance(part, str) and re.fullmatch(r"[A-Za-z0-9.+_-]+", part) is not None
