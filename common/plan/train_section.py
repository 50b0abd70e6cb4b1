"""The plan's `train`: local training at the nodes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from fedgraft.common.plan.section import Count, Names, OneOf, Problem, Section, check_together
from fedgraft.common.tasks import list_losses, list_metrics

Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(gt=0, le=1e6)]
Weights = Annotated[tuple[Weight, ...], Field(min_length=2, max_length=1000)]


class OptimizerSection(Section):
    """How a node, or the pre-training, takes its steps."""

    name: Literal["adamw", "sgd", "adam"] = Field(default="adamw", description="the optimizer")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="sgd only: momentum"
    )


class ClosedFormSection(Section):
    """A head that is solved from sums over records."""

    later: ClassVar[tuple[str, ...]] = (
        "constants",
        "release",
        "epsilon_share",
        "variance",
        "head",
    )

    head: Literal["ridge", "class-means"] = Field(
        default="ridge",
        description=(
            "classes only; class-means: for a few records of each class, from sums of features and"
            " of their squares, without their products with one another (under differential"
            " privacy, release: sums is that)"
        ),
    )

    features: Literal["all", "last"] | Annotated[Names, Field(min_length=1)] = Field(
        default="all",
        description=(
            "what the head reads; all: the output of every block of the backbone; last: what enters"
            " its classifier; or a list of blocks"
        ),
    )
    pool: Literal["mean", "mean-and-deviation"] = Field(
        default="mean", description="what is taken of a block's positions"
    )
    prior: Literal["shares", "equal"] = Field(
        default="shares",
        description="equal: the head takes all classes for equally frequent, whatever the records",
    )
    shares: Literal["counted", "equal"] = Field(
        default="counted",
        description=(
            "under differential privacy; equal: all classes are equally frequent, the plan declares"
            " it, and no noise is spent on counting them"
        ),
    )
    release: Literal["sums", "products"] = Field(
        default="sums",
        description=(
            "under differential privacy; sums: of the features by class; products: of features with"
            " one another, too, which pays where records are many for the noise"
        ),
    )
    epsilon_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description=(
            "under differential privacy, with `finish`: the last round's sums alone spend this part"
            " of target_epsilon, and steps what is left beside them"
        ),
    )
    hinges: bool = Field(
        default=True,
        description=(
            "columns and with-table/… only, and not under differential privacy: numbers are bent at"
            " the 10, 30, 50, 70 and 90 % quantiles of all records, or at these parts of their"
            " ranges"
        ),
    )
    constants: Literal["counted", "declared"] = Field(
        default="counted",
        description=(
            "columns and with-table/… only: where numbers are clipped, centred and bent; counted:"
            " by histograms, in a round of their own; declared: by task.ranges, as always under"
            " differential privacy"
        ),
    )
    variance: bool = Field(
        default=False,
        description=(
            "the shared model carries how sure its head is, and `predict` shows it: 4 d² bytes for"
            " d features, from which their products over all records follow"
        ),
    )
    bound: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=64.0, description="features beyond it are clipped to it"
    )
    bits: Annotated[int, Field(ge=8, le=21)] = Field(
        default=20,
        description="features are rounded to bound / 2^bits, so that sums are exact in any order",
    )


class OperatingPointSection(Section):
    """What the answers of two classes must reach on validation records: one of the two."""

    sensitivity: Share | None = Field(
        default=None, description="share of the second class's records that must be found"
    )
    specificity: Share | None = Field(
        default=None, description="share of the first class's records that must be told as such"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> OperatingPointSection:
        if (self.sensitivity is None) == (self.specificity is None):
            what = "one of sensitivity and specificity is reached, and the other follows"
            problem = Problem("sensitivity", what, "write `{sensitivity: 0.9}`, for instance")
            return check_together(self, [problem])
        return self


class FocalSection(Section):
    """The loss that turns to what the model is not sure of."""

    gamma: Annotated[float, Field(ge=0, le=10)] = Field(
        default=2.0,
        description=(
            "an example counts (1 − p)^gamma, p what the model gives to its class; 0: cross-entropy"
        ),
    )


class TrainSection(Section):
    """Local training at the nodes, as all sides agree on it."""

    later: ClassVar[tuple[str, ...]] = (
        "method",
        "start",
        "finish",
        "closed_form",
        "keep",
        "patience",
        "choose_by",
        "calibrate",
        "operating_point",
        "focal",
        "class_weights",
        "local_steps",
        "gradient_checkpointing",
    )

    method: Literal["steps", "closed-form", "zero-shot"] = Field(
        default="steps",
        description=(
            "steps: nodes train for some rounds; closed-form: in one round nodes send sums over"
            " their records, and the server solves for the head (backbone columns: in a round"
            " before it, histograms of the columns); zero-shot: nothing is trained, the head is"
            " what task.prompts say of the classes, and nodes only measure it (a pair of encoders:"
            " backbone.pool joint)"
        ),
    )
    start: Literal["drawn", "closed-form", "standardise", "prompts"] = Field(
        default="drawn",
        description=(
            "what the first round is for; closed-form: it solves for the head that steps begin"
            " with; standardise: it tells mean and deviation of each number of a table, by"
            " histograms of all nodes, for a network without weights; prompts: none, steps begin"
            " with the head that task.prompts give (a pair of encoders: backbone.pool joint)"
        ),
    )
    finish: Literal["steps", "closed-form"] = Field(
        default="steps",
        description=(
            "closed-form: the last round solves for the head anew, over the adapted features"
        ),
    )
    closed_form: ClosedFormSection = Field(
        default=ClosedFormSection(), description="a head that is solved from sums"
    )
    rounds: Annotated[Count, Field(le=9999)] = Field(
        default=10, description="rounds of the federation"
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description=(
            "which round's model is shared; best: the one that is best on the nodes' validation"
            " records, see evaluate.validation_fraction"
        ),
    )
    patience: Count | None = Field(
        default=None,
        description=(
            "training ends after so many rounds without a better one on the nodes' validation"
            " records; null: after all rounds"
        ),
    )
    choose_by: Annotated[str, AfterValidator(OneOf(list_metrics))] = Field(
        default="loss", description="the measure that `keep` and `patience` go by"
    )
    calibrate: Literal["none", "temperature"] = Field(
        default="none",
        description=(
            "temperature: the outputs of the shared model are divided by the number that gives the"
            " lowest loss on the nodes' validation records"
        ),
    )
    operating_point: Literal["even", "youden"] | OperatingPointSection = Field(
        default="even",
        description=(
            "two classes: from which probability on the second is answered; even: 0.5; youden: the"
            " highest sum of sensitivity and specificity on the nodes' validation records; or"
            " `{sensitivity: 0.9}` on them, or `{specificity: 0.9}`; it travels with the shared"
            " model"
        ),
    )
    local_epochs: Count = Field(
        default=1, description="passes over a node's own data in each round"
    )
    local_steps: Count | None = Field(
        default=None,
        description=(
            "in place of local_epochs: every node takes so many steps in each round, over its data"
            " again and again; for sites of very unlike sizes, of which the small ones take hardly"
            " a step otherwise"
        ),
    )
    batch_size: Count = Field(default=32, description="examples in a step")
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(), description="the local optimizer"
    )
    proximal: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="μ of FedProx: pulls a node's adapter towards the shared one; 0: not at all",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate over the rounds"
    )
    augment: Literal["none", "flip", "flip-crop", "affine", "patches", "jitter", "shift-scale"] = (
        Field(
            default="none",
            description=(
                "images: random flips and crops, or affine, turned by up to 10 degrees, moved and"
                " resized; with masks, patches: half of each side, anywhere, mirrored and turned by"
                " quarters; series: jitter, each channel scaled at random and noise added; volumes:"
                " shift-scale, brighter or darker"
            ),
        )
    )
    loss: Annotated[str, AfterValidator(OneOf(list_losses))] = Field(
        default="cross-entropy",
        description=(
            "squared-error: of numbers; balanced: each node takes its own shares of the classes out"
            " of what it learns; for nodes whose shares are unlike one another's; focal: what the"
            " model is sure of counts little"
        ),
    )
    focal: FocalSection = Field(default=FocalSection(), description="with `loss: focal`")
    class_weights: Literal["none", "inverse"] | Weights = Field(
        default="none",
        description=(
            "how much an example counts in training by steps; inverse: at each node its classes"
            " count alike, by its own labels; or a weight for each class, in order, such as"
            " [1, 9]: these are public and go with differential privacy"
        ),
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description=(
            "of each block only what enters it is kept for the way back, and the rest is computed"
            " again: less memory, a third more time, the same result"
        ),
    )
    activations: Literal["float32", "float16"] = Field(
        default="float32",
        description=(
            "precision in which a node keeps what its frozen layers compute; float16: half the"
            " disk, rounded"
        ),
    )


class PlannedTrainSection(TrainSection):
    """Local training, and how many threads a simulated node has."""

    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="CPU threads for each node's training"
    )
