"""What a preflight finds on the machine: disk, memory, processors, the ledger and the audit log."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.model.devices import CPU, describe_device, find_device, list_devices

# bytes
LEAST_DISK = 1_000_000_000
LEAST_MEMORY = 1_000_000_000
_GIGABYTE = 1e9


def check_machine(node: Node) -> Iterator[Finding]:
    """Give what is found, one thing after the other."""
    yield _check_store(node.store)
    yield _check_memory()
    yield _check_processors(node.threads)
    yield _check_device(node.device)
    yield _check_ledger(node.ledger_path)
    if node.audit_path is not None:
        yield _check_audit_log(node.audit_path)


def _check_store(store: Path) -> Finding:
    folder = store
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = f"give it to the node's user: chown -R … {folder}"
        return wrong("store", f"{folder} is not writable by this user", remedy)
    free = shutil.disk_usage(folder).free
    if free < LEAST_DISK:
        remedy = "free some space, or set another `store` in the node's file"
        return wrong("store", f"{free / _GIGABYTE:.2f} GB free", remedy)
    return ok("store", f"{free / _GIGABYTE:.0f} GB free")


def _check_memory() -> Finding:
    free = free_memory()
    if free is None:
        return skipped("memory", "this system does not tell")
    if free < LEAST_MEMORY:
        remedy = "a round takes about 1 GB: free some, or use a larger machine"
        return wrong("memory", f"{free / _GIGABYTE:.2f} GB free", remedy)
    return ok("memory", f"{free / _GIGABYTE:.1f} GB free")


def free_memory() -> int | None:
    """Return the bytes that new processes may have; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        for line in lines:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def _check_processors(threads: int) -> Finding:
    cores = _cores()
    if threads > cores:
        detail = f"threads: {threads}, and there are {cores}"
        return wrong("processors", detail, f"write `threads: {cores}`")
    return ok("processors", f"{threads} of {cores} for training")


def _check_device(text: str) -> Finding:
    """Return where models are computed; a card that lies idle is named."""
    try:
        device = find_device(text)
    except UserError as error:
        return wrong("device", error.what, error.remedy)
    others = [name for name in list_devices() if name != "cpu"]
    if device == CPU and others:
        return ok("device", f"cpu; {others[0]} is here and not used: `device: {others[0]}`")
    return ok("device", describe_device(device))


def _cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_ledger(path: Path) -> Finding:
    if not path.exists():
        return ok("privacy ledger", "none yet: nothing was ever spent")
    try:
        problems = Ledger(path).verify()
    except Refused as refusal:
        problems = [refusal.reason]
    if problems:
        remedy = (
            "nothing private will run; see docs/adr/0004-privacy-ledger.md, and bring back the file"
            " from its backup"
        )
        return wrong("privacy ledger", problems[0], remedy)
    return ok("privacy ledger", "whole")


def _check_audit_log(path: Path) -> Finding:
    problems = Journal(path).verify()
    if problems:
        remedy = (
            "every message is refused until it is set aside: keep the file and its .head as they"
            " are, find out who"
        )
        return wrong("audit log", problems[0], remedy)
    return ok("audit log", "whole")
