"""The nodes that may take part: Flower's registry, and the names that it does not show.

The names are in `state/nodes.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.server.site.flower_processes import CONNECTION, Flower
from fedgraft.server.site.node_keys import NODE_NAME, key_fingerprint
from fedgraft.server.site.server_file import Server
from fedgraft.server.site.start_server import connect

Nodes = dict[str, dict[str, str]]


def add(server: Server, name: str, public_key: Path) -> dict[str, Any]:
    """Register a node's public key under a name.

    Returns:
        `{"name", "id", "key"}`.

    Raises:
        UserError: a name or key that is taken, or a file that is no key.
        RunFailed: the SuperLink does not answer.
    """
    nodes = _read(server)
    _check_name(name, nodes)
    fingerprint = key_fingerprint(public_key)
    where = str(public_key)
    for other, entry in nodes.items():
        if entry["key"] == fingerprint:
            remedy = "each node has a key of its own"
            raise UserError(f"is the key of {other}", where=where, remedy=remedy)
    try:
        key_file = str(public_key.absolute())
        flower = connect(server)
        answer = flower.call("supernode", "register", key_file, CONNECTION, "--name", name)
    except RunFailed as error:
        if "already in use" not in str(error):
            raise
        remedy = "make the node a new key: a removed node's key is never taken again"
        raise UserError("this key was registered before", where=where, remedy=remedy) from None
    entry = {"id": str(answer["node-id"]), "key": fingerprint}
    _write(server, nodes | {name: entry})
    return {"name": name, **entry}


def list_nodes(server: Server) -> list[dict[str, Any]]:
    """Return every registered node.

    Returns:
        `{"name", "id", "key", "status", "since"}` of each; its status is registered, online or
        offline.
    """
    registered = _registered(connect(server))
    rows = []
    for name, entry in sorted(_read(server).items()):
        node = registered.pop(entry["id"], {})
        rows.append({"name": name, **entry, **_state(node)})
    for id_, node in sorted(registered.items()):
        rows.append({"name": "?", "id": id_, "key": "?", **_state(node)})
    return rows


def remove(server: Server, name: str) -> dict[str, Any]:
    """Unregister a node: its key is refused from now on, and for ever.

    Returns:
        `{"name", "id", "key"}`.

    Raises:
        UserError: an unknown name.
    """
    nodes = _read(server)
    if name not in nodes:
        names = ", ".join(sorted(nodes)) or "no node yet"
        what = "no node of this name is registered"
        raise UserError(what, where=name, remedy=f"one of: {names}")
    entry = nodes.pop(name)
    connect(server).call("supernode", "unregister", entry["id"], CONNECTION)
    _write(server, nodes)
    return {"name": name, **entry}


def count(server: Server) -> int:
    """Return how many nodes are registered."""
    return len(_read(server))


def _check_name(name: str, nodes: Nodes) -> None:
    """Raise `UserError` for a name that is none, or that is taken."""
    if not NODE_NAME.fullmatch(name):
        what = f"{name!r} is no name for a node"
        raise UserError(what, where="NAME", remedy="letters, digits, dots, dashes")
    if name in nodes:
        what = "a node of this name is registered"
        remedy = (
            f"take another name, or remove that node first: fedgraft server nodes remove {name}"
        )
        raise UserError(what, where=name, remedy=remedy)


def _registered(flower: Flower) -> dict[str, dict[str, Any]]:
    """Return Flower's nodes by id, without those that were removed."""
    nodes = flower.call("supernode", "list", CONNECTION)["nodes"]
    return {str(node["node-id"]): node for node in nodes if node["status"] != "unregistered"}


def _state(node: dict[str, Any]) -> dict[str, Any]:
    status = node.get("status", "unknown to the SuperLink")
    since = {"online": "online-at", "offline": "offline-at"}.get(status, "created-at")
    return {"status": status, "since": node.get(since, "")}


def _read(server: Server) -> Nodes:
    if not server.nodes.exists():
        return {}
    return json.loads(server.nodes.read_text())


def _write(server: Server, nodes: Nodes) -> None:
    write_whole(server.nodes, json.dumps(nodes, indent=1, sort_keys=True) + "\n")
