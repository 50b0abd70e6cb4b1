"""A node's privacy budget in one round: policy → noise → reservation → (training) → settlement →
what is told.

The server's plan proposes; this node's policy and ledger decide, and they decide before the first
gradient.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import Node
from fedgraft.client.privacy.ledger import Ledger, Reservation
from fedgraft.client.privacy.ledger_holds import HeldRounds
from fedgraft.client.privacy.ledger_records import DataSet
from fedgraft.client.privacy.mechanism import Mechanism, calibrate
from fedgraft.client.privacy.patients import positions_by_patient
from fedgraft.client.privacy.spending import Ceilings, Spending, WholeRun
from fedgraft.common.errors import Code, Refused
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.phases import PURPOSES, purpose_of, rounds_for, rounds_measured
from fedgraft.common.plan.plan_file import agreement_hash
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.privacy.accounting import Spent, bound
from fedgraft.common.privacy.history import Row, merge_rows
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.task import Sums

log = logging.getLogger("fedgraft.budget")
HOUR = 3600.0  # seconds

# (plan, round, node's name, purpose) → the randomness of one release
RandomnessSource = Callable[[Agreement, int, str, str], Randomness]


def system_randomness(plan: Agreement, round_: int, node: str, purpose: str) -> Randomness:
    """Return the operating system's own randomness, the only one that protects anybody."""
    return Randomness()


@dataclass(frozen=True)
class Budget:
    """What stands between a plan and this node's data.

        budget = Budget.open(node, plan, train)
        budget.admit(plan)
        with budget.spending(plan, round_=1) as mechanism:
            …  # train with its noise

    Attributes:
        patients: positions of each patient's examples in the training split, where the unit is the
            patient.
        source: of the noise; only a simulation's engine gives another than the system's.
    """

    node: Node
    data: DataSet = field(repr=False)
    examples: int
    patients: list[np.ndarray] | None = field(default=None, repr=False)
    source: RandomnessSource = field(default=system_randomness, repr=False)

    @classmethod
    def open(
        cls,
        node: Node,
        plan: Agreement,
        train: Split,
        *,
        randomness: RandomnessSource = system_randomness,
    ) -> Budget:
        """Return the budget over the records that the training split has.

        Args:
            randomness: of the noise; only a simulation's engine gives another than the system's.

        Raises:
            Refused: the unit is the patient, and the data does not say whose each record is.
            UserError: it does not say so for every record.
        """
        records = train.records
        patients = None
        if plan.privacy.unit == "patient":
            identities = records.owners
            if identities is None:
                raise Refused(
                    Code.SETUP,
                    "privacy.unit: patient, and this node's data has no patient for each record; "
                    "name its column as data.patient in the node's file, or plan for unit: example",
                )
            patients = positions_by_patient(identities, train.rows, records.source.where)
        return cls(node, DataSet.of(records), len(train), patients, randomness)

    @property
    def ledger(self) -> Ledger:
        """This node's ledger."""
        return Ledger(self.node.ledger_path, durable=self.is_durable)

    @property
    def is_durable(self) -> bool:
        """Whether what is written here must outlast a power cut: not where the noise can be drawn
        again, which protects nobody.
        """
        return self.source is system_randomness

    # ── before training ───────────────────────────────────────────────────────────────────────────
    def mechanism(self, plan: Agreement, round_: int = 1) -> Mechanism:
        """Return the noisy steps of a round: the plan's, or the policy's where that is stricter.

        The sample rate tells the number of units. So the number it is made from is rounded down,
        and `expected` with it; ε is that of the sample rate that is used.

        Raises:
            Refused: policy and plan cannot both be held.
        """
        policy = self.node.policy
        privacy = plan.privacy
        policy.check_privacy(privacy)
        least_noise = policy.min_noise_multiplier or 0.0
        # the plan's own noise is refused, not raised
        if privacy.noise_multiplier:
            least_noise = 0.0
        if privacy.mode == "local":
            return calibrate(plan, 1, least_noise=least_noise)

        units = self._units(privacy)
        beside = self._metrics_rows(plan)
        purpose = purpose_of(plan.train, round_)
        mechanism = calibrate(plan, units, purpose=purpose, least_noise=least_noise, beside=beside)
        policy.check_privacy(privacy, noise_multiplier=mechanism.noise_multiplier)
        return mechanism

    def _units(self, privacy: PrivacySection) -> int:
        """Return how many units there are, rounded down. Raises `Refused` for too few."""
        policy = self.node.policy
        if self.patients is None:
            units = self.examples
            least = max(policy.round_counts, policy.min_examples)
        else:
            units = len(self.patients)
            least = policy.round_counts
        if units < least:
            what = f"too few training {privacy.unit}s for differential privacy"
            raise Refused(Code.POLICY, f"policy: {what}")
        units -= units % policy.round_counts
        if privacy.delta is None or privacy.delta * units >= 1:
            raise Refused(
                Code.POLICY,
                f"δ = {privacy.delta} is not below 1 / {privacy.unit}s here: to publish one whole"
                " record at random would satisfy it; write a smaller privacy.delta",
            )
        return units

    def check(self, plan: Agreement) -> None:
        """Raise `Refused` unless the whole plan, all rounds of it, fits what the policy and the
        ledger leave. Nothing is written.
        """
        self.ledger.check_run(self.data, self._whole(plan), self._ceilings(plan))

    def admit(self, plan: Agreement) -> None:
        """Hold ε of the whole plan for its run, where the policy has a ceiling on the total.

        Raises:
            Refused: it does not fit what the policy and the ledger leave; nothing was spent.
        """
        ceilings = self._ceilings(plan)
        run = self._whole(plan)
        if ceilings.total is None:
            self.ledger.check_run(self.data, run, ceilings)
            return
        seconds = self.node.policy.hold_hours * HOUR
        self.ledger.hold(self.data, run, ceilings, seconds=seconds)

    def _ceilings(self, plan: Agreement) -> Ceilings:
        return self.node.policy.ceilings(plan.privacy)

    def _whole(self, plan: Agreement) -> WholeRun:
        """Return all that a plan would release here."""
        privacy = plan.privacy
        held = []
        for purpose in PURPOSES:
            rounds = rounds_for(plan.train, purpose)
            if rounds:
                row = self.mechanism(plan, rounds[0]).row
                held.append(HeldRounds("training", rounds, row))
        row = self._metrics_row(plan)
        if row is not None:
            measured = rounds_measured(plan.train, plan.evaluate.every)
            if measured:
                held.append(HeldRounds("metrics", measured, row))
            held.append(HeldRounds("evaluation", (plan.train.rounds,), row))
        return WholeRun(
            unit=privacy.unit,
            plan=agreement_hash(plan),
            held=tuple(held),
            delta=_delta(privacy),
            accountant=privacy.accountant,
        )

    # ── spending ──────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def spending(self, plan: Agreement, round_: int) -> Iterator[Mechanism]:
        """Reserve a round's steps, run the body, settle.

        If the body fails, all of them stay counted.

        Raises:
            Refused: policy or ledger refuse; nothing was spent.
        """
        mechanism = self.mechanism(plan, round_)
        reservation = self._reserve(plan, round_, mechanism.row, "training")
        yield mechanism
        self.ledger.settle(reservation)

    def noised_metrics(
        self, plan: Agreement, round_: int, sums: Sums | None, purpose: str
    ) -> Sums | None:
        """Return what a policy with `metrics_noise` lets out of a round's metrics, reserved first.

        None where nothing may. One example is in one cell of the counts: its sensitivity is 1.

        Args:
            purpose: "metrics" of the model as received, or "evaluation" of the last one.
        """
        deviation = self.node.policy.metrics_noise
        if sums is None or deviation is None or not self.node.policy.noises_metrics(plan.privacy):
            return None
        try:
            reservation = self._reserve(plan, round_, (deviation, 1.0, 1), purpose)
        except Refused as refusal:
            log.warning("round %d: no metrics are told; %s", round_, refusal)
            return None
        normal = self.randomness(plan, round_, purpose).normal(sums.cells)
        self.ledger.settle(reservation)
        return sums.only_counts(deviation * normal)

    def _metrics_rows(self, plan: Agreement) -> tuple[Row, ...]:
        """Return what telling noised metrics costs over all rounds of a plan."""
        row = self._metrics_row(plan)
        if row is None:
            return ()
        times = math.ceil(plan.train.rounds / plan.evaluate.every) + 1
        return ((row[0], row[1], times),)

    def _metrics_row(self, plan: Agreement) -> Row | None:
        """Return what telling noised metrics costs once; None: they are not told."""
        deviation = self.node.policy.metrics_noise
        if deviation is None or not self.node.policy.noises_metrics(plan.privacy):
            return None
        return (deviation, 1.0, 1)

    def _reserve(self, plan: Agreement, round_: int, row: Row, purpose: str) -> Reservation:
        privacy = plan.privacy
        spending = Spending(
            unit=privacy.unit,
            plan=agreement_hash(plan),
            round=round_,
            row=row,
            delta=_delta(privacy),
            accountant=privacy.accountant,
            purpose=purpose,
            trusted=tuple(f"{code.name} {code.hash}" for code in plan.extensions),
        )
        policy = self.node.policy
        return self.ledger.reserve(
            self.data,
            spending,
            ceilings=self._ceilings(plan),
            again=policy.replays == "count",
        )

    def spent(self, plan: Agreement) -> Spent:
        """Return what this plan has spent on this data so far, crashed rounds included.

        It may be told.
        """
        privacy = plan.privacy
        delta = _delta(privacy)
        lines = self.ledger.book().lines_on(self.data.fingerprint, agreement_hash(plan))
        history = merge_rows(line.row for line in lines)
        total = bound(history, delta, privacy.accountant)
        return Spent(total.epsilon, delta, privacy.unit, total.accountant, history)

    def randomness(self, plan: Agreement, round_: int, purpose: str = "noise") -> Randomness:
        """Return what a round's noise and samples are drawn from."""
        return self.source(plan, round_, self.node.name, purpose)


def _delta(privacy: PrivacySection) -> float:
    """Return the plan's δ. Raises `Refused` without one, which the plan's own door does not let in
    where the mode is not none.
    """
    if privacy.delta is None:
        raise Refused(Code.POLICY, "policy: the plan's differential privacy has no δ")
    return privacy.delta
