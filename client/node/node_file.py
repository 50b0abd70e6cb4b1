"""node.yaml: where one hospital's data is and what that hospital permits. It is never sent.

    name: node-0
    data: {path: /data/xrays.npz, format: npz, rows: /data/node-0.rows.npz, test_fraction: 0.2}
    store: /var/lib/fedgraft
    policy: {min_examples: 10, approved_backbones: any, approved_plans: recorded}
    connection:
      superlink: fed.example.org:9092
      root_certificates: ca.crt
      private_key: hospital-a.key
    threads: 1

Relative paths begin at the file's own folder. Nodes of a simulation have no `connection`. Reading
it imports neither torch nor Flower: a node gives paths and numbers, and whoever works with what
lies there opens it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from fedgraft.client.node.policy import Policy
from fedgraft.client.readers.reader_table import PREFIX, READERS
from fedgraft.common.files.yaml_file import Lines, read_yaml, validate
from fedgraft.common.plan.reading_section import ReadingSection
from fedgraft.common.plan.section import Section, Text

if TYPE_CHECKING:
    Format = str
else:
    # pydantic tells the formats where another is written
    Format = Literal[READERS.names]

AnySection = TypeVar("AnySection", bound=Section)
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
Threads = Annotated[int, Field(ge=1, le=1024)]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Manifest(Section):
    """What the columns of a manifest are called."""

    path: Text = Field(
        default="path", description="the image's file, from the manifest's own folder"
    )
    label: Text = Field(default="label", description="its label")
    mask: Text = Field(default="mask", description="its mask's file, where a plan asks for masks")
    split: Text = Field(
        default="split", description="train, val or test; the column may be missing"
    )


class Place(Section):
    """Where the records are."""

    path: Text = Field(
        description=(
            "an .npz file, a folder of class folders (images or DICOM), a manifest or a table"
            " (.csv, .parquet), or sklearn:<name>"
        )
    )
    format: Format | None = Field(
        default=None,
        description="what the path holds (default: told from its name and the plan's task)",
    )
    rows: Text | None = Field(
        default=None,
        description="an .npz with row numbers train, val, test, if not all rows are this node's",
    )
    test_fraction: Fraction = Field(
        default=0.2,
        description="part of each class kept for tests, where the data have no test split",
    )
    patient: Text = Field(
        default="patient",
        description=(
            "the column or array (.npz) that says whose each record is; DICOM files say it"
            " themselves"
        ),
    )
    columns: Manifest = Field(
        default=Manifest(), description="manifest only: what its columns are called"
    )
    max_unreadable: Fraction = Field(
        default=0.01,
        description="part of the image files that may be unusable; they are counted and left out",
    )

    @property
    def rows_path(self) -> Path | None:
        """Where the row numbers are; None: all rows are this node's."""
        return None if self.rows is None else Path(self.rows)


class Data(ReadingSection, Place):
    """Where the records are, and what was decided about them."""

    @property
    def reading(self) -> ReadingSection:
        """What was decided about the records, without where they are."""
        decided = {key: getattr(self, key) for key in ReadingSection.model_fields}
        return ReadingSection(**decided)


class Connection(Section):
    """How this node reaches the coordinator: outbound only, TLS always."""

    superlink: Address = Field(
        description="host:port of the coordinator's SuperLink, as its certificate names it"
    )
    root_certificates: Text = Field(
        description="the federation's CA certificate, PEM; it comes from the coordinator"
    )
    private_key: Text = Field(
        description="this node's own key (EC, OpenSSH format), readable by its user only"
    )
    health: Address | None = Field(
        default=None,
        description="host:port of the SuperLink's gRPC health service, if it is open to this node",
    )
    port: Port | None = Field(
        default=None,
        description="loopback port between the node's own processes (default: a free one)",
    )
    trusted_entities: Text | None = Field(
        default=None,
        description="YAML file of Ed25519 keys that must have signed the code, as a second layer",
    )


class Cache(Section):
    """Activations behind the frozen part of a model, kept so that they are computed once.

    They are patient data.
    """

    enabled: bool = Field(
        default=True, description="whether they are kept on disk; the results are the same"
    )
    folder: Path | None = Field(
        default=None, description="where (default: activations in the store)"
    )
    max_bytes: Bytes = Field(
        default=8 * 2**30, description="most bytes on disk; what was used longest ago goes first"
    )


class Node(Section):
    """One hospital's own settings.

    node = load_node("node.yaml")
    node.policy.min_examples
    node.ledger_path
    """

    name: NodeName = Field(
        description="the node's name in results: letters, digits, dots and dashes"
    )
    data: Data = Field(description="where the records are")
    store: Path = Field(description="folder for backbones and plans that were received")
    ledger: Path | None = Field(
        default=None, description="file of the privacy ledger (default: ledger.sqlite in the store)"
    )
    policy: Policy = Field(default=Policy(), description="what this hospital permits")
    cache: Cache = Field(default=Cache(), description="what is computed once and kept")
    threads: Threads = Field(default=1, description="CPU threads for training")
    slow_bfloat16: bool = Field(
        default=False,
        description=(
            "whether a plan in bfloat16 is in order where this machine is slower at it than at"
            " float32; `fedgraft node check` times it"
        ),
    )
    connection: Connection | None = Field(
        default=None,
        description="how this node reaches the coordinator (none: a simulation's node)",
    )
    approvals: Path = Field(
        default=Path("approvals"),
        description=(
            "the administrator's folder of approved code and plans, which the node's user can only"
            " read"
        ),
    )
    store_limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="most megabytes of backbones in the store; the longest unused goes first",
    )
    audit: bool | None = Field(
        default=None,
        description=(
            "whether each message is written to audit.jsonl in the store (default: if connected)"
        ),
    )
    metrics: Address | None = Field(
        default=None,
        description="host:port where Prometheus may fetch this node's metrics (default: nowhere)",
    )

    @property
    def ledger_path(self) -> Path:
        """Where the privacy ledger is."""
        return self.ledger or self.store / "ledger.sqlite"

    @property
    def audit_path(self) -> Path | None:
        """Where each message is written down; None: nowhere."""
        audited = self.audit
        if audited is None:
            audited = self.connection is not None
        return self.store / "audit.jsonl" if audited else None

    @property
    def activations_path(self) -> Path:
        """The folder of kept activations, whether or not any are kept."""
        return self.cache.folder or self.store / "activations"


def load_node(path: str | Path) -> Node:
    """Read and check a node's file; paths in it become absolute.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, the value found and what to
            write instead.
        UserError: the file cannot be read as YAML at all.
    """
    path = Path(path)
    content, lines = read_yaml(path)
    return check_node_file(content, lines, path)


def check_node_file(content: dict[str, Any], lines: Lines, path: Path) -> Node:
    """Return the node that a file's content says. Raise `UserErrors` as `load_node`."""
    node = validate(Node, content, lines, str(path))
    return _with_absolute_paths(node, path.absolute().parent)


def _with_absolute_paths(node: Node, base: Path) -> Node:
    sections: dict[str, Any] = {
        "data": _beginning_at(base, node.data, "path", "rows"),
        "cache": _beginning_at(base, node.cache, "folder"),
    }
    if node.connection is not None:
        files = ("root_certificates", "private_key", "trusted_entities")
        sections["connection"] = _beginning_at(base, node.connection, *files)
    node = node.model_copy(update=sections)
    return _beginning_at(base, node, "store", "ledger", "approvals")


def _beginning_at(base: Path, section: AnySection, *keys: str) -> AnySection:
    """Return the section with the paths of these keys made absolute, each of its own type."""
    paths = {}
    for key in keys:
        path = getattr(section, key)
        if path is not None:
            paths[key] = type(path)(_absolute(str(path), base))
    return section.model_copy(update=paths)


def _absolute(path: str, base: Path) -> str:
    if path.startswith(PREFIX):
        return path
    return os.path.normpath(base / Path(path).expanduser())
