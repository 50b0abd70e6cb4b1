"""Code of others on our seams: a package that a person approved, or members of a notebook.

An extension is a folder of Python sources, `NAME/__init__.py` among them, which registers members
of the seams (docs/own-code.md). In a deployment it is part of the bundle, under `extensions/`, and
a hospital approves it with the bundle; a plan picks by name among those, and its agreement holds
their hashes. On a researcher's machine a person names the folder (`--with DIR`). Nothing else is
ever imported: a plan has no path.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import EXTENSION_NAME, EXTENSIONS, contents_of, own_root
from fedgraft.common.registry import Line, add_line

# the package that they are imported in, whatever folder they lie in
_PACKAGE = "fedgraft.extensions"
# bytes of one source file, and files
LARGEST_FILE = 1_000_000
MOST_FILES = 200

_offered: dict[str, Path] = {}
# name → hash of what this process has imported
_loaded: dict[str, str] = {}


# ── folders ───────────────────────────────────────────────────────────────────────────────────────
def offer_extension(folder: Path) -> str:
    """Let plans of this process name an extension, and return its name. Imports nothing.

    Raises:
        UserError: the folder is none.
    """
    folder = Path(folder).absolute()
    read_extension(folder)
    _offered[folder.name] = folder
    return folder.name


def offer_extensions(folders: Iterable[Path] | None) -> None:
    """Let plans of this process name several; as `offer_extension`."""
    for folder in folders or ():
        offer_extension(folder)


def offered_extensions() -> tuple[Path, ...]:
    """Return the folders that a person named in this process."""
    return tuple(_offered.values())


def read_offered() -> dict[str, bytes]:
    """Return the sources of all extensions that a person named in this process, by their path from
    the folder that they lie in.
    """
    files: dict[str, bytes] = {}
    for folder in _offered.values():
        files |= read_extension(folder)
    return files


def read_extensions(names: Iterable[str]) -> dict[str, bytes]:
    """Return the sources of extensions that this process may have, by their path from the folder
    that they lie in.

    Raises:
        UserError: there is none of a name.
    """
    files: dict[str, bytes] = {}
    for name in names:
        files |= read_extension(_find(name))
    return files


def read_extension(folder: Path) -> dict[str, bytes]:
    """Return the sources of an extension by their path from the folder that it lies in.

    Raises:
        UserError: the folder is no extension, or holds what is no Python source.
    """
    where = str(folder)
    name = folder.name
    if not (folder / "__init__.py").is_file():
        remedy = "give the folder of a Python package: it has an __init__.py that registers members"
        raise UserError("no extension lies here", where=where, remedy=remedy)
    if re.fullmatch(EXTENSION_NAME, name) is None:
        remedy = "rename the folder: small letters, digits and _, a letter first"
        raise UserError(f"{name!r} is no name of an extension", where=where, remedy=remedy)
    paths = []
    for path in sorted(folder.rglob("*")):
        is_compiled = "__pycache__" in path.parts
        if path.is_file() and not is_compiled:
            paths.append(path)
    files: dict[str, bytes] = {}
    for path in paths:
        inside = path.relative_to(folder.parent).as_posix()
        _check_source(path, inside)
        files[inside] = path.read_bytes()
    if len(files) > MOST_FILES:
        remedy = "keep what is no part of it elsewhere"
        raise UserError(f"{len(files):,} files; at most {MOST_FILES}", where=where, remedy=remedy)
    return files


def _check_source(path: Path, inside: str) -> None:
    """Raise `UserError` for a file that cannot be in a bundle."""
    is_module = re.fullmatch(r"([A-Za-z0-9_]+/)+[A-Za-z0-9_]+\.py", inside) is not None
    if not is_module or path.is_symlink():
        remedy = "an extension holds Python sources alone; keep other files elsewhere"
        raise UserError("no Python source", where=str(path), remedy=remedy)
    if path.stat().st_size > LARGEST_FILE:
        remedy = f"at most {LARGEST_FILE:,} bytes; weights travel as a backbone's tensors"
        raise UserError("too large", where=str(path), remedy=remedy)


# ── importing ─────────────────────────────────────────────────────────────────────────────────────
def load_extension(name: str) -> str:
    """Import an extension that this process may have, once, and return its hash: "sha256:…" over
    its sources.

    Raises:
        UserError: there is none of this name, it was imported with other contents before, or it
            fails.
    """
    folder = _find(name)
    files = read_extension(folder)
    identity = contents_of(files)
    before = _loaded.get(name)
    if before == identity:
        return identity
    if before is not None:
        what = f"extension {name} was changed since this process imported it"
        raise UserError(what, where=str(folder), remedy="start anew")
    _import(name, folder)
    _loaded[name] = identity
    return identity


def _find(name: str) -> Path:
    in_bundle = own_root() / EXTENSIONS
    folders = dict(_offered)
    # what was approved comes before what anybody names
    if in_bundle.is_dir():
        folders |= {folder.name: folder for folder in in_bundle.iterdir() if folder.is_dir()}
    if name in folders:
        return folders[name]
    remedy = (
        "name its folder: --with DIR, or in Python fedgraft.offer_extension(DIR); at a hospital"
        " give the coordinator's bundle: --bundle FILE"
    )
    if folders:
        remedy = f"there is {', '.join(sorted(folders))}; or {remedy}"
    raise UserError(f"no extension is called {name!r} here", remedy=remedy)


def _import(name: str, folder: Path) -> None:
    """Run an extension's `__init__.py` as a package of ours, wherever it lies."""
    if _PACKAGE not in sys.modules:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = []
        sys.modules[_PACKAGE] = package
    full = f"{_PACKAGE}.{name}"
    file = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        full, file, submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        _forget(full)
        raise
    # anything may be wrong in code that is not ours
    except Exception as error:
        _forget(full)
        what = f"extension {name} cannot be imported: {type(error).__name__}: {error}"
        remedy = (
            f"mend it; alone it fails the same: cd {folder.parent} && python -c 'import {name}'"
        )
        raise UserError(what, where=_line_of(error, folder), remedy=remedy) from error
    setattr(sys.modules[_PACKAGE], name, module)


def _forget(full: str) -> None:
    """Take a package that failed, and what it imported of itself, out again."""
    for module in list(sys.modules):
        if module == full or module.startswith(f"{full}."):
            del sys.modules[module]


def _line_of(error: Exception, folder: Path) -> str:
    """Return file and line of an extension where an error arose."""
    place = str(folder)
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(folder):
            place = f"{file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


# ── members ───────────────────────────────────────────────────────────────────────────────────────
def register(seam: str, name: str, member: Any, **about: Any) -> None:
    """Add a member to a seam, under the name that plans call it by.

        fedgraft.register("family", "ours", OURS, material="image")
        fedgraft.register("method", "gain", GAIN)
        fedgraft.register("input", "beats", BEATS)
        fedgraft.register("reader", "json-lines", JSON_LINES)

    A family's networks are called by its name, or `NAME/…`. In a notebook or a simulation this is
    all; what shall run at hospitals stands in an extension's `__init__.py`.

    Args:
        seam: family, input, task, method or reader.
        name: small letters, digits and dashes; what fedgraft calls so itself cannot be replaced.
        member: the record of the seam, or "module:attribute" to import it when it is used.
        about: what a plan must know of it without importing it: the fields of `FamilyLine`,
            `InputLine` or `MethodLine`.

    Raises:
        UserError: no such seam, a name that cannot be, or another field.
    """
    where = f"register({seam!r}, {name!r})"
    if seam not in _SEAMS:
        remedy = f"write one of {', '.join(_SEAMS)}"
        raise UserError(f"there is no seam {seam!r}", where=where, remedy=remedy)
    if not isinstance(name, str) or re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None:
        remedy = "small letters, digits and dashes, a letter first"
        raise UserError(f"{name!r} is no name", where=where, remedy=remedy)
    # `task.kind` puts a material and a question together with a dash
    if seam == "input" and "-" in name:
        remedy = "write it without a dash"
        raise UserError("a raw material's name is one word", where=where, remedy=remedy)
    what, make_line = _SEAMS[seam]
    add_line(what, name, make_line(name, member, about, where))


def _family_line(name: str, member: Any, about: Mapping[str, Any], where: str) -> Line:
    from fedgraft.common.backbones import FamilyLine

    pattern = rf"{re.escape(name)}(/.+)?"
    _check_fields(FamilyLine, about, where, needed=("material",), given=("pattern",))
    return FamilyLine(member, pattern, **about)


def _input_line(name: str, member: Any, about: Mapping[str, Any], where: str) -> Line:
    from fedgraft.common.inputs import InputLine

    _check_fields(InputLine, about, where)
    usual = {"has_columns": False, "has_pixels": False, "example": f"a network for {name}"}
    return InputLine(member, **(usual | dict(about)))


def _method_line(name: str, member: Any, about: Mapping[str, Any], where: str) -> Line:
    from fedgraft.common.adapters import MethodLine

    _check_fields(MethodLine, about, where)
    return MethodLine(member, **about)


def _plain_line(name: str, member: Any, about: Mapping[str, Any], where: str) -> Line:
    _check_fields(Line, about, where)
    return Line(member)


def _check_fields(
    line: type[Line],
    about: Mapping[str, Any],
    where: str,
    needed: tuple[str, ...] = (),
    given: tuple[str, ...] = (),
) -> None:
    """Raise `UserError` for a field that a line does not have, or that is missing."""
    known = [field.name for field in fields(line) if field.name not in ("member", *given)]
    for name in about:
        if name not in known:
            remedy = f"known here: {', '.join(known) or 'none'}"
            raise UserError(
                f"{name!r} is nothing that a plan must know", where=where, remedy=remedy
            )
    for name in needed:
        if name not in about:
            raise UserError(f"{name} is missing", where=where, remedy=f'write {name}="…"')


# seam → what the members of its table are called there, and how a line is made
_SEAMS = {
    "family": ("family", _family_line),
    "input": ("raw material", _input_line),
    "task": ("question", _plain_line),
    "method": ("adapter method", _method_line),
    "reader": ("format", _plain_line),
}
