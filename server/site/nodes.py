"""The nodes that may take part: Flower's registry, and the names that it does not show, in
`state/nodes.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.server.site.certificates import key_fingerprint
from fedgraft.server.site.flower_processes import CONNECTION, Flower
from fedgraft.server.site.server_file import Server
from fedgraft.server.site.start_server import connect


def add(server: Server, name: str, public_key: Path) -> dict[str, Any]:
    """Register a node's public key under a name.

    Returns:
        `{"name", "id", "key"}`.

    Raises:
        UserError: a name or key that is taken, or a file that is no key.
        RunFailed: the SuperLink does not answer.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UserError(
            f"{name!r} is no name for a node", where="NAME", remedy="letters, digits, dots, dashes"
        )
    known = _known(server)
    if name in known:
        remedy = (
            f"take another name, or remove that node first: fedgraft server nodes remove {name}"
        )
        raise UserError("a node of this name is registered", where=name, remedy=remedy)
    fingerprint = key_fingerprint(public_key)
    for other, entry in known.items():
        if entry["key"] == fingerprint:
            raise UserError(
                f"is the key of {other}",
                where=str(public_key),
                remedy="each node has a key of its own",
            )
    try:
        answer = connect(server).call(
            "supernode", "register", str(public_key.absolute()), CONNECTION, "--name", name
        )
    except RunFailed as error:
        if "already in use" not in str(error):
            raise
        remedy = "make the node a new key: a removed node's key is never taken again"
        raise UserError(
            "this key was registered before", where=str(public_key), remedy=remedy
        ) from None
    entry = {"id": str(answer["node-id"]), "key": fingerprint}
    _write(server, known | {name: entry})
    return {"name": name, **entry}


def listed(server: Server) -> list[dict[str, Any]]:
    """Every registered node: name, id, key, status (registered, online, offline) and since when."""
    found = _registry(connect(server))
    rows = []
    for name, entry in sorted(_known(server).items()):
        node = found.pop(entry["id"], {})
        rows.append({"name": name, **entry, **_state(node)})
    rows += [
        {"name": "?", "id": key, "key": "?", **_state(node)} for key, node in sorted(found.items())
    ]
    return rows


def remove(server: Server, name: str) -> dict[str, Any]:
    """Unregister a node: its key is refused from now on, and for ever. Raises `UserError` for an
    unknown name.
    """
    known = _known(server)
    if name not in known:
        names = ", ".join(sorted(known)) or "no node yet"
        raise UserError("no node of this name is registered", where=name, remedy=f"one of: {names}")
    entry = known.pop(name)
    connect(server).call("supernode", "unregister", entry["id"], CONNECTION)
    _write(server, known)
    return {"name": name, **entry}


def count(server: Server) -> int:
    """How many nodes are registered."""
    return len(_known(server))


def _registry(flower: Flower) -> dict[str, dict[str, Any]]:
    """Flower's nodes by id, without those that were removed."""
    nodes = flower.call("supernode", "list", CONNECTION)["nodes"]
    return {str(node["node-id"]): node for node in nodes if node["status"] != "unregistered"}


def _state(node: dict[str, Any]) -> dict[str, Any]:
    status = node.get("status", "unknown to the SuperLink")
    since = {"online": "online-at", "offline": "offline-at"}.get(status, "created-at")
    return {"status": status, "since": node.get(since, "")}


def _known(server: Server) -> dict[str, dict[str, str]]:
    return json.loads(server.nodes.read_text()) if server.nodes.exists() else {}


def _write(server: Server, nodes: dict[str, dict[str, str]]) -> None:
    write_whole(server.nodes, json.dumps(nodes, indent=1, sort_keys=True) + "\n")
