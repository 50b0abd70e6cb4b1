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
from fedgraft.client.privacy.dp_sgd import Mechanism, mechanism_for, positions_by_patient
from fedgraft.client.privacy.ledger import DataSet, Ledger, Reservation
from fedgraft.common.errors import Code, Refused
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.plan_file import agreement_hash
from fedgraft.common.privacy.accounting import Row, Spent, bound, merged
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.task import Sums

log = logging.getLogger("fedgraft.budget")


# (plan, round, node's name, purpose) → the randomness of one release
RandomnessSource = Callable[[Agreement, int, str, str], Randomness]


def system_randomness(plan: Agreement, round_: int, node: str, purpose: str) -> Randomness:
    """Return the operating system's own randomness, the only one that protects anybody."""
    return Randomness()


@dataclass(frozen=True)
class Budget:
    """What stands between a plan and this node's data.

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
        records, patients = train.records, None
        if plan.privacy.unit == "patient":
            identities = records.patients(node.data.patient)
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
        return Ledger(self.node.ledger_path)

    def mechanism(self, plan: Agreement) -> Mechanism:
        """The noisy steps of one round of this plan: the plan's, or the policy's where that is
        stricter.

        The sample rate tells the number of units. So the number it is made from is rounded down,
        and `expected` with it; ε is that of the sample rate that is used.

        Raises:
            Refused: policy and plan cannot both be held.
        """
        policy, coarse = self.node.policy, self.node.policy.round_counts
        policy.check_privacy(plan.privacy)
        least = policy.min_noise_multiplier or 0.0
        least = (
            0.0 if plan.privacy.noise_multiplier else least
        )  # the plan's own is refused, not raised
        if plan.privacy.mode == "local":
            return mechanism_for(plan, 1, least_noise=least)
        units = self.examples if self.patients is None else len(self.patients)
        if units < max(coarse, policy.min_examples if self.patients is None else 1):
            raise Refused(
                Code.POLICY,
                f"policy: too few training {plan.privacy.unit}s for differential privacy",
            )
        units -= units % coarse
        if plan.privacy.delta is None or plan.privacy.delta * units >= 1:
            raise Refused(
                Code.POLICY,
                f"δ = {plan.privacy.delta} is not below 1 / {plan.privacy.unit}s here: to publish"
                " one whole record at random would satisfy it; write a smaller privacy.delta",
            )
        found = mechanism_for(plan, units, least_noise=least, beside=self._metrics(plan))
        policy.check_privacy(plan.privacy, noise_multiplier=found.noise_multiplier)
        return found

    def admit(self, plan: Agreement) -> None:
        """Whether the whole plan, all rounds of it, fits what the policy and the ledger leave.
        Nothing is spent.

        Raises:
            Refused: it does not.
        """
        found, wanted = self.mechanism(plan), plan.privacy
        assert wanted.delta is not None  # mechanism() saw to it
        sigma, rate, steps = found.row
        ceilings = self.node.policy.ceilings(wanted)
        whole = [(sigma, rate, steps * plan.train.rounds), *self._metrics(plan)]
        run = bound(whole, wanted.delta, wanted.accountant).epsilon
        if ceilings.run is not None and run > ceilings.run:
            raise Refused(
                Code.POLICY,
                f"policy: all rounds of this plan would take ε above {ceilings.run:g} at δ ="
                f" {wanted.delta:g}",
            )
        begun = self.ledger.book().of(self.data.fingerprint, agreement_hash(plan))
        if (
            ceilings.total is None or begun
        ):  # of a plan that was begun here each round is asked for by itself
            return
        delta = ceilings.delta or wanted.delta
        if (
            bound([*self.ledger.history(self.data), *whole], delta, wanted.accountant).epsilon
            > ceilings.total
        ):
            raise Refused(
                Code.POLICY,
                "policy: with this plan ε of all that was run on this data would pass"
                f" {ceilings.total:g}",
            )

    @contextmanager
    def spending(self, plan: Agreement, round_: int) -> Iterator[Mechanism]:
        """Reserve a round's steps, run the body, settle. If the body fails, all of them stay
        counted.

        Raises:
            Refused: policy or ledger refuse; nothing was spent.
        """
        found = self.mechanism(plan)
        reservation = self._reserve(plan, round_, found.row, "training")
        yield found
        self.ledger.settle(reservation)

    def noised_metrics(
        self, plan: Agreement, round_: int, sums: Sums | None, purpose: str
    ) -> Sums | None:
        """What a policy with `metrics_noise` lets out of a round's metrics, reserved first; None
        where nothing may.

        One example is in one cell of the table of true and predicted classes: its sensitivity is 1.

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

    def _metrics(self, plan: Agreement) -> tuple[Row, ...]:
        """What telling noised metrics costs over all rounds of a plan."""
        if not self.node.policy.noises_metrics(plan.privacy):
            return ()
        assert self.node.policy.metrics_noise is not None
        return (
            (
                self.node.policy.metrics_noise,
                1.0,
                math.ceil(plan.train.rounds / plan.evaluate.every) + 1,
            ),
        )

    def _reserve(self, plan: Agreement, round_: int, row: Row, purpose: str) -> Reservation:
        wanted = plan.privacy
        assert wanted.delta is not None
        sigma, rate, steps = row
        return self.ledger.reserve(
            self.data,
            unit=wanted.unit,
            plan=agreement_hash(plan),
            round_=round_,
            noise_multiplier=sigma,
            sample_rate=rate,
            steps=steps,
            delta=wanted.delta,
            accountant=wanted.accountant,
            ceilings=self.node.policy.ceilings(wanted),
            again=self.node.policy.replays == "count",
            purpose=purpose,
        )

    def spent(self, plan: Agreement) -> Spent:
        """What this plan has spent on this data so far, crashed rounds included: it may be told."""
        wanted = plan.privacy
        assert wanted.delta is not None
        lines = self.ledger.book().of(self.data.fingerprint, agreement_hash(plan))
        history = merged(line.row for line in lines)
        found = bound(history, wanted.delta, wanted.accountant)
        return Spent(found.epsilon, wanted.delta, wanted.unit, found.accountant, history)

    def randomness(self, plan: Agreement, round_: int, purpose: str = "noise") -> Randomness:
        """Return the randomness of one round's noise."""
        return self.source(plan, round_, self.node.name, purpose)
