"""One federation as one script: the ServerApp.

    plan → backbone → hand-out → rounds (cohort, training, checks, aggregation, validation) → last
    evaluation → shared model

The run config names the plan and the folder (absolute paths on the coordinator's machine); nothing
else is read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.model.assembly import check_scales, keep_adapters, plan_backbone, plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.shared_model import Beside, save_shared_model
from fedgraft.common.plan.chosen_by_validation import calibrates, chooses_point, is_validated_after
from fedgraft.common.plan.phases import has_depth_head, purpose_of
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.result import Result
from fedgraft.common.wire.layout import Layout
from fedgraft.server.aggregation.aggregation import begin_aggregation
from fedgraft.server.calibration import calibrate
from fedgraft.server.choice import choose
from fedgraft.server.decision_threshold import choose_operating_point
from fedgraft.server.evaluation import evaluate_everywhere
from fedgraft.server.exchange import Reader, Replies, exchange
from fedgraft.server.federation import Federation
from fedgraft.server.handout import Roster, gather
from fedgraft.server.messages import round_content
from fedgraft.server.papers.model_card import model_card
from fedgraft.server.papers.result_builder import ResultBuilder, opening_result
from fedgraft.server.papers.run_folder import Checkpoint, RunFolder
from fedgraft.server.round_replies import UpdateIntake
from fedgraft.server.rounds import Round
from fedgraft.server.sums.sum_intake import SumIntake
from fedgraft.server.validation import measure_validation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run config and federate: Flower's entry."""
    run_from_config(grid, context)


def run_from_config(
    grid: Grid, context: Context, *, dealt: int = 0, seeded_noise: bool = False
) -> None:
    """Read the run config and federate. An error is written to the run's folder and raised.

    Args:
        dealt: how many nodes have records, where that is known: a simulation's.
        seeded_noise: central noise that can be repeated: for simulations only.
    """
    config = context.run_config
    if not config.get("plan") or not config.get("out"):
        remedy = (
            'flwr run . --run-config \'plan="digits" out="/absolute/folder"'
            ' nodes="/absolute/nodes"\''
        )
        raise UserError("the run config names no plan or no out", where="run-config", remedy=remedy)
    path = find_plan(str(config["plan"]))
    plan = load_plan(path)
    weights = str(config.get("weights", "")) or None
    backbone = plan_backbone(plan, path.parent, weights=weights)
    federation = Federation(
        plan,
        backbone,
        expected=int(config.get("nodes-expected", 0)) or dealt or plan.aggregate.min_nodes,
        seeded_noise=seeded_noise,
    )

    # targets that match nothing, and columns that nothing scales, are told before a folder is made
    if not config.get("resume"):
        check_scales(plan)
    plan_model(backbone, plan)
    out = Path(str(config["out"]))
    if config.get("resume"):
        federate(grid, federation, RunFolder.open_existing(out, plan), resume=True)
    else:
        federate(grid, federation, RunFolder.open_new(out, plan))


def federate(
    grid: Grid, federation: Federation, folder: RunFolder, *, resume: bool = False
) -> Result:
    """Run a plan over the nodes of a grid and leave the run's folder behind.

    Returns:
        What result.json says.

    Raises:
        RunFailed: too few nodes joined, or too few valid updates in a round. What was finished is
            kept.
    """
    plan = federation.plan

    # ── the shared model before any training, or after the last finished round ────────────────────
    model = plan_model(federation.backbone, plan, 1)
    state = model.adapter_state()
    layout = Layout.of(state, model.drawn_state())
    start = Checkpoint(0, state, {}, opening_result(federation, layout))
    if resume:
        start = folder.latest() or start
        model = plan_model(federation.backbone, plan, start.round or 1)
        state = start.adapter
        layout = Layout.of(state, model.drawn_state())
        folder.drop_lines_after(start.round)
    run = ResultBuilder(start.so_far)

    try:
        # ── the backbone, once to every node that lacks it ────────────────────────────────────────
        run.watch.start()
        roster = gather(grid, federation)
        run.note_missing(roster.missing)
        run.note_handout(roster)
        run.watch.stop("handout")

        nodes = len(roster.nodes)
        aggregation = begin_aggregation(plan, nodes, seeded_noise=federation.seeded_noise)
        if start.round > 0:
            aggregation.restore(start.memory)

        # ── rounds ────────────────────────────────────────────────────────────────────────────────
        run.watch.start()
        for number in range(start.round + 1, plan.train.rounds + 1):
            if run.ended_early:
                break
            # nodes that came later
            roster.refresh()
            run.note_handout(roster)
            cohort = aggregation.choose_cohort(list(roster.nodes), number)
            model, state = with_head_of(model, state, federation, number)
            layout = Layout.of(state, model.drawn_state())
            round_ = Round(
                plan,
                number,
                layout,
                state,
                cohort,
                clip=aggregation.clip,
                head=model.solved_name,
                places=model.count_places(plan.task.stride),
            )
            purpose = purpose_of(plan.train, number)
            if purpose == "nothing":
                # the head is what texts say: nobody is asked
                combined, variance = state, None
            elif purpose != "steps":
                intake = SumIntake(round_, roster.examples)
                answers = intake.close(train(grid, roster, round_, intake))
                folder.add_lines(answers.lines)
                run.note_round(answers)
                solution = intake.solve()
                run.note_solution(solution.facts)
                combined, variance = solution.adapter, solution.variance
            else:
                intake = UpdateIntake(round_, roster.examples)
                answers = intake.close(train(grid, roster, round_, intake))
                folder.add_lines(answers.lines)
                run.note_round(answers)
                combined, variance = aggregation.aggregate(round_, answers.updates), None
            run.note_spent(aggregation.spent(number))
            check_finite(combined, number)
            if is_validated_after(plan.train, plan.evaluate, number):
                after = Round(plan, number, layout, combined, sorted(roster.nodes))
                measured = measure_validation(grid, roster, after)
                folder.add_lines(measured.lines)
                run.note_validation(measured, choose(plan, run.result.validation, measured))
            so_far = run.after_round(number)
            memory = aggregation.memory()
            checkpoint = Checkpoint(number, combined, memory, so_far, variance)
            folder.save_round(checkpoint, durable=not federation.seeded_noise)
            # only now: a round that is run again must not have been seen
            state = combined

        # ── the last evaluation, on every node: of the round that is kept ─────────────────────────
        run.watch.start()
        kept = folder.kept() or start
        nodes = sorted(roster.nodes)
        last = Round(plan, kept.round, layout, kept.adapter, nodes, head=model.head_name)
        last = choose_answers(grid, roster, last, run)
        evaluation = evaluate_everywhere(grid, roster, last, run.score_bin)
        folder.add_lines(evaluation.lines)
        run.note_evaluation(evaluation)
        run.watch.stop("evaluate")
        run.complete()
    except Exception as error:
        run.fail(error)
        raise
    except KeyboardInterrupt:
        run.interrupt()
        raise
    finally:
        # ── the shared model and its papers: of what was finished, whatever happened ──────────────
        # Ctrl-C falls between any two lines above: the folder knows
        write_papers(run, folder.latest() or start, federation, folder)
    return run.result


def with_head_of(
    model: GraftedModel, state: dict[str, Tensor], federation: Federation, number: int
) -> tuple[GraftedModel, dict[str, Tensor]]:
    """Return the model of a round with its adapter: another where the plan changes the head, the
    adapters as they are.
    """
    if model.has_solved_head == has_depth_head(federation.plan.train, number):
        return model, state
    other = plan_model(federation.backbone, federation.plan, number)
    return other, keep_adapters(state, other)


def choose_answers(grid: Grid, roster: Roster, last: Round, run: ResultBuilder) -> Round:
    """Choose temperature and operating point by validation records, where the plan does. Return
    the model as it is shared.
    """
    if calibrates(last.plan.train):
        run.note_calibration(calibrate(grid, roster, last))
        last = replace(last, sent=run.divide(last.sent, last.head))
    if chooses_point(last.plan.train):
        run.note_operating_point(choose_operating_point(grid, roster, last))
    return last


def train(grid: Grid, roster: Roster, round_: Round, reader: Reader) -> Replies:
    """Send a round to its cohort and return what comes back, as `exchange` does."""
    nodes = {name: roster.nodes[name] for name in round_.cohort}
    timeout = round_.plan.aggregate.round_timeout
    content = round_content(round_)
    return exchange(
        grid, "train", content, nodes, group=str(round_.number), timeout=timeout, reader=reader
    )


def check_finite(state: dict[str, Tensor], number: int) -> None:
    """Raise `RunFailed` where the aggregate itself diverged."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            what = f"the aggregate of {name} is not finite"
            raise RunFailed(f"round {number}: {what}; try a lower learning rate")


def write_papers(
    run: ResultBuilder,
    last: Checkpoint,
    federation: Federation,
    folder: RunFolder,
) -> None:
    """Leave the shared model of the round that is kept, its card, and the result behind."""
    run.close(federation, last.so_far)
    kept = folder.kept() or last
    if kept.round > 0:
        plan = federation.plan
        backbone = federation.backbone
        model = plan_model(backbone, plan, kept.round)
        model.load_adapter_state(run.divide(kept.adapter, model.head_name))
        card = model_card(plan, run.result, backbone.preprocess.to_json())
        beside = Beside(kept.round, kept.variance, run.threshold)
        save_shared_model(folder.shared_model, model, backbone, plan, card, beside)
    folder.write_result(run.result)
