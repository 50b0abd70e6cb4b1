"""Which round is kept, and whether training ends: chosen by validation records alone."""

from __future__ import annotations

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.chosen_by_validation import chooses_round, is_better
from fedgraft.common.plan.plan import Plan
from fedgraft.common.result import ValidatedRound, Validation
from fedgraft.server.validation import Measured


def choose(plan: Plan, before: Validation | None, measured: Measured) -> Validation | None:
    """Return what validation records say after one more round; None where nothing was ever
    measured, and nothing is chosen.

    A round is the best where all before it are worse: of equals the first is kept.

    Raises:
        RunFailed: a round is to be chosen, and no node measured what it is chosen by.
    """
    by = plan.train.choose_by
    value = measured.metrics[by]
    if value is None:
        if chooses_round(plan.train):
            raise RunFailed(_explain_nothing(by, measured))
        return before

    now = ValidatedRound(round=measured.round, metrics=measured.metrics)
    if before is None:
        before = Validation(by=by, keep=plan.train.keep, rounds=(), best=now.round)
    best = before.best
    highest = before.value_of(best)
    if highest is None or is_better(value, highest, by):
        best = now.round
    return before.but(
        rounds=(*before.rounds, now),
        best=best,
        ended_early=_is_over(plan, now.round, best),
    )


def _is_over(plan: Plan, number: int, best: int) -> bool:
    """Whether training ends before the plan's last round, since rounds brought nothing better."""
    patience = plan.train.patience
    if patience is None or number == plan.train.rounds:
        return False
    return number - best >= patience


def _explain_nothing(by: str, measured: Measured) -> str:
    """Return why there is nothing to choose by, and what to do."""
    if measured.metrics["examples"]:
        what = f"the {by} over all validation records is undefined"
        return f"round {measured.round}: {what}; write `choose_by: loss` under train"
    what = "no node measured validation records, and by them a round is chosen"
    remedy = "write `validation_fraction: 0.2` under evaluate, or leave out keep and patience"
    reasons = [f"\n  {refusal.node}: {refusal.reason}" for refusal in measured.refused]
    return f"round {measured.round}: {what}; {remedy}{''.join(reasons)}"
