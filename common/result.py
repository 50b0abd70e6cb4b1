"""The result of a run: what result.json says, typed and frozen, and its only writer.

A key that was never set is not written; a key that a later release added is kept as it was read.
Checkpoints hold the result so far, in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from fedgraft.common.privacy.accounting import Spent

Metrics = dict[str, Any]
P = TypeVar("P", bound="Part")


class Status(StrEnum):
    """How a run is, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Part(BaseModel):
    """A group of keys of a result."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, protected_namespaces=()
    )

    def but(self: P, **changes: Any) -> P:
        """Return a copy with some keys changed."""
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Return what a reader of result.json finds in it."""
        return json.loads(self.to_text())

    def to_text(self, *, indent: int | None = None, allow_nan: bool = True) -> str:
        """Return the text of result.json.

        Raises:
            ValueError: NaN or infinity in it, where they are not allowed.
        """
        content = self.model_dump(by_alias=True, exclude_unset=True)
        return json.dumps(content, indent=indent, allow_nan=allow_nan)


class BackboneFacts(Part):
    """The frozen network; its fingerprint before the run and after it must be the same."""

    name: str
    fingerprint_before: str
    fingerprint_after: str | None = None


class AdapterFacts(Part):
    """What was trained: the method, and how many values in how many tensors travel."""

    method: str
    values: int
    tensors: int


class FinalMetrics(Part):
    """Metrics of the shared model at the end: of all nodes' test records, by node, by group, and by
    label where a record has several.
    """

    global_: Metrics = Field(validation_alias="global", serialization_alias="global")
    nodes: dict[str, Metrics]
    subgroups: dict[str, dict[str, Metrics]] = {}
    labels: dict[str, Metrics] = {}


class Traffic(Part):
    """Bytes from and to the server, and how many nodes they went to."""

    nodes: int
    down: int
    up: int

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of both."""
        return self.but(
            nodes=self.nodes + other.nodes,
            down=self.down + other.down,
            up=self.up + other.up,
        )


class RoundTraffic(Part):
    """Bytes of one round."""

    round: int
    nodes: int
    down: int
    up: int


class Bytes(Part):
    """Sizes in bytes: of what is trained and frozen, and of all that crossed the wire."""

    adapter: int
    full_model: int
    backbone: int
    handout: Traffic
    rounds: tuple[RoundTraffic, ...]
    evaluate: Traffic = Traffic(nodes=0, down=0, up=0)
    validation: Traffic = Traffic(nodes=0, down=0, up=0)
    total: int = 0

    def crossed(self) -> int:
        """Return all bytes that crossed the wire: hand-out, rounds, validation, last evaluation."""
        parts = [self.handout, *self.rounds, self.validation, self.evaluate]
        return sum(part.down + part.up for part in parts)


class ValidatedRound(Part):
    """Metrics of the shared model after a round, on all nodes' validation records together."""

    round: int
    metrics: Metrics


class Validation(Part):
    """What the nodes' validation records said of the shared model, and what was chosen by them.

    Attributes:
        by: the measure that was gone by.
        keep: which round is kept: "last" or "best".
        rounds: those that were measured, in their order.
        best: the best of them; of equals the first.
        ended_early: whether training ended before the plan's last round.
    """

    by: str
    keep: str
    rounds: tuple[ValidatedRound, ...]
    best: int
    ended_early: bool = False

    def kept(self, rounds_done: int) -> int:
        """Return the round whose model is shared: the best, or the last that was finished."""
        return self.best if self.keep == "best" else rounds_done

    def metrics_of(self, number: int) -> Metrics:
        """Return the metrics after a round; empty where it was not measured."""
        for measured in self.rounds:
            if measured.round == number:
                return measured.metrics
        return {}

    def value_of(self, number: int) -> float | None:
        """Return the measure that was gone by after a round; None where it was not measured."""
        return self.metrics_of(number).get(self.by)


class Calibration(Part):
    """The temperature by which the shared model's outputs are divided.

    Attributes:
        loss_before, loss: mean loss on all nodes' validation records without it and with it, nats.
        examples: how many records these are.
    """

    temperature: float
    loss_before: float
    loss: float
    examples: int


class OperatingFacts(Part):
    """From which probability on the second of two classes is answered, chosen by validation
    records.

    Attributes:
        score_bin: the same among the bins of scores, see `score_bins.py`.
        sensitivity, specificity: on all nodes' validation records.
        examples: how many these are.
        positives: how many of them are of the second class: the sensitivity rests on these alone.
    """

    threshold: float
    score_bin: int
    sensitivity: float
    specificity: float
    examples: int
    positives: int | None = None


class EncodingFacts(Part):
    """How updates travelled; at most `relative_error` of one was rounded away, to come later: not
    told in mode central.
    """

    kind: str = "none"
    relative_error: float | None = 0.0


class ClosedFormFacts(Part):
    """How a head was solved from sums.

    Attributes:
        features: that the head reads.
        records: behind the sums; not told under differential privacy, as are the next three.
        ridge: λ, on features of variance 1.
        log_evidence: log marginal likelihood at λ, up to a constant of the targets, nats.
        leverage: how far a record pulls its own prediction, on average.
        noise_deviation: of the noise on each sum of all nodes together, in integer steps.
    """

    features: int
    records: int | None = None
    ridge: float | None = None
    log_evidence: float | None = None
    leverage: float | None = None
    noise_deviation: float | None = None


class Spending(Part):
    """What the run spent at one node under differential privacy.

    Attributes:
        history: rows (noise multiplier, sample rate, steps).
    """

    epsilon: float
    delta: float
    unit: str
    neighbours: str
    accountant: str
    history: tuple[tuple[float, float, int], ...]

    @classmethod
    def of(cls, spent: Spent) -> Spending:
        """Return an accountant's finding as a result has it."""
        return cls.model_validate(spent.to_json())


class Refusal(Part):
    """Why a node was left out of a round; 0: it did not join."""

    node: str
    round: int
    reason: str


class NodeFacts(Part):
    """The weight that a node's updates have."""

    examples: int


class DataFacts(Part):
    """A simulation's data: records by node and class, and hashes of files and records."""

    labels: dict[str, list[int]] = {}
    classes: list[str] = []
    files: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    test_labels: dict[str, list[int]] = {}


class Result(Part):
    """One run: how it ended, what came of it, what it cost.

        result = Result.from_json(json.loads(path.read_text()))
        result.final.global_["accuracy"], result.privacy["hospital-a"].epsilon
        path.write_text(result.but(engine="inprocess").to_text(indent=1))

    Attributes:
        question: the plan's: a member of `common.tasks.TASKS`; it says what is measured.
        confusion: of each node's test records, counts by true class and answer.
        privacy: what was spent, by node; empty without differential privacy.
        nodes: those that took part.
        validation: what validation records said, where they were measured.
        calibration: the temperature that was chosen by them, where one was.
        operating_point: the threshold that was chosen by them, where one was.
        missing: how many nodes were expected and not there when the run began.
        seconds: by phase; `total` over all starts of the run.
        baselines: metrics of what the shared model is compared with, by its name.
        devices: where each node computed, in its own words, such as `cpu, AMX`.
        precision: of the frozen part, as the plan names it.
        engine, ledger, notes, data: what a simulation adds.
    """

    schema_: int = Field(validation_alias="schema", serialization_alias="schema")
    status: Status
    name: str
    plan_hash: str
    seed: int
    versions: dict[str, str]
    backbone: BackboneFacts
    adapter: AdapterFacts
    rounds_done: int
    final: FinalMetrics
    baselines: dict[str, dict[str, Any]]
    bytes: Bytes
    encoding: EncodingFacts = EncodingFacts()
    closed_form: ClosedFormFacts | None = None
    validation: Validation | None = None
    calibration: Calibration | None = None
    operating_point: OperatingFacts | None = None
    question: str = "classification"
    confusion: dict[str, list[list[int]]] = {}
    privacy: dict[str, Spending] = {}
    not_covered_by_epsilon: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    missing: int = 0
    seconds: dict[str, float] = {}
    nodes: dict[str, NodeFacts] = {}
    error: str = ""
    peak_rss_bytes: int = 0
    devices: dict[str, str] = {}
    precision: str = "float32"
    engine: str = ""
    ledger: str = ""
    notes: tuple[str, ...] = ()
    data: DataFacts = DataFacts()

    @property
    def kept_round(self) -> int:
        """The round whose model is shared: the last that was finished, or the best."""
        if self.validation is None:
            return self.rounds_done
        return self.validation.kept(self.rounds_done)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        """Return the result in the content of a result.json. Raises ValueError where it is none."""
        return cls.model_validate(content)


class SeedResults(Part):
    """The runs of one plan with several seeds."""

    schema_: int = Field(1, validation_alias="schema", serialization_alias="schema")
    seeds: tuple[Result, ...]
