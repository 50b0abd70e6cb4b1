"""manifest.json: what a run or a study was made of and what came of it, by hash.

    plan · code · packages · data · backbone · seeds · ledger · results · every file of the folder ·
    digest

A changed byte anywhere is named. manifest.sig, where somebody signed, tells who wrote it; without
one the digest still tells of an accident.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedgraft.common import run_files
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import PART, write_whole
from fedgraft.common.plan.plan_file import load_plan, plan_hash
from fedgraft.common.result import Result
from fedgraft.common.run_files import MANIFEST, SIGNATURE
from fedgraft.server.papers.signature import signature_problems, signer_of, write_signature
from fedgraft.server.papers.stable_json import stable_bytes
from fedgraft.server.papers.surroundings import code, machine, packages, sha256_of

SCHEMA = 1


# ── what is written ───────────────────────────────────────────────────────────────────────────────
def write_manifest(folder: Path, more: Mapping[str, Any]) -> Path:
    """Write a folder's manifest and return where it lies; an older one's signature is removed.

    Args:
        folder: of a run or a study.
        more: what the folder itself does not say.
    """
    files = {}
    for name, size in files_of(folder):
        files[name] = {"sha256": sha256_of(folder / name), "bytes": size}
    content: dict[str, Any] = {
        "schema": SCHEMA,
        **more,
        "code": code(),
        "packages": packages(),
        "machine": machine(),
        "files": files,
    }
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_whole(folder / MANIFEST, stable_bytes(content | {"digest": _digest(content)}))
    return folder / MANIFEST


def run_facts(run: Path) -> dict[str, Any]:
    """Return what a run's own files say: plan, seed, backbone, data, ledger and results."""
    # to look at a manifest needs no torch
    from fedgraft.common.model.adapter_files import TENSORS

    result = Result.from_json(json.loads((run / run_files.RESULT).read_text()))
    ledger = {}
    for node, spending in sorted(result.privacy.items()):
        ledger[node] = {**spending.to_json(), "head": _ledger_head(run, node)}
    return {
        "kind": "run",
        "name": result.name,
        "plan": plan_hash(load_plan(run / run_files.PLAN)),
        "seeds": [result.seed],
        "backbone": {
            "name": result.backbone.name,
            "fingerprint": result.backbone.fingerprint_before,
        },
        "data": {"files": result.data.files, "fingerprints": result.data.fingerprints},
        "ledger": ledger,
        "results": {
            "status": str(result.status),
            "final": result.final.to_json(),
            "adapter": sha256_of(run / run_files.SHARED_MODEL / TENSORS),
        },
    }


def files_of(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield every file below a folder with its size.

    The manifest, its signature and what is half written are left out.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, SIGNATURE) and PART not in path.suffixes:
            yield name, path.stat().st_size


# ── what is checked ───────────────────────────────────────────────────────────────────────────────
def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest's content. Raises `UserError` where there is none."""
    try:
        content = json.loads(_manifest_in(path).read_bytes())
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError("another file")
        if not isinstance(content.get("files"), dict):
            raise ValueError("no files")
    except (OSError, ValueError) as error:
        what = "holds no manifest that can be read"
        remedy = "give a run's or a study's folder, or the manifest.json in it"
        raise UserError(what, where=str(path), remedy=remedy) from error
    return content


def problems_in(path: Path, public: Path | None = None) -> list[str]:
    """Return every file that is not as the manifest says; empty: none.

    The manifest itself and its signature are among them.

    Args:
        path: the manifest, or its folder.
        public: the public key that must have signed it; None: a signature, where there is one, must
            be right.

    Raises:
        UserError: no manifest or no such key.
    """
    manifest = _manifest_in(path)
    try:
        content = read_manifest(manifest)
    except UserError:
        if not manifest.is_file():
            raise
        return [f"{MANIFEST}: changed: it cannot be read any more"]
    rest = {key: value for key, value in content.items() if key != "digest"}
    problems = []
    if content.get("digest") != _digest(rest) or manifest.read_bytes() != stable_bytes(content):
        problems.append(f"{MANIFEST}: changed since it was written")
    problems += signature_problems(manifest, public)
    problems += _file_problems(manifest.parent, content["files"])
    return problems


def _file_problems(folder: Path, files: Mapping[str, Any]) -> list[str]:
    present = dict(files_of(folder))
    problems = []
    for name, expected in files.items():
        if name not in present:
            problems.append(f"{name}: missing")
        elif {"bytes": present[name], "sha256": sha256_of(folder / name)} != expected:
            problems.append(f"{name}: changed since the manifest was written")
    for name in present:
        if name not in files:
            problems.append(f"{name}: came after the manifest was written")
    return problems


# ── who wrote it ──────────────────────────────────────────────────────────────────────────────────
def sign(path: Path, private: Path) -> Path:
    """Sign a manifest and return where the signature lies.

    Raises:
        UserError: no Ed25519 private key, or a manifest that does not hold.
    """
    manifest = _manifest_in(path)
    problems = problems_in(manifest)
    if problems:
        listed = "\n".join(f"  ✗ {problem}" for problem in problems)
        what = f"what does not agree is not signed\n{listed}"
        raise UserError(what, where=str(manifest), remedy="run it again")
    return write_signature(manifest, private)


def signer(path: Path) -> str | None:
    """Return the public key (hexadecimal) that signed a manifest; None where nobody did."""
    return signer_of(_manifest_in(path))


# ── small ─────────────────────────────────────────────────────────────────────────────────────────
def _manifest_in(path: Path) -> Path:
    return path / MANIFEST if path.is_dir() else path


def _ledger_head(run: Path, node: str) -> str | None:
    """Return the anchor of a node's ledger, where it is in the run's folder."""
    anchor = run / run_files.LEDGERS / f"{node}.sqlite.head"
    return anchor.read_text().strip() if anchor.is_file() else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(stable_bytes(content)).hexdigest()
