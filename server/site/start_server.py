"""`fedgraft server start`: SuperLink, SuperExec and gateway, as a federation that can be trusted
needs them.

    hospitals ──TLS──▶ gateway :9092 ──TLS──▶ SuperLink 127.0.0.1:9091 ◀── SuperExec ──▶ the run's
                       (Fleet API only)       (Control API: no password)                 ServerApp

The SuperLink's Control API asks nobody who they are, so it never listens beyond this host.
`--isolation process` with a secret keeps a stranger from taking a run's task, and lets a run
outlive a crash of the SuperLink.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from fedgraft.common.errors import UserError
from fedgraft.server.site import serverapp
from fedgraft.server.site.certificates import expires
from fedgraft.server.site.flower_processes import Flower, environment, program
from fedgraft.server.site.server_file import Address, Server, check_certificates, split_address
from fedgraft.server.site.supervisor import Child, Supervisor, say

# before a certificate ends, every start says so
RENEW_DAYS = 30
# glibc keeps what its threads freed, hundreds of megabytes at the SuperLink in a hand-out: memory
# of a megabyte and more goes back to the system at once, and threads share the rest
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "2"}


def start(server: Server, file: Path) -> None:
    """Run the coordinator's processes until SIGTERM or Ctrl-C.

    Args:
        server: what `file` says.
        file: server.yaml, for the gateway's own process.

    Raises:
        UserError: certificates that are missing or over, a port that is taken, a state that another
            server uses.
        RunFailed: a process that does not come up.
    """
    check_certificates(server)
    _check_validity(server.certificate)
    prepare(server)
    with _alone(server.state):
        for key, text in server.addresses.items():
            _check_free(split_address(text), f"{file}: {key}")
        supervisor = Supervisor(
            children(server, file),
            folder=server.work,
            logs=server.logs,
            environment=_environment(server),
        )
        if server.metrics is not None:
            from fedgraft.server.site.monitoring import publish

            publish(split_address(server.metrics), server, supervisor)
            say(f"metrics on http://{server.metrics}/metrics")
        door = "no gateway: see nginx"
        if server.gateway.enabled:
            door = f"hospitals connect to {server.gateway.address}"
        supervisor.run(f"ready: {door}")


def prepare(server: Server) -> Flower:
    """Make the state's folders, the secret, our program of the ServerApp and Flower's connection.

    Raises:
        UserError: a folder that cannot be made.
    """
    modes = {server.state: 0o700, server.logs: 0o700, server.work: 0o700, server.runs: 0o777}
    for folder, mode in modes.items():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            what = f"cannot be made: {error.strerror}"
            remedy = "name a folder you may write to"
            raise UserError(what, where=str(folder), remedy=remedy) from None
    if not server.secret.exists():
        descriptor = os.open(server.secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    _write_serverapp(server.work / "programs")
    return connect(server)


def connect(server: Server) -> Flower:
    """Return `flwr` against this server's own SuperLink."""
    return Flower.connect(server.work, server.superlink, server.ca)


# ── the processes ─────────────────────────────────────────────────────────────────────────────────
def children(server: Server, file: Path) -> list[Child]:
    """Return the processes, in the order in which they need each other."""
    upstream = split_address(server.superlink)
    processes = [
        Child("superlink", _superlink(server), upstream),
        Child("superexec", _superexec(server)),
    ]
    if server.gateway.enabled:
        command = [sys.executable, "-m", "fedgraft.server.site.gateway", str(file.absolute())]
        door = split_address(server.gateway.address)
        processes.append(Child("gateway", command, _reachable(door)))
    return processes


def _superlink(server: Server) -> list[str]:
    address = split_address(server.superlink)
    options = {
        "--host": address.host,
        "--port": str(address.port),
        "--ssl-ca-certfile": str(server.ca),
        "--ssl-certfile": str(server.certificate),
        "--ssl-keyfile": str(server.private_key),
        "--database": str(server.state / "superlink.db"),
        "--isolation": "process",
        "--superexec-auth-secret-file": str(server.secret),
    }
    if server.health:
        options["--health-server-address"] = server.health
    command = [program("flower-superlink")]
    for name, value in options.items():
        command += [name, value]
    return [*command, "--enable-supernode-auth", "--disable-runtime-dependency-installation"]


def _superexec(server: Server) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fedgraft.server.site.superexec",
        "--runtime-api-address",
        server.superlink,
        "--root-certificates",
        str(server.ca),
        "--superexec-auth-secret-file",
        str(server.secret),
    ]


def _environment(server: Server) -> dict[str, str]:
    """Return what the processes see: our programs before Flower's of the same name, and that memory
    is given back.
    """
    seen = GIVES_BACK | environment(server.work / "home") | _hub(server)
    seen["PATH"] = os.pathsep.join([str(server.work / "programs"), seen["PATH"]])
    return seen


def _write_serverapp(programs: Path) -> None:
    """Write a program of Flower's name that runs our `serverapp.py`, by its path: see there."""
    programs.mkdir(exist_ok=True)
    command = [sys.executable, "-P", str(Path(serverapp.__file__).resolve())]
    path = programs / "flwr-serverapp"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def _hub(server: Server) -> dict[str, str]:
    """Return where Flower asks for code that is run by its name."""
    if server.hub is None:
        return {}
    return {"FLWR_SUPERGRID_API_URL": server.hub.rstrip("/")}


def _reachable(address: Address) -> Address:
    """Return where this host itself reaches what listens there."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Address(here.get(address.host, address.host), address.port)


# ── before anything listens ───────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keep others out: two SuperLinks on one database would each lose the other's messages."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another `fedgraft server start` is using it"
            remedy = "stop it first, or give this one a `state` of its own"
            raise UserError(what, where=str(state), remedy=remedy) from None
        yield


def _check_free(address: Address, where: str) -> None:
    """Raise `UserError` for an address where something listens already."""
    try:
        kind = socket.SOCK_STREAM
        endpoints = socket.getaddrinfo(*address, type=kind, flags=socket.AI_PASSIVE)
        family, *_, endpoint = endpoints[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(endpoint)
    except OSError as error:
        what = f"cannot listen on {address}: {error.strerror}"
        remedy = (
            f"choose a free address; `ss -ltnp 'sport = :{address.port}'` shows who has this one"
        )
        raise UserError(what, where=where, remedy=remedy) from None


def _check_validity(certificate: Path) -> None:
    """Raise `UserError` for a certificate that is over; say so where it soon is."""
    remaining = expires(certificate) - datetime.datetime.now(datetime.UTC)
    days = remaining.days
    if remaining.total_seconds() <= 0:
        remedy = (
            "move server.crt and server.key away, then: fedgraft server certificates FOLDER"
            " --host …"
        )
        raise UserError(f"is over since {-days} days", where=str(certificate), remedy=remedy)
    if days < RENEW_DAYS:
        say(f"{certificate} is valid for {days} more days: renew it (RUNBOOK: keys)")
