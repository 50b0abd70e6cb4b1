"""manifest.json: what a run or a study was made of and what came of it, by hash; a changed byte
anywhere is named.

    plan · code · packages · data · backbone · seeds · ledger · results · every file of the folder ·
    digest

manifest.sig, where somebody signed: an Ed25519 signature (RFC 8032) over the bytes of
manifest.json. Without one the digest still tells of an accident; only a signature tells who wrote
it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import PART, write_whole
from fedgraft.common.plan.plan_file import load_plan, plan_hash

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
PACKAGES = (
    "fedgraft", "flwr", "flwr-datasets", "numpy", "opacus", "pillow", "pydantic", "pyyaml", "safetensors",
    "scikit-learn", "scipy", "torch", "torchvision",
)  # fmt: skip
ROOMS = ("client", "common", "server", "simulations")
_SIGNED = ("algorithm", "public_key", "signature")
_DOMAIN = b"fedgraft manifest 1\n"  # so that the signature fits nothing else
_MAKE_KEY = "make one: openssl genpkey -algorithm ed25519 -out key.pem"


# ── what is written ───────────────────────────────────────────────────────────────────────────────
def write_manifest(folder: Path, more: Mapping[str, Any]) -> Path:
    """Write a folder's manifest; a signature of an older one is removed.

    Args:
        folder: of a run or a study.
        more: what the folder itself does not say.
    """
    content: dict[str, Any] = {
        "schema": 1,
        **more,
        "code": code(),
        "packages": packages(),
        "machine": machine(),
        "files": {
            name: {"sha256": sha256_of(folder / name), "bytes": size}
            for name, size in files_of(folder)
        },
    }
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_whole(folder / MANIFEST, _dumped(content | {"digest": _digest(content)}))
    return folder / MANIFEST


def run_facts(run: Path) -> dict[str, Any]:
    """What a run's own files say: plan, seed, backbone, data, ledger and results."""
    result = json.loads((run / "result.json").read_text())
    return {
        "kind": "run",
        "name": result["name"],
        "plan": plan_hash(load_plan(run / "plan.yaml")),
        "seeds": [result["seed"]],
        "backbone": {
            "name": result["backbone"]["name"],
            "fingerprint": result["backbone"]["fingerprint_before"],
        },
        "data": {key: result.get("data", {}).get(key, {}) for key in ("files", "fingerprints")},
        "ledger": {
            node: {**spent, "head": _head(run, node)}
            for node, spent in sorted(result["privacy"].items())
        },
        "results": {
            "status": result["status"],
            "final": result["final"],
            "adapter": sha256_of(run / "shared_model" / "adapter_model.safetensors"),
        },
    }


def code() -> dict[str, Any]:
    """Every source file of fedgraft by its SHA-256, and one hash over all of them."""
    root = Path(__file__).resolve().parents[2]
    package = root / "fedgraft" if (root / "fedgraft").is_dir() else root
    found = {f"fedgraft/{path.name}": sha256_of(path) for path in sorted(package.glob("*.py"))}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts:
                found[path.relative_to(root).as_posix()] = sha256_of(path)
    return {"sha256": hashlib.sha256(_dumped(found)).hexdigest(), "files": found}


def packages() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """What else the last bits depend on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
    }


def files_of(folder: Path) -> Iterator[tuple[str, int]]:
    """Every file below a folder with its size, but for the manifest, its signature and what is half
    written.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, SIGNATURE) and PART not in path.suffixes:
            yield name, path.stat().st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ── what is checked ───────────────────────────────────────────────────────────────────────────────
def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest's content. Raises `UserError` where there is none."""
    try:
        content = json.loads(_manifest_in(path).read_bytes())
        if (
            not isinstance(content, dict)
            or content.get("schema") != 1
            or not isinstance(content.get("files"), dict)
        ):
            raise ValueError
    except (OSError, ValueError) as error:
        remedy = "give a run's or a study's folder, or the manifest.json in it"
        raise UserError(
            "holds no manifest that can be read", where=str(path), remedy=remedy
        ) from error
    return content


def problems_in(path: Path, public: Path | None = None) -> list[str]:
    """Every file that is not as the manifest says, the manifest itself and its signature among
    them; empty: none.

    Args:
        path: the manifest, or its folder.
        public: the public key that must have signed it; None: a signature, where there is one, must
            be right.

    Raises:
        UserError: no manifest or no such key.
    """
    manifest = _manifest_in(path)
    folder, found = manifest.parent, []
    try:
        content = read_manifest(manifest)
    except UserError:
        if not manifest.is_file():
            raise
        return [f"{MANIFEST}: changed: it cannot be read any more"]
    rest = {key: value for key, value in content.items() if key != "digest"}
    if content.get("digest") != _digest(rest) or manifest.read_bytes() != _dumped(content):
        found.append(f"{MANIFEST}: changed since it was written")
    found += _signature_problems(manifest, public)
    there = dict(files_of(folder))
    for name, wanted in content["files"].items():
        if name not in there:
            found.append(f"{name}: missing")
        elif {"bytes": there[name], "sha256": sha256_of(folder / name)} != wanted:
            found.append(f"{name}: changed since the manifest was written")
    found += [
        f"{name}: came after the manifest was written"
        for name in there
        if name not in content["files"]
    ]
    return found


# ── who wrote it ──────────────────────────────────────────────────────────────────────────────────
def sign(path: Path, private: Path) -> Path:
    """Sign a manifest. Raises `UserError` for what is no Ed25519 private key, or a manifest that
    does not hold.
    """
    manifest = _manifest_in(path)
    if found := problems_in(manifest):
        listed = "\n".join(f"  ✗ {problem}" for problem in found)
        raise UserError(
            f"what does not agree is not signed\n{listed}",
            where=str(manifest),
            remedy="run it again",
        )
    key = _private_key(private)
    said = {
        "algorithm": "Ed25519",
        "public_key": key.public_key().public_bytes_raw().hex(),
        "signature": key.sign(_DOMAIN + manifest.read_bytes()).hex(),
    }
    signature = manifest.with_name(SIGNATURE)
    write_whole(signature, _dumped(said))
    return signature


def signer(path: Path) -> str | None:
    """The public key (hexadecimal) in a manifest's signature; None where nobody signed."""
    try:
        return json.loads(_manifest_in(path).with_name(SIGNATURE).read_bytes())["public_key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _signature_problems(manifest: Path, public: Path | None) -> list[str]:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    file = manifest.with_name(SIGNATURE)
    wanted = None if public is None else _public_key(public).public_bytes_raw().hex()
    if not file.is_file():
        return [] if wanted is None else [f"{SIGNATURE}: missing: nobody signed"]
    try:
        raw = file.read_bytes()
        said = json.loads(raw)
        if (
            raw != _dumped(said)
            or set(said) != {"algorithm", "public_key", "signature"}
            or said["algorithm"] != "Ed25519"
        ):
            raise ValueError
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(said["public_key"]))
        signature = bytes.fromhex(said["signature"])
        if (
            said["signature"] != signature.hex()
            or said["public_key"] != key.public_bytes_raw().hex()
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        return [f"{SIGNATURE}: changed: it is no signature any more"]
    if wanted is not None and said["public_key"] != wanted:
        return [f"{SIGNATURE}: made with another key, {said['public_key']}"]
    try:
        key.verify(signature, _DOMAIN + manifest.read_bytes())
    except InvalidSignature:
        return [f"{SIGNATURE}: does not fit {MANIFEST}: one of the two was changed"]
    return []


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = _key_bytes(path)
    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH PRIVATE" in raw
        else serialization.load_pem_private_key
    )
    try:
        key = load(raw, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise UserError(
            "no private key without a password", where=str(path), remedy=_MAKE_KEY
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError("not an Ed25519 key", where=str(path), remedy=_MAKE_KEY)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _key_bytes(path)
    load = (
        serialization.load_ssh_public_key
        if raw.startswith(b"ssh-")
        else serialization.load_pem_public_key
    )
    remedy = "take it from the private key: openssl pkey -in key.pem -pubout -out key.pub"
    try:
        key = load(raw)
    except ValueError as error:
        raise UserError("no public key", where=str(path), remedy=remedy) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError("not an Ed25519 key", where=str(path), remedy=remedy)
    return key


def _key_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(path), remedy=_MAKE_KEY
        ) from error


def _manifest_in(path: Path) -> Path:
    return path / MANIFEST if path.is_dir() else path


def _head(run: Path, node: str) -> str | None:
    """The anchor of a node's ledger, where it is in the run's folder."""
    anchor = run / "ledgers" / f"{node}.sqlite.head"
    return anchor.read_text().strip() if anchor.is_file() else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumped(content)).hexdigest()


def _dumped(content: Mapping[str, Any]) -> bytes:
    return (
        json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
