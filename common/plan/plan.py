"""The plan: who trains what, agreed by all. Frozen and checked at this door; every other file takes
it as right.

`common/plan/plan_file.py` reads one from YAML, writes it, and gives it its identity.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedgraft.common.plan.section import Count, Labels, Names, Section, Seed, Text, checked, unique

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
METRICS = ("accuracy", "auroc", "f1", "loss", "calibration_error")
DELTA = 1e-5  # δ of a private plan that names none: below 1 / (10 · units) for up to 10,000 units
ROBUST = ("median", "trimmed-mean", "krum")


def _weights(text: str) -> str:
    if not text.lower().endswith(WEIGHT_FILES) and not re.fullmatch(r"[A-Z][A-Z0-9_]*", text):
        raise ValueError(
            f"it is neither a file ({', '.join(WEIGHT_FILES)}) nor a name such as IMAGENET1K_V1"
        )
    return text


class Category(Section):
    """A column of words or codes, and all values that it may have: every node must encode them
    alike.
    """

    column: Text = Field(description="one of the feature columns")
    values: Annotated[
        tuple[int | Text, ...], Field(min_length=1, max_length=1000), AfterValidator(unique)
    ] = Field(description="its values, one input each; an empty cell or any other value is missing")


class Task(Section):
    """What is to be told apart."""

    kind: Literal["image-classification", "tabular-classification"] = Field(
        description="what the data are"
    )
    classes: Annotated[Names, Field(min_length=2)] = Field(
        description="names of the classes, in the order of outputs"
    )
    columns: Names = Field(
        default=(), description="tables only: the feature columns, in the order of the inputs"
    )
    categories: tuple[Category, ...] = Field(
        default=(),
        description=(
            "tables only: the columns that hold categories, such as {column: sex, values: [f, m]}"
        ),
    )
    target: Text = Field(
        default="target", description="tables only: the column that holds the label"
    )
    labels: Labels | None = Field(
        default=None,
        description=(
            "value in the data for each class, in order (default 0, 1, …); rows with others are"
            " left out"
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Task:
        found = []
        if self.kind == "tabular-classification" and not self.columns:
            found.append(
                ("columns", "missing, and tables need them", "write `columns: [age, sex, …]`")
            )
        if self.kind == "image-classification" and self.columns:
            found.append(
                (
                    "columns",
                    "images have no columns",
                    "leave it out, or write `kind: tabular-classification`",
                )
            )
        named = [category.column for category in self.categories]
        for at, name in enumerate(named):
            if name not in self.columns:
                found.append(
                    (
                        f"categories.{at}.column",
                        f"{name!r} is not among the columns",
                        "add it to `columns`",
                    )
                )
            if name in named[:at]:
                found.append(
                    (
                        f"categories.{at}.column",
                        f"{name!r} is there twice",
                        "give all its values once",
                    )
                )
        if self.target in self.columns:
            what = f"the label column {self.target!r} is among the features"
            found.append(("columns", what, "leave it out of `columns`, or name another `target`"))
        if self.labels is not None and len(self.labels) != len(self.classes):
            what = f"{len(self.labels)} labels for {len(self.classes)} classes"
            found.append(("labels", what, "write one label for each class, in the same order"))
        return checked(self, found)

    @property
    def encoding(self) -> dict[str, tuple[int | str, ...]]:
        """The values of each column of categories, by its name."""
        return {category.column: category.values for category in self.categories}

    @property
    def inputs(self) -> int:
        """How many inputs a table's row has: one a column, or one for each of its categories."""
        return sum(len(self.encoding.get(name, ())) or 1 for name in self.columns)


class Backbone(Section):
    """The frozen network that the adapters are grafted onto."""

    name: Text = Field(
        description="cifar-resnet8/20/32/44/56, mlp, or a torchvision model such as resnet18"
    )
    weights: Annotated[Text, AfterValidator(_weights)] | None = Field(
        default=None,
        description=(
            "a .safetensors, .pth or .pt file, or a torchvision name such as IMAGENET1K_V1; null:"
            " random"
        ),
    )
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description="if given, the loaded backbone must have this one (sha256:…)"
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        default=None,
        description=(
            "height and width in pixels that images are brought to (default: the weights' own)"
        ),
    )
    random: bool = Field(
        default=False,
        description="throw away what the weights learnt and keep the preprocessing (a baseline)",
    )
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)] = (
        Field(default=(64, 64), description="mlp only: width of each hidden layer")
    )


class Adapter(Section):
    """The small layers that are trained and that travel."""

    method: Literal["head", "lora", "bottleneck", "scale-shift", "bias", "full"] = Field(
        description=(
            "what is added; head: only a new classifier; full: everything is trained (the baseline)"
        )
    )
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=8, description="lora: rank of the added matrices"
    )
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="lora: the update is scaled by alpha / rank (default 2 · rank)"
    )
    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=8, description="bottleneck: width of the narrow layer"
    )
    targets: Literal["auto", "last-block"] | Annotated[Names, Field(min_length=1)] = Field(
        default="auto",
        description="where: auto, last-block, or a list of layer names or patterns",
    )


class Optimizer(Section):
    """How a node, or the pre-training, takes its steps."""

    name: Literal["adamw", "sgd", "adam"] = Field(default="adamw", description="the optimizer")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="sgd only: momentum"
    )


class Train(Section):
    """Local training at the nodes."""

    rounds: Annotated[Count, Field(le=9999)] = Field(
        default=10, description="rounds of the federation"
    )
    local_epochs: Count = Field(
        default=1, description="passes over a node's own data in each round"
    )
    batch_size: Count = Field(default=32, description="examples in a step")
    optimizer: Optimizer = Field(default=Optimizer(), description="the local optimizer")
    proximal: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="μ of FedProx: pulls a node's adapter towards the shared one; 0: not at all",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate over the rounds"
    )
    augment: Literal["none", "flip", "flip-crop"] = Field(
        default="none", description="images: random flips and crops"
    )
    loss: Literal["cross-entropy", "balanced"] = Field(
        default="cross-entropy",
        description=(
            "balanced: each node takes its own shares of the classes out of what it learns; for"
            " nodes whose shares are unlike one another's"
        ),
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="CPU threads for each node's training"
    )
    activations: Literal["float32", "float16"] = Field(
        default="float32",
        description=(
            "precision in which a node keeps what its frozen layers compute; float16: half the"
            " disk, rounded"
        ),
    )


class Aggregate(Section):
    """How the server combines the nodes' adapters."""

    strategy: Literal[
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "median",
        "trimmed-mean",
        "krum",
    ] = Field(default="fedavg", description="the rule that combines them")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="part of the nodes asked in each round"
    )
    min_nodes: Count = Field(default=2, description="fewest good replies that a round needs")
    server_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "fedavgm, fedadam, fedyogi, fedadagrad: the server's learning rate (default: Flower's)"
        ),
    )
    server_momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="fedavgm: the server's momentum (default 0.9)"
    )
    trim: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.2, description="trimmed-mean: part left out at each end of every value"
    )
    byzantine: Annotated[int, Field(ge=0)] = Field(
        default=0, description="krum: how many nodes may be bad"
    )
    round_timeout: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="seconds that a round waits for replies"
    )
    lora_aggregation: Literal["average", "freeze-a", "svd"] = Field(
        default="average",
        description=(
            "lora: average A and B apart; freeze-a: A stays as drawn and only B travels; svd: the"
            " best update of this rank for the mean of the products B·A"
        ),
    )
    encoding: Literal["none", "fp16", "int8"] = Field(
        default="none",
        description=(
            "how updates travel: float32, half of it, or a quarter; what rounding loses comes a"
            " round later"
        ),
    )


class Privacy(Section):
    """Differential privacy of what leaves a node."""

    mode: Literal["none", "sample", "central", "local"] = Field(
        default="none",
        description=(
            "sample: DP-SGD at each node; central: noise at the server; local: noise on updates"
        ),
    )
    unit: Literal["example", "patient", "node"] = Field(
        default="example",
        description="whose presence is hidden (central and local: node, all data of one)",
    )
    target_epsilon: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="ε of the whole run; the noise is found for it"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="δ, well below 1 / units (default 1e-5, unless the mode is none)"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="sample: L2 norm that gradients are clipped to"
    )
    max_update_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="central, local: L2 norm that a node's whole update is clipped to"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description=(
            "central: adaptive follows a quantile of the nodes' norms from max_update_norm on"
        ),
    )
    quantile: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="clipping adaptive: part of the updates that shall not be clipped"
    )
    noise_multiplier: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "standard deviation of the noise over the sensitivity (the clipping norm; local: twice"
            " that), instead of target_epsilon"
        ),
    )
    accountant: Literal["prv", "rdp"] = Field(default="prv", description="how ε is counted")
    grad_sample_mode: Literal["hooks", "ghost"] = Field(
        default="hooks", description="sample: how gradients are clipped"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """What a private mode needs and the plan leaves out becomes part of the plan: its hash
        tells it to everyone.
        """
        if not isinstance(given, dict) or given.get("mode") not in ("sample", "central", "local"):
            return given
        filled = dict(given)
        if filled.get("delta") is None:
            filled["delta"] = DELTA
        if filled.get("unit") is None and filled["mode"] != "sample":
            filled["unit"] = "node"
        return filled

    @property
    def at_node(self) -> bool:
        """Whether a node protects its own data: nothing that depends on them leaves but what was
        noised and counted.
        """
        return self.mode in ("sample", "local")

    @model_validator(mode="after")
    def _fits_together(self) -> Privacy:
        given = [
            key for key in ("target_epsilon", "noise_multiplier") if getattr(self, key) is not None
        ]
        found = []
        if self.mode == "none":  # nobody may believe that they are protected when they are not
            for key in [*given, *(["delta"] if self.delta is not None else [])]:
                remedy = "write `mode: sample` (or central, local), or leave it out"
                found.append((key, "given, but the mode is none and protects nobody", remedy))
        else:
            if not given:
                found.append(
                    (
                        "mode",
                        f"{self.mode} needs to know how much noise",
                        "write `target_epsilon: 8`",
                    )
                )
            if len(given) == 2:
                remedy = "keep one: either gives the other"
                found.append(("noise_multiplier", "given together with target_epsilon", remedy))
            if (self.unit == "node") != (self.mode != "sample"):
                remedy = (
                    "write `unit: example`, or patient" if self.mode == "sample" else "leave it out"
                )
                found.append(("unit", f"mode {self.mode} does not hide one {self.unit}", remedy))
        if self.clipping == "adaptive" and self.at_node:
            found.append(
                ("clipping", "adaptive belongs to mode central", "write `clipping: fixed`")
            )
        if self.grad_sample_mode == "ghost" and self.unit == "patient":
            what = "ghost clipping knows the norm of an example's gradient, not of a patient's"
            found.append(
                ("grad_sample_mode", what, "write `grad_sample_mode: hooks`, or `unit: example`")
            )
        if self.grad_sample_mode == "ghost" and self.mode != "sample":
            found.append(
                (
                    "grad_sample_mode",
                    "ghost clipping belongs to mode sample",
                    "write `grad_sample_mode: hooks`",
                )
            )
        return checked(self, found)


class Subgroups(Section):
    """A column of the data that parts people into groups; each is measured by itself, after the
    last round.
    """

    column: Text = Field(
        description="its name at every node; at a node without it nothing is told of its groups"
    )
    values: Annotated[tuple[int | Text, ...], Field(max_length=100), AfterValidator(unique)] = (
        Field(
            default=(),
            description="the values that are a group each; records with any other are in none",
        )
    )
    edges: Annotated[tuple[float, ...], Field(max_length=100)] = Field(
        default=(),
        description="or, for numbers, where one group ends and the next begins, such as [50, 65]",
    )
    names: Names = Field(
        default=(), description="what the groups are called in results (default: as they are given)"
    )

    @property
    def groups(self) -> tuple[str, ...]:
        """What the groups are called, in their order."""
        if self.names or self.values:
            return self.names or tuple(map(str, self.values))
        between = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(self.edges)]
        return (f"below {self.edges[0]:g}", *between, f"{self.edges[-1]:g} and above")

    @model_validator(mode="after")
    def _fits_together(self) -> Subgroups:
        found, rising = [], all(low < high for low, high in itertools.pairwise(self.edges))
        if bool(self.values) == bool(self.edges):
            what = f"{'both' if self.values else 'neither'} values and edges"
            found.append(
                ("values", what, "write `values: [f, m]`, or for numbers `edges: [50, 65]`")
            )
        elif not rising:
            found.append(
                (
                    "edges",
                    "they do not rise",
                    "write them from the lowest to the highest, each once",
                )
            )
        elif self.names and len(self.names) != (count := len(self.values) or len(self.edges) + 1):
            found.append(
                (
                    "names",
                    f"{len(self.names)} names for {count} groups",
                    "write one for each, in their order",
                )
            )
        return checked(self, found)


class Evaluate(Section):
    """What is measured, and when."""

    every: Count = Field(default=1, description="rounds from one measurement to the next")
    metrics: Annotated[
        tuple[Literal["accuracy", "auroc", "f1", "loss", "calibration_error"], ...],
        Field(min_length=1),
        AfterValidator(unique),
    ] = Field(default=METRICS, description="what is reported")
    subgroups: Annotated[tuple[Subgroups, ...], Field(max_length=20)] = Field(
        default=(),
        description=(
            "groups of people to measure by themselves, such as {column: sex, values: [f, m]}; a"
            " node tells of those that its policy's min_subgroup allows, and of none under"
            " differential privacy"
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Evaluate:
        named, found = [each.column for each in self.subgroups], []
        for at, name in enumerate(named):
            if name in named[:at]:
                found.append(
                    (
                        f"subgroups.{at}.column",
                        f"{name!r} is there twice",
                        "give all its groups once",
                    )
                )
        return checked(self, found)


class Pretrain(Section):
    """How `fedgraft pretrain` makes the backbone's weights."""

    data: Text = Field(description="the file that it learns from")
    labels: Labels = Field(description="the values in the data that are its classes")
    epochs: Count = Field(description="passes over the data")
    batch_size: Count = Field(default=64, description="examples in a step")
    optimizer: Optimizer = Field(default=Optimizer(), description="the optimizer")
    seed: Seed = Field(
        default=0, description="seed of the initial weights and of the order of examples"
    )


class Partition(Section):
    """How one data set becomes several hospitals."""

    kind: Literal["iid", "dirichlet", "pathological", "column", "files"] = Field(
        default="iid", description="files: one node a file; column: one node for each value in it"
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=0.5, description="dirichlet: the smaller, the more the nodes' classes differ"
    )
    classes_per_node: Count = Field(default=2, description="pathological: classes that a node has")
    column: Text | None = Field(default=None, description="column: its name")
    min_examples: Count = Field(
        default=10, description="fewest training examples that a node may have"
    )


class Simulation(Section):
    """The hospitals of a simulation on one machine."""

    nodes: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="how many; null with partition files and column, where the data say it",
    )
    data: Text | Annotated[Names, Field(min_length=1)] = Field(
        description="a file, or a list of files"
    )
    partition: Partition = Field(default=Partition(), description="how the data are dealt out")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="part kept for tests, where the data have no split of their own"
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The data as a tuple, one file or several."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @model_validator(mode="after")
    def _fits_together(self) -> Simulation:
        kind, files, found = self.partition.kind, self.files, []
        if kind == "files" and self.nodes not in (None, len(files)):
            found.append(
                (
                    "nodes",
                    f"{self.nodes} nodes for {len(files)} files",
                    "leave it out: each file is a node",
                )
            )
        if kind not in ("files", "column") and self.nodes is None:
            found.append(("nodes", f"missing, and partition {kind} needs it", "write `nodes: 8`"))
        if kind != "files" and len(files) > 1:
            found.append(
                (
                    "data",
                    f"{len(files)} files with partition {kind}",
                    "give one file, or write `kind: files`",
                )
            )
        if kind == "column" and self.partition.column is None:
            found.append(
                (
                    "partition.column",
                    "missing, and partition column needs it",
                    "write `column: hospital`",
                )
            )
        return checked(self, found)


class Plan(Section):
    """One federation: its task, backbone, adapter, training, aggregation, privacy and
    measurements.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="letters, digits, dots and dashes; runs are named after it"
    )
    task: Task = Field(description="what is to be told apart")
    backbone: Backbone = Field(description="the frozen network")
    adapter: Adapter = Field(description="what is grafted onto it and trained")
    train: Train = Field(default=Train(), description="local training")
    aggregate: Aggregate = Field(
        default=Aggregate(), description="how the server combines the adapters"
    )
    privacy: Privacy = Field(default=Privacy(), description="differential privacy")
    evaluate: Evaluate = Field(default=Evaluate(), description="what is measured")
    seed: Seed = Field(
        default=0, description="seed of everything random but differential privacy's noise"
    )
    pretrain: Pretrain | None = Field(
        default=None, description="how the backbone's weights are made, if they are made here"
    )
    simulation: Simulation | None = Field(
        default=None, description="the hospitals, when simulated on one machine"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        table, found = self.task.kind == "tabular-classification", []
        if table != (self.backbone.name == "mlp"):
            what = f"{self.backbone.name} cannot take the data of {self.task.kind}"
            remedy = (
                "write `name: mlp`"
                if table
                else "write `name: cifar-resnet20`, or a torchvision model's name"
            )
            found.append(("backbone.name", what, remedy))
        if table and self.backbone.image_size is not None:
            found.append(("backbone.image_size", "tables have no pixels", "leave it out"))
        if table and self.train.augment != "none":
            found.append(
                ("train.augment", f"{self.train.augment} is for images", "write `augment: none`")
            )
        if self.aggregate.strategy == "fedprox" and self.train.proximal == 0:
            remedy = "write `proximal: 0.01` under train, or `strategy: fedavg`"
            found.append(("train.proximal", "0, and with that fedprox is fedavg", remedy))
        found += _does_not_combine(self)
        made_here = self.backbone.weights is not None and self.backbone.weights.endswith(
            ".safetensors"
        )
        if self.pretrain is not None and not made_here:
            remedy = "write the .safetensors file that `fedgraft pretrain` shall write"
            found.append(
                (
                    "backbone.weights",
                    "the plan has a pretrain part and no file for its result",
                    remedy,
                )
            )
        if self.simulation is not None:
            found += _does_not_fit(
                self.simulation, len(self.task.classes), self.aggregate.min_nodes
            )
        return checked(self, found)


def _does_not_combine(plan: Plan) -> list[tuple[str, str, str]]:
    """Rules of aggregation that do not go with the adapter or the privacy."""
    strategy, lora, found = plan.aggregate.strategy, plan.aggregate.lora_aggregation, []
    if plan.train.loss == "balanced" and plan.privacy.mode == "sample":
        what = "balanced, and a node's shares of the classes would enter every step without noise"
        found.append(
            ("train.loss", what, "write `loss: cross-entropy`, or privacy.mode local or central")
        )
    if plan.privacy.mode == "central" and strategy in ROBUST:
        what = f"{strategy} is no average, and central noise is scaled to one"
        found.append(
            (
                "aggregate.strategy",
                what,
                "write `strategy: fedavg`, or privacy.mode sample or local",
            )
        )
    if lora != "average" and plan.adapter.method != "lora":
        what = f"{lora} is for LoRA, and the adapter is {plan.adapter.method}"
        found.append(("aggregate.lora_aggregation", what, "write `lora_aggregation: average`"))
    elif lora == "svd" and strategy not in ("fedavg", "fedprox"):
        what = f"svd makes new factors in each round, which {strategy} cannot follow"
        found.append(
            (
                "aggregate.lora_aggregation",
                what,
                "write `strategy: fedavg`, or `lora_aggregation: freeze-a`",
            )
        )
    elif lora == "svd" and plan.privacy.mode == "central":
        what = "central noise is scaled to an average of updates, and svd takes none"
        found.append(("aggregate.lora_aggregation", what, "write `lora_aggregation: freeze-a`"))
    encoding = plan.aggregate.encoding
    if encoding != "none" and lora == "svd":
        what = (
            f"svd makes new factors in each round, and what {encoding} lost of the old ones is none"
            " of theirs"
        )
        found.append(("aggregate.encoding", what, "write `encoding: none`"))
    elif (
        encoding != "none"
        and plan.privacy.mode == "central"
        and plan.privacy.clipping == "adaptive"
    ):
        what = f"{encoding} moves the norms that adaptive clipping counts"
        found.append(("aggregate.encoding", what, "write `encoding: none`, or `clipping: fixed`"))
    return found


def _does_not_fit(
    simulation: Simulation, classes: int, min_nodes: int
) -> list[tuple[str, str, str]]:
    kind, found = simulation.partition.kind, []
    nodes = len(simulation.files) if kind == "files" else simulation.nodes
    if nodes is not None and nodes < min_nodes:
        found.append(
            (
                "aggregate.min_nodes",
                f"{min_nodes}, with {nodes} nodes in all",
                f"write at most {nodes}",
            )
        )
    each = simulation.partition.classes_per_node
    if kind == "pathological" and each > classes:
        what = f"{each} of {classes} classes"
        found.append(("simulation.partition.classes_per_node", what, f"write at most {classes}"))
    return found
