"""server.yaml: one coordinator's own settings.

Where hospitals connect, where the state lies, what is watched.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from fedgraft.common.errors import UserError
from fedgraft.common.files.yaml_file import read_yaml, validate
from fedgraft.common.plan.section import Problem, Section, Text, check_together
from fedgraft.server.site.certificates import (
    CA_CERTIFICATE,
    MAKE_THEM,
    SERVER_CERTIFICATE,
    SERVER_KEY,
)

LAST_PORT = 65535
FOLDERS = ("certificates", "state", "runs")


class Address(NamedTuple):
    """A host (name, IPv4 or IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def split_address(text: str) -> Address:
    """Return host and port of `host:port` or `[IPv6]:port`. Raises ValueError for other text."""
    host, colon, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    port = 0
    if colon and host and digits.isascii() and digits.isdigit():
        port = int(digits)
    if not 1 <= port <= LAST_PORT:
        raise ValueError("it must be host:port, such as 0.0.0.0:9092, with a port from 1 to 65535")
    return Address(host, port)


def _address(text: str) -> str:
    split_address(text)
    return text


def _loopback(text: str) -> str:
    host = split_address(text).host
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = host == "localhost"
    if not inside:
        raise ValueError(
            "it must stay on this host (127.0.0.1:9091): whoever reaches it can start runs, with no"
            " password"
        )
    return text


AnyAddress = Annotated[str, AfterValidator(_address)]
LoopbackAddress = Annotated[str, AfterValidator(_loopback)]


class Gateway(Section):
    """The door that hospitals come through; it answers the Fleet API and nothing else."""

    enabled: bool = Field(
        default=True, description="false where nginx stands there instead (deploy/nginx)"
    )
    address: AnyAddress = Field(
        default="0.0.0.0:9092", description="where hospitals connect, host:port"
    )
    max_body_mb: Annotated[int, Field(ge=8, le=1024)] = Field(
        default=64, description="largest request in MB; Flower sends tensors in pieces of 5 MB"
    )
    requests_per_second: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=200, description="most requests of one address; beyond it the answer is 503"
    )


class Tracking(Section):
    """Copies of a run's metrics for other tools; off unless set."""

    tensorboard: Text | None = Field(
        default=None, description="folder for TensorBoard's event files"
    )
    mlflow: Text | None = Field(
        default=None, description="MLflow's tracking URI, such as sqlite:///mlflow.db"
    )


class Server(Section):
    """One coordinator's own settings."""

    certificates: Path = Field(description="folder that `fedgraft server certificates` made")
    state: Path = Field(
        description="folder for the database, the list of nodes and the logs; back it up"
    )
    runs: Path = Field(default=Path("runs"), description="folder for the runs' folders")
    gateway: Gateway = Field(default=Gateway(), description="the door that hospitals come through")
    superlink: LoopbackAddress = Field(
        default="127.0.0.1:9091",
        description="Flower's SuperLink; this host only, since it asks nobody who they are",
    )
    health: AnyAddress | None = Field(
        default="127.0.0.1:9094",
        description="gRPC health of the SuperLink, without TLS; null: none",
    )
    metrics: AnyAddress | None = Field(
        default=None, description="Prometheus metrics, such as 127.0.0.1:9464 (default: off)"
    )
    hub: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        default=None,
        description=(
            "URL of the consortium's hub, from which the signed code is run, for nodes with"
            " trusted_entities (default: this release's own code, unsigned)"
        ),
    )
    tracking: Tracking = Field(
        default=Tracking(), description="TensorBoard and MLflow; off unless set"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Server:
        taken: dict[int, str] = {}
        problems = []
        for key, text in self.addresses.items():
            port = split_address(text).port
            if port in taken:
                what = f"port {port} is {taken[port]}'s, too"
                problems.append(Problem(key, what, "give each a port of its own"))
            taken[port] = key
        return check_together(self, problems)

    @property
    def addresses(self) -> dict[str, str]:
        """What listens on this host, by its key."""
        addresses = {
            "superlink": self.superlink,
            "gateway.address": self.gateway.address if self.gateway.enabled else None,
            "health": self.health,
            "metrics": self.metrics,
        }
        return {key: text for key, text in addresses.items() if text is not None}

    # ── files ─────────────────────────────────────────────────────────────────────────────────────
    @property
    def ca(self) -> Path:
        """The certificate that hospitals trust."""
        return self.certificates / CA_CERTIFICATE

    @property
    def certificate(self) -> Path:
        """The server's own certificate."""
        return self.certificates / SERVER_CERTIFICATE

    @property
    def private_key(self) -> Path:
        """The key of the server's certificate."""
        return self.certificates / SERVER_KEY

    @property
    def work(self) -> Path:
        """The neutral folder that Flower works in."""
        return self.state / "flower"

    @property
    def logs(self) -> Path:
        """A log for each process."""
        return self.state / "logs"

    @property
    def secret(self) -> Path:
        """What SuperExec proves itself with."""
        return self.state / "superexec.secret"

    @property
    def nodes(self) -> Path:
        """The list of registered nodes."""
        return self.state / "nodes.json"

    @property
    def submitted(self) -> Path:
        """A line for each run that was submitted."""
        return self.state / "submitted.jsonl"


def load_server(path: str | Path) -> Server:
    """Read and check a server's file; paths in it become absolute.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, the value found and what to
            write instead.
        UserError: the file cannot be read as YAML at all.
    """
    path = Path(path)
    if not path.exists():
        remedy = "copy deploy/server.example.yaml, or name yours: --server FILE"
        raise UserError("there is no such file", where=str(path), remedy=remedy)
    data, lines = read_yaml(path)
    server = validate(Server, data, lines, str(path))
    base = path.absolute().parent
    folders = {}
    for key in FOLDERS:
        folder = base / getattr(server, key).expanduser()
        folders[key] = Path(os.path.normpath(folder))
    return server.model_copy(update=folders)


def check_certificates(server: Server) -> None:
    """Raise `UserError` where a file that TLS needs is missing, or a key is open to others."""
    for path in (server.ca, server.certificate, server.private_key):
        if not path.is_file():
            remedy = MAKE_THEM.replace("FOLDER", str(server.certificates))
            raise UserError("is missing", where=str(path), remedy=remedy)
    key = server.private_key
    if key.stat().st_mode & 0o077:
        what = "can be read by others on this host"
        raise UserError(what, where=str(key), remedy=f"chmod 600 {key}")
