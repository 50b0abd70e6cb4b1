"""A run's result as it grows: what happened is noted here, and nowhere else."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import Tensor

from fedgraft.common.backbones.backbone import backbone_state
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.assembly import backbone_bytes, count_outputs, full_model_bytes
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.result import (
    AdapterFacts,
    BackboneFacts,
    Bytes,
    ClosedFormFacts,
    EncodingFacts,
    FinalMetrics,
    NodeFacts,
    Refusal,
    Result,
    Spending,
    Status,
    Traffic,
    Validation,
)
from fedgraft.common.statistics.temperature import divide_head
from fedgraft.common.wire.layout import Layout
from fedgraft.server.calibration import Calibrated
from fedgraft.server.decision_threshold import ChosenPoint
from fedgraft.server.evaluation import Evaluation
from fedgraft.server.federation import Federation
from fedgraft.server.handout import Roster
from fedgraft.server.papers.model_card import not_covered
from fedgraft.server.papers.stopwatch import Stopwatch
from fedgraft.server.round_replies import Answers
from fedgraft.server.validation import Measured

VERSIONS = ("fedgraft", "torch", "flwr")


class ResultBuilder:
    """Notes what happens in a run, one replaced result at a time.

        builder = ResultBuilder(opening_result(federation, layout))
        builder.note_round(answers)
        builder.result.rounds_done

    Attributes:
        result: the run so far.
        watch: the seconds of its phases.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self.watch = Stopwatch(result.seconds)

    @property
    def ended_early(self) -> bool:
        """Whether training has ended before the plan's last round."""
        return self.result.validation is not None and self.result.validation.ended_early

    # ── while it runs ─────────────────────────────────────────────────────────────────────────────
    def note_handout(self, roster: Roster) -> None:
        """Write down who was handed the backbone, at what cost, and who did not join."""
        handout = roster.take_handout()
        down = sum(handout.down.values())
        up = sum(handout.up.values())
        traffic = Traffic(nodes=len(handout.sent), down=down, up=up)
        refused = []
        for node, reason in handout.refused:
            refused.append(Refusal(node=node, round=0, reason=reason))
        nodes = {}
        for name, examples in sorted(roster.examples.items()):
            nodes[name] = NodeFacts(examples=examples)
        self._note(devices=self.result.devices | handout.devices)
        handed_out = self.result.bytes.handout.plus(traffic)
        # a resumed run may send it again to those that had it: more bytes, and no more nodes
        handed_out = handed_out.but(nodes=min(handed_out.nodes, len(nodes)))
        self._note_bytes(handout=handed_out)
        self._note(nodes=nodes, refused=(*self.result.refused, *refused))

    def note_missing(self, missing: int) -> None:
        """Write down how many of the expected nodes were not there when the run began."""
        if missing:
            self._note(missing=missing)

    def note_round(self, answers: Answers) -> None:
        """Write down a round's bytes and refusals, and what nodes spent of their budgets."""
        encoding = self.result.encoding
        error = encoding.relative_error
        # under the server's own noise it tells of updates that have none
        if error is not None:
            error = max(error, answers.rounding)
        self._note_bytes(rounds=(*self.result.bytes.rounds, answers.traffic))
        self._note_told(answers.spent)
        self._note(
            encoding=EncodingFacts(kind=encoding.kind, relative_error=error),
            refused=(*self.result.refused, *answers.refused),
        )

    def _note_told(self, told: Mapping[str, Spent]) -> None:
        """Write down what nodes say that they spent so far."""
        privacy = dict(self.result.privacy)
        for name, spent in told.items():
            privacy[name] = Spending.of(spent)
        self._note(privacy=privacy)

    def note_solution(self, facts: ClosedFormFacts | None) -> None:
        """Write down how a head was solved from sums; None: none was yet."""
        self._note(closed_form=facts)

    def note_spent(self, spent: Spent | None) -> None:
        """Write down what the server's own noise costs every node so far, where there is any."""
        if spent is not None:
            names = sorted(self.result.nodes)
            self._note(privacy=dict.fromkeys(names, Spending.of(spent)))

    def note_validation(self, measured: Measured, validation: Validation | None) -> None:
        """Write down what validation records said after a round, and what is chosen by it."""
        sent = self.result.bytes.validation.plus(measured.traffic)
        # the same nodes each time
        sent = sent.but(nodes=measured.traffic.nodes)
        self._note_bytes(validation=sent)
        self._note(refused=(*self.result.refused, *measured.refused))
        if validation is not None:
            self._note(validation=validation)

    def note_calibration(self, calibrated: Calibrated) -> None:
        """Write down the temperature that was chosen."""
        sent = self.result.bytes.validation.plus(calibrated.traffic)
        self._note_bytes(validation=sent.but(nodes=calibrated.traffic.nodes))
        refused = (*self.result.refused, *calibrated.refused)
        self._note(calibration=calibrated.facts, refused=refused)

    def note_operating_point(self, chosen: ChosenPoint) -> None:
        """Write down the threshold that was chosen."""
        sent = self.result.bytes.validation.plus(chosen.traffic)
        self._note_bytes(validation=sent.but(nodes=chosen.traffic.nodes))
        refused = (*self.result.refused, *chosen.refused)
        self._note(operating_point=chosen.facts, refused=refused)

    @property
    def threshold(self) -> float | None:
        """The probability from which on the second class is answered; None: the likelier is."""
        point = self.result.operating_point
        return None if point is None else point.threshold

    @property
    def score_bin(self) -> int | None:
        """The same among the bins of scores."""
        point = self.result.operating_point
        return None if point is None else point.score_bin

    def divide(self, adapter: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
        """Return an adapter as it is shared: its head by the temperature that was chosen, if any.

        Args:
            head: dotted name of the head.
        """
        if self.result.calibration is None:
            return dict(adapter)
        return divide_head(adapter, head, self.result.calibration.temperature)

    def after_round(self, number: int) -> Result:
        """Return the result for a round's checkpoint: it counts once that is written."""
        self.watch.stop("rounds")
        return self.result.but(rounds_done=number, seconds=self.watch.with_total())

    def note_evaluation(self, evaluation: Evaluation) -> None:
        """Write down the last evaluation."""
        self._note_bytes(evaluate=evaluation.traffic)
        self._note_told(evaluation.spent)
        refused = (*self.result.refused, *evaluation.refused)
        self._note(final=evaluation.final, refused=refused, confusion=evaluation.confusion)

    # ── at its end ────────────────────────────────────────────────────────────────────────────────
    def complete(self) -> None:
        """Write down that all went well."""
        self._note(status=Status.COMPLETED)

    def fail(self, error: Exception) -> None:
        """Write down that the run ended, and why."""
        self._note(status=Status.FAILED, error=str(error))

    def interrupt(self) -> None:
        """Write down that somebody ended the run."""
        self._note(status=Status.INTERRUPTED)

    def close(self, federation: Federation, last: Result) -> None:
        """Write down what is known once all is over.

        Args:
            last: the result in the last checkpoint, or the first one where there is none.
        """
        self._note(rounds_done=last.rounds_done)
        if self.result.validation is not None:
            # of an unfinished round nothing is chosen
            self._note(validation=last.validation)
        if not federation.plan.privacy.at_node:
            # the server's noise of an unfinished round was never sent; a node's own is spent
            self._note(privacy=last.privacy)
        after = fingerprint_of(backbone_state(federation.backbone))
        self._note(backbone=self.result.backbone.but(fingerprint_after=after))
        self._note_bytes(total=self.result.bytes.crossed())
        self._note(seconds=self.watch.with_total(), peak_rss_bytes=peak_rss())

    def _note(self, **changes: Any) -> None:
        self.result = self.result.but(**changes)

    def _note_bytes(self, **changes: Any) -> None:
        self._note(bytes=self.result.bytes.but(**changes))


def opening_result(federation: Federation, layout: Layout) -> Result:
    """Return the result before anything happened."""
    plan = federation.plan
    backbone = federation.backbone
    versions = {name: version(name) for name in VERSIONS}
    versions["python"] = sys.version.split()[0]
    frozen = BackboneFacts(
        name=backbone.name,
        fingerprint_before=backbone.fingerprint,
        fingerprint_after=None,
    )
    adapter = AdapterFacts(
        method=plan.adapter.method,
        values=layout.values,
        tensors=len(layout.shapes),
    )
    sizes = Bytes(
        adapter=4 * layout.values,
        full_model=full_model_bytes(backbone, count_outputs(plan)),
        backbone=backbone_bytes(backbone),
        handout=Traffic(nodes=0, down=0, up=0),
        rounds=(),
    )
    return Result(
        schema_=1,
        status=Status.RUNNING,
        name=plan.name,
        question=plan.task.question,
        plan_hash=plan_hash(plan),
        seed=plan.seed,
        versions=versions,
        backbone=frozen,
        adapter=adapter,
        rounds_done=0,
        final=FinalMetrics(global_={}, nodes={}),
        baselines={},
        bytes=sizes,
        precision=plan.backbone.precision,
        encoding=EncodingFacts(
            kind=plan.aggregate.encoding,
            relative_error=None if plan.privacy.mode == "central" else 0.0,
        ),
        privacy={},
        not_covered_by_epsilon=tuple(not_covered(plan)),
        refused=(),
        seconds={},
    )


def peak_rss() -> int:
    """Return the largest resident memory of this process so far, bytes.

    Linux counts in KiB, macOS in bytes.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
