"""Questions that a federation can put: one a file, one closed registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgraft.common.registry import Line, Registry

if TYPE_CHECKING:
    from fedgraft.common.tasks.task import Task

OF_CLASSES = ("accuracy", "auroc", "f1", "loss", "calibration_error")
OF_RARE_CLASSES = (
    "auprc",
    "sensitivity",
    "specificity",
    "sensitivity_at_90",
    "sensitivity_at_95",
)


@dataclass(frozen=True)
class TaskLine(Line):
    """A question, and what a plan must know of it without importing it.

    Attributes:
        metrics: names of what is measured, a plan's default; see `measures.py`. Models are ranked
            by the first; it and the second are told of each site.
        asked: names of what is measured beside, where a plan asks for it.
        shown: those of them that tables of models show, in their order.
        least_classes: how many classes the plan names at least; 0: it names none.
        section: the key of `task` that holds what is this question's own; None: there is none.
        needs_section: whether the plan must write it.
        has_masks: whether a record's answer is a mask: a class for each of its places.
        has_boxes: whether a record's answer is a list of boxes.
        has_tokens: whether each token of a text is answered for.
        columns: how many columns hold a record's answer: 1, or fewest and most.
        materials: the raw materials that it can be put to; empty: all of them.
        has_logits: whether its outputs are logits, which a temperature may divide.
        losses: what `train.loss` may name.
        has_weights: whether a record is of one class, which `train.class_weights` may weigh.
        has_sums: whether its head can be solved from sums over records.
        releases: what its sums under differential privacy can be, as `train.closed_form` names it:
            by release, and "equal" shares.
        heads: what `train.closed_form.head` may name.
        has_deviations: whether a solved head says how far its scores may be off.
        has_text_head: whether a head may be what texts say of its classes.
        writes: whether its answer is a text that is learnt token by token: the last of the plan's
            columns of text.
        has_point: whether another threshold than even odds can be chosen between two classes.
    """

    metrics: tuple[str, ...] = OF_CLASSES
    asked: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("auroc", "accuracy", "loss", "calibration_error")
    least_classes: int = 2
    section: str | None = None
    needs_section: bool = True
    has_masks: bool = False
    has_boxes: bool = False
    has_tokens: bool = False
    columns: tuple[int, int] = (1, 1)
    materials: tuple[str, ...] = ()
    has_logits: bool = True
    losses: tuple[str, ...] = ("cross-entropy", "balanced")
    has_weights: bool = False
    has_sums: bool = True
    releases: tuple[str, ...] = ("sums", "products", "equal")
    heads: tuple[str, ...] = ("ridge",)
    has_deviations: bool = True
    has_point: bool = True
    has_text_head: bool = False
    writes: bool = False

    @property
    def has_places(self) -> bool:
        """Return whether a record's answer lies in its own grid, as masks and boxes do."""
        return self.has_masks or self.has_boxes


_LINES = {
    "classification": TaskLine(
        "fedgraft.common.tasks.classification:CLASSIFICATION",
        asked=OF_RARE_CLASSES,
        losses=("cross-entropy", "balanced", "focal"),
        has_weights=True,
        has_text_head=True,
        heads=("ridge", "class-means"),
    ),
    "ordinal": TaskLine(
        "fedgraft.common.tasks.ordinal:ORDINAL",
        metrics=("kappa", "grades_off", "accuracy", "loss"),
        shown=("kappa", "accuracy", "grades_off", "loss"),
        least_classes=3,
        losses=("cross-entropy",),
        releases=("sums",),
        has_deviations=False,
        has_point=False,
    ),
    "multilabel": TaskLine(
        "fedgraft.common.tasks.multilabel:MULTILABEL",
        metrics=("auroc", "auprc", "f1", "accuracy", "loss"),
        shown=("auroc", "auprc", "f1", "loss"),
        least_classes=1,
        columns=(1, 1000),
        losses=("cross-entropy",),
        releases=("sums",),
        has_deviations=False,
        has_point=False,
    ),
    "regression": TaskLine(
        "fedgraft.common.tasks.regression:REGRESSION",
        metrics=("mae", "r2", "rmse", "loss"),
        shown=("r2", "mae", "rmse", "loss"),
        least_classes=0,
        section="number",
        has_logits=False,
        losses=("squared-error",),
        releases=("sums", "products"),
        has_point=False,
    ),
    "survival": TaskLine(
        "fedgraft.common.tasks.survival:SURVIVAL",
        metrics=("concordance", "brier", "loss"),
        shown=("concordance", "brier", "loss"),
        asked=("observed_survival", "predicted_survival"),
        least_classes=0,
        section="survival",
        columns=(2, 2),
        losses=("cross-entropy",),
        releases=("sums", "products"),
        has_deviations=False,
        has_point=False,
    ),
    "segmentation": TaskLine(
        "fedgraft.common.tasks.segmentation:SEGMENTATION",
        metrics=("dice", "iou", "hausdorff_95", "pixel_accuracy", "loss"),
        shown=("dice", "iou", "hausdorff_95", "loss"),
        section="mask",
        needs_section=False,
        has_masks=True,
        materials=("image", "volume"),
        has_logits=False,
        losses=("dice-cross-entropy",),
        releases=("sums", "products"),
        has_deviations=False,
        has_point=False,
    ),
    "detection": TaskLine(
        "fedgraft.common.tasks.detection:DETECTION",
        metrics=("map_50", "map", "image_ap_50", "loss"),
        shown=("map_50", "map", "image_ap_50", "loss"),
        least_classes=1,
        section="boxes",
        needs_section=False,
        has_boxes=True,
        materials=("image",),
        has_logits=False,
        losses=("focal-giou",),
        has_sums=False,
        releases=(),
        has_deviations=False,
        has_point=False,
    ),
    "token-classification": TaskLine(
        "fedgraft.common.tasks.token_classification:TOKEN_CLASSIFICATION",
        metrics=("f1", "precision", "recall", "token_accuracy", "loss"),
        shown=("f1", "precision", "recall", "loss"),
        least_classes=1,
        has_tokens=True,
        materials=("text",),
        has_logits=False,
        losses=("cross-entropy",),
        releases=("sums", "products"),
        has_deviations=False,
        has_point=False,
    ),
    "generation": TaskLine(
        "fedgraft.common.tasks.generation:GENERATION",
        metrics=("perplexity", "loss", "next_token_accuracy"),
        shown=("perplexity", "next_token_accuracy", "loss"),
        least_classes=0,
        materials=("text",),
        has_logits=False,
        losses=("cross-entropy",),
        has_sums=False,
        releases=(),
        has_deviations=False,
        has_point=False,
        writes=True,
    ),
}
TASKS: Registry[Task] = Registry("task.kind", "question", _LINES)


def task_line(question: str) -> TaskLine:
    """Return the line of a question. Raise `UserError` for a name that is none."""
    if question not in TASKS:
        raise TASKS.unknown(question)
    line = TASKS.lines[question]
    if isinstance(line, TaskLine):
        return line
    # an addition that says nothing of itself is about classes
    return TaskLine(line)


def list_metrics() -> tuple[str, ...]:
    """Return the names of everything that any question measures, each once."""
    names: dict[str, None] = {}
    for question in TASKS:
        line = task_line(question)
        names |= dict.fromkeys((*line.metrics, *line.asked))
    return tuple(names)


def list_losses() -> tuple[str, ...]:
    """Return the names of every loss, each once."""
    names: dict[str, None] = {}
    for question in TASKS:
        names |= dict.fromkeys(task_line(question).losses)
    return tuple(names)
