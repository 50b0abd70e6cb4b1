"""node.yaml: where one hospital's data is and what that hospital permits. It is never sent.

    name: node-0
    data: {path: /data/xrays.npz, format: npz, rows: /data/node-0.rows.npz, test_fraction: 0.2}
    store: /var/lib/fedgraft
    policy: {min_examples: 10, approved_backbones: any, approved_plans: recorded, report_metrics:
        true}
    connection: {superlink: fed.example.org:9092, root_certificates: ca.crt, private_key:
        hospital-a.key}
    threads: 1

Relative paths begin at the file's own folder. Nodes of a simulation have no `connection`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedgraft.client.privacy.ledger import Ceilings
from fedgraft.client.readers.bundled import PREFIX
from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.yaml_file import read_yaml, validate
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.section import Count, Section, Text, checked, unique

if TYPE_CHECKING:
    from fedgraft.client.store.activations import ActivationCache

Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Unit = Literal["example", "patient", "node"]
_DP_CLAUSES = ("max_epsilon_run", "max_epsilon_total", "max_delta", "min_noise_multiplier")
Approved = Literal["any"] | tuple[Sha256, ...]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Manifest(Section):
    """What the columns of a manifest are called."""

    path: Text = Field(
        default="path", description="the image's file, from the manifest's own folder"
    )
    label: Text = Field(default="label", description="its label")
    split: Text = Field(
        default="split", description="train, val or test; the column may be missing"
    )


class Data(Section):
    """Where the records are."""

    path: Text = Field(
        description=(
            "an .npz file, a folder of class folders (images or DICOM), a manifest or a table"
            " (.csv, .parquet), or sklearn:<name>"
        )
    )
    format: (
        Literal["npz", "csv", "parquet", "image-folder", "dicom", "manifest", "sklearn"] | None
    ) = Field(
        default=None,
        description="what the path holds (default: told from its name and the plan's task)",
    )
    rows: Text | None = Field(
        default=None,
        description="an .npz with row numbers train, val, test, if not all rows are this node's",
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
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
    max_unreadable: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01,
        description="part of the image files that may be unusable; they are counted and left out",
    )


class Policy(Section):
    """What this hospital permits; a server can not loosen it."""

    min_examples: Count = Field(
        default=10, description="with fewer training examples the node does not take part"
    )
    approved_backbones: Approved = Field(
        default="any",
        description="fingerprints of the backbones that may run here (sha256:…), or any",
    )
    approved_plans: Approved | Literal["recorded"] = Field(
        default="any",
        description=(
            "hashes of the plans that may run here (sha256:…); recorded: those that a person"
            " approved here with `fedgraft node approve`; or any"
        ),
    )
    report_metrics: bool | None = Field(
        default=None,
        description=(
            "whether sums of metrics may leave the node (default: not under differential privacy,"
            " whose ε does not cover them)"
        ),
    )
    metrics_noise: Positive | None = Field(
        default=None,
        description=(
            "under sample-level privacy: counts of right and wrong answers leave the node with"
            " noise of this standard deviation, and the ledger counts them; nothing else of the"
            " metrics does"
        ),
    )

    min_subgroup: Count | None = Field(
        default=10,
        description=(
            "a group of people that the plan names (evaluate.subgroups) is measured by itself where"
            " so many test records are of it, and as many are not or none; null: never. Under"
            " differential privacy: never"
        ),
    )

    dp_required: bool = Field(
        default=False,
        description=(
            "whether only plans run here whose noise this node adds itself: sample or local"
        ),
    )
    max_epsilon_run: Positive | None = Field(
        default=None, description="most ε of one plan, at the plan's δ"
    )
    max_epsilon_total: Positive | None = Field(
        default=None, description="most ε of everything ever run on these records, at max_delta"
    )
    max_delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="largest δ of a plan, well below 1 / examples"
    )
    min_noise_multiplier: Positive | None = Field(
        default=None, description="least standard deviation of the noise over the clipping norm"
    )
    allowed_units: Annotated[tuple[Unit, ...], Field(min_length=1), AfterValidator(unique)] = Field(
        default=("example", "patient", "node"),
        description="whose presence a plan may choose to hide",
    )
    replays: Literal["refuse", "count"] = Field(
        default="refuse",
        description=(
            "a round that was run or begun here before: refuse it, or run it and count it once more"
        ),
    )

    round_counts: Count = Field(
        default=10,
        description="under differential privacy counts are rounded down to a multiple of this",
    )
    seeded_noise: bool = Field(
        default=False,
        description="noise that can be repeated: for simulations only, it protects nobody",
    )

    @model_validator(mode="after")
    def _holds(self) -> Policy:
        found = []
        asked = [key for key in _DP_CLAUSES if getattr(self, key) is not None]
        if asked and not self.dp_required:  # a plan without privacy would go past it
            remedy = "add `dp_required: true`"
            found.append((asked[0], "does not hold for plans without differential privacy", remedy))
        for key in ("max_epsilon_run", "max_epsilon_total"):
            if getattr(self, key) is not None and self.max_delta is None:
                found.append((key, "an ε says nothing without its δ", "add `max_delta: 1e-5`"))
        return checked(self, found)

    def check_privacy(self, privacy: PrivacySection, *, noise_multiplier: float | None = None) -> None:
        """Whether a plan protects this node's data as the policy demands.

        Args:
            noise_multiplier: what was calibrated for this node; None: not known yet.

        Raises:
            Refused: it does not; the reason names the clause.
        """
        if privacy.mode == "none":
            if self.dp_required:
                raise Refused(
                    Code.POLICY, "policy: dp_required, and the plan has no differential privacy"
                )
            return
        if self.dp_required and privacy.mode == "central":
            raise Refused(
                Code.POLICY,
                "policy: dp_required, and in mode central the noise is the server's, not this"
                " node's",
            )
        if privacy.unit not in self.allowed_units:
            raise Refused(
                Code.POLICY,
                f"policy: the unit {privacy.unit} is not among {', '.join(self.allowed_units)}",
            )
        if self.max_delta is not None and (privacy.delta is None or privacy.delta > self.max_delta):
            raise Refused(
                Code.POLICY, f"policy: δ {privacy.delta} is above max_delta {self.max_delta:g}"
            )
        noise = privacy.noise_multiplier if noise_multiplier is None else noise_multiplier
        if (
            self.min_noise_multiplier is not None
            and noise is not None
            and noise < self.min_noise_multiplier
        ):
            raise Refused(
                Code.POLICY,
                f"policy: the noise is below min_noise_multiplier {self.min_noise_multiplier:g}",
            )

    def reports(self, privacy: PrivacySection) -> bool:
        """Whether sums of metrics may leave this node as they are under such a plan."""
        if self.noises_metrics(privacy):
            return False
        return privacy.mode == "none" if self.report_metrics is None else self.report_metrics

    def least_in_group(self, privacy: PrivacySection) -> int | None:
        """Fewest test records of a group whose sums may leave; None: no group's may. ε would not
        cover them.
        """
        return self.min_subgroup if privacy.mode == "none" and self.reports(privacy) else None

    def noises_metrics(self, privacy: PrivacySection) -> bool:
        """Whether counts leave this node with noise: only one example's weight in them is known to
        be 1.
        """
        return (
            self.metrics_noise is not None
            and privacy.mode == "sample"
            and privacy.unit == "example"
        )

    def ceilings(self, privacy: PrivacySection) -> Ceilings:
        """The stricter of plan and policy, for the ledger."""
        run = [most for most in (privacy.target_epsilon, self.max_epsilon_run) if most is not None]
        return Ceilings(
            run=min(run, default=None), total=self.max_epsilon_total, delta=self.max_delta
        )

    def check(
        self,
        *,
        plan_hash: str | None,
        backbone: str | None,
        recorded: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Whether this plan and this backbone may run here; None is not checked.

        Args:
            recorded: gives the hashes of the plans that people approved here; asked only where the
                policy says so.

        Raises:
            Refused: they are not approved.
        """
        for what, found, approved in (
            ("backbone", backbone, self.approved_backbones),
            ("plan", plan_hash, self.approved_plans),
        ):
            if found is None or approved == "any":
                continue
            if found not in (recorded() if approved == "recorded" else approved):
                raise Refused(Code.POLICY, f"policy: {what} {found} is not approved at this node")


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
    """Activations behind the frozen part of a model, kept so that they are computed once. They are
    patient data.
    """

    enabled: bool = Field(
        default=True, description="whether they are kept on disk; the results are the same"
    )
    folder: Path | None = Field(
        default=None, description="where (default: activations in the store)"
    )
    max_bytes: Annotated[int, Field(ge=1, le=2**50)] = Field(
        default=8 * 2**30, description="most bytes on disk; what was used longest ago goes first"
    )


class Node(Section):
    """One hospital's own settings."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="the node's name in results: letters, digits, dots and dashes"
    )
    data: Data = Field(description="where the records are")
    store: Path = Field(description="folder for backbones and plans that were received")
    ledger: Path | None = Field(
        default=None, description="file of the privacy ledger (default: ledger.sqlite in the store)"
    )
    policy: Policy = Field(default=Policy(), description="what this hospital permits")
    cache: Cache = Field(default=Cache(), description="what is computed once and kept")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="CPU threads for training"
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
        wanted = self.connection is not None if self.audit is None else self.audit
        return self.store / "audit.jsonl" if wanted else None

    def check(self, *, plan_hash: str | None, backbone: str | None) -> None:
        """As `Policy.check`, with the plans that people approved at this node."""
        from fedgraft.client.node.approvals import Approvals

        self.policy.check(
            plan_hash=plan_hash, backbone=backbone, recorded=Approvals(self.approvals).plans
        )

    @property
    def activations(self) -> ActivationCache | None:
        """Where activations are kept; None: nowhere."""
        from fedgraft.client.store.activations import ActivationCache

        return (
            ActivationCache(self.activations_path, self.cache.max_bytes)
            if self.cache.enabled
            else None
        )

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
    data, lines = read_yaml(path)
    node = validate(Node, data, lines, str(path))
    base = path.absolute().parent
    places: dict[str, Any] = {"path": _absolute(node.data.path, base)}
    if node.data.rows is not None:
        places["rows"] = _absolute(node.data.rows, base)
    connection = node.connection
    if connection is not None:
        files = ("root_certificates", "private_key", "trusted_entities")
        named = {
            key: getattr(connection, key) for key in files if getattr(connection, key) is not None
        }
        connection = connection.model_copy(
            update={key: _absolute(name, base) for key, name in named.items()}
        )
    folder = None if node.cache.folder is None else Path(_absolute(str(node.cache.folder), base))
    return node.model_copy(
        update={
            "connection": connection,
            "approvals": Path(_absolute(str(node.approvals), base)),
            "data": node.data.model_copy(update=places),
            "store": Path(_absolute(str(node.store), base)),
            "cache": node.cache.model_copy(update={"folder": folder}),
            "ledger": None if node.ledger is None else Path(_absolute(str(node.ledger), base)),
        }
    )


def _absolute(place: str, base: Path) -> str:
    if place.startswith(PREFIX):
        return place
    return os.path.normpath(base / Path(place).expanduser())
