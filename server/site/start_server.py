"""`fedgraft server start`: SuperLink, SuperExec and gateway, as a deployment that can be trusted
needs them.

    hospitals ──TLS──▶ gateway :9092 ──TLS──▶ SuperLink 127.0.0.1:9091 ◀── SuperExec ──▶ the run's
                       ServerApp (Fleet API only)        (Control API: no password)

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
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from fedgraft.common.errors import UserError
from fedgraft.server.site.certificates import expires
from fedgraft.server.site.flower_processes import Flower, environment, program
from fedgraft.server.site.server_file import Address, Server, must_have_certificates, split_address
from fedgraft.server.site.supervisor import Child, Supervisor, say

RENEW_DAYS = 30  # before a certificate ends, every start says so


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
    must_have_certificates(server)
    _must_be_valid(server.certificates / "server.crt")
    prepare(server)
    with _alone(server.state):
        ports = {
            "superlink": server.superlink,
            "gateway.address": server.gateway.address if server.gateway.enabled else None,
            "health": server.health,
            "metrics": server.metrics,
        }
        for key, text in ports.items():
            if text is not None:
                _must_be_free(split_address(text), f"{file}: {key}")
        supervisor = Supervisor(
            children(server, file),
            folder=server.work,
            logs=server.logs,
            environment=environment(server.work / "home") | _hub(server),
        )
        if server.metrics is not None:
            from fedgraft.server.site.monitoring import publish

            publish(split_address(server.metrics), server, supervisor)
            say(f"metrics on http://{server.metrics}/metrics")
        door = (
            f"hospitals connect to {server.gateway.address}"
            if server.gateway.enabled
            else "no gateway: see nginx"
        )
        supervisor.run(f"ready: {door}")


def prepare(server: Server) -> Flower:
    """Make the state's folders, the secret and Flower's connection, where they are not there
    yet.
    """
    for folder in (server.state, server.logs, server.work, server.runs):
        try:
            folder.mkdir(
                parents=True, exist_ok=True, mode=0o700 if folder != server.runs else 0o777
            )
        except OSError as error:
            what = f"cannot be made: {error.strerror}"
            raise UserError(
                what, where=str(folder), remedy="name a folder you may write to"
            ) from None
    if not server.secret.exists():
        with os.fdopen(
            os.open(server.secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as file:
            file.write(secrets.token_hex(32))
    return connect(server)


def connect(server: Server) -> Flower:
    """`flwr` against this server's own SuperLink."""
    return Flower.connect(server.work, server.superlink, server.ca)


def children(server: Server, file: Path) -> list[Child]:
    """The processes, in the order in which they need each other."""
    upstream = split_address(server.superlink)
    superlink = [
        program("flower-superlink"),
        *("--host", upstream.host, "--port", str(upstream.port)),
        *("--ssl-ca-certfile", str(server.ca)),
        *("--ssl-certfile", str(server.certificates / "server.crt")),
        *("--ssl-keyfile", str(server.certificates / "server.key")),
        "--enable-supernode-auth",
        *("--database", str(server.state / "superlink.db")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(server.secret)),
        "--disable-runtime-dependency-installation",
        *(("--health-server-address", server.health) if server.health else ()),
    ]
    superexec = [
        program("flower-superexec"),
        *("--runtime-api-address", server.superlink),
        *("--root-certificates", str(server.ca)),
        *("--superexec-auth-secret-file", str(server.secret)),
    ]
    found = [Child("superlink", superlink, upstream), Child("superexec", superexec)]
    if server.gateway.enabled:
        gateway = [sys.executable, "-m", "fedgraft.server.site.gateway", str(file.absolute())]
        found.append(Child("gateway", gateway, _reachable(split_address(server.gateway.address))))
    return found


def _hub(server: Server) -> dict[str, str]:
    """Where Flower asks for code that is run by its name."""
    return {} if server.hub is None else {"FLWR_SUPERGRID_API_URL": server.hub.rstrip("/")}


def _reachable(address: Address) -> Address:
    """Where this host itself reaches what listens there."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Address(here.get(address.host, address.host), address.port)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Two SuperLinks on one database would each lose the other's messages."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "stop it first, or give this one a `state` of its own"
            raise UserError(
                "another `fedgraft server start` is using it", where=str(state), remedy=remedy
            ) from None
        yield


def _must_be_free(address: Address, where: str) -> None:
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        remedy = (
            f"choose a free address; `ss -ltnp 'sport = :{address.port}'` shows who has this one"
        )
        raise UserError(
            f"cannot listen on {address}: {error.strerror}", where=where, remedy=remedy
        ) from None


def _must_be_valid(certificate: Path) -> None:
    left = expires(certificate) - datetime.datetime.now(datetime.UTC)
    if left.total_seconds() <= 0:
        remedy = (
            "move server.crt and server.key away, then: fedgraft server certificates FOLDER"
            " --host …"
        )
        raise UserError(f"is over since {-left.days} days", where=str(certificate), remedy=remedy)
    if left.days < RENEW_DAYS:
        say(f"{certificate} is valid for {left.days} more days: renew it (RUNBOOK: keys)")
