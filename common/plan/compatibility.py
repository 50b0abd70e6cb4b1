"""Which keys of a plan do not go together, a rule a function: what is wrong, and what to write."""

from __future__ import annotations

from fedgraft.common.adapters import method_line
from fedgraft.common.backbones import family_line
from fedgraft.common.inputs import input_line
from fedgraft.common.plan.adapter_section import AdapterSection
from fedgraft.common.plan.aggregate_section import STRATEGIES, AggregateSection
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.box_compatibility import check_boxes
from fedgraft.common.plan.chosen_by_validation import calibrates, chooses_point, chooses_round
from fedgraft.common.plan.evaluate_section import EvaluateSection
from fedgraft.common.plan.mask_compatibility import check_masks
from fedgraft.common.plan.phases import closed_form_rounds, counts_constants, has_sums
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.prompt_compatibility import check_prompts, check_zero_shot
from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.token_compatibility import check_tokens
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line

# columns in one message
MOST_NAMED = 5
METHODS_WITHOUT_STEPS = {"closed-form": "a closed form", "zero-shot": "a zero-shot plan"}


def check_agreement(
    *,
    task: TaskSection,
    backbone: BackboneSection,
    adapter: AdapterSection,
    train: TrainSection,
    aggregate: AggregateSection,
    privacy: PrivacySection,
    evaluate: EvaluateSection,
) -> list[Problem]:
    """Return what of an agreement's sections does not fit together."""
    return [
        *check_material(task, backbone, train),
        *check_measures(task, train, evaluate),
        *check_answers(task, train, privacy),
        *check_masks(task, train, privacy),
        *check_boxes(task, train),
        *check_tokens(task, backbone, train),
        *check_written(task, adapter, evaluate),
        *check_pool(backbone),
        *check_quantization(backbone, adapter),
        *check_proximal(aggregate, train),
        *check_loss(train, privacy),
        *check_class_weights(task, train, privacy),
        *check_central(aggregate, privacy),
        *check_weighting(aggregate, train),
        *check_factors(adapter, aggregate, privacy),
        *check_encoding(aggregate, privacy),
        *check_closed_form(adapter, train, aggregate),
        *check_sums_of_changed(task, train),
        *check_noisy_sums(train, privacy),
        *check_shares(train, privacy),
        *check_release(train, privacy),
        *check_variance(train, privacy),
        *check_rounds(backbone, train, privacy),
        *check_learning(backbone, train),
        *check_constants(task, backbone, train, privacy),
        *check_scales_counted(task, backbone, train, privacy),
        *check_local_steps(train, privacy),
        *check_choice(train),
        *check_validation(train, evaluate, privacy),
        *check_operating_point(task, train),
        *check_prompts(task, backbone, train),
        *check_zero_shot(adapter, train, privacy),
    ]


def check_material(
    task: TaskSection, backbone: BackboneSection, train: TrainSection
) -> list[Problem]:
    """Return what of the raw material does not suit the backbone, or is not there to be changed."""
    problems = [*check_network(task, backbone), *check_pixels(task, backbone)]
    line = input_line(task.material)
    if backbone.image_size is not None and not line.has_pixels:
        what = "texts have no pixels" if line.has_text else "tables have no pixels"
        remedy = "leave it out"
        if line.has_volumes:
            what = "there, and volumes have a size in voxels"
            remedy = "write `volume: {size: [D, H, W]}` instead"
        if line.has_signals:
            what = "there, and series have a length in samples"
            remedy = "write `signal: {samples: …}` instead"
        problems.append(Problem("backbone.image_size", what, remedy))
    if backbone.volume is not None and not line.has_volumes:
        what = f"there, and {task.kind} reads no volumes"
        problems.append(Problem("backbone.volume", what, "leave it out"))
    if backbone.signal is not None and not line.has_signals:
        what = f"there, and {task.kind} reads no signals"
        problems.append(Problem("backbone.signal", what, "leave it out"))
    if backbone.signal is None and line.has_signals:
        what = "missing, and series need it"
        remedy = "write `signal: {channels: [I, II], rate: 100, samples: 1000}`"
        problems.append(Problem("backbone.signal", what, remedy))
    if backbone.max_length is not None and not line.has_text:
        what = f"there, and {task.kind} reads no texts"
        problems.append(Problem("backbone.max_length", what, "leave it out"))
    problems += check_augmentation(task, train)
    return problems


def check_written(
    task: TaskSection, adapter: AdapterSection, evaluate: EvaluateSection
) -> list[Problem]:
    """Return what does not go with answers that are written: an adapter that is a head alone, where
    the head is the backbone's; groups, for which all outputs would be kept.
    """
    problems: list[Problem] = []
    if not task_line(task.question).writes:
        return problems
    if adapter.method == "head":
        what = f"head, and {task.kind} has the language model's own: nothing would be trained"
        remedy = "write `method: lora`, or another adapter"
        problems.append(Problem("adapter.method", what, remedy))
    if evaluate.subgroups:
        what = f"there, and the outputs of {task.kind} are too many to be kept for each record"
        problems.append(Problem("evaluate.subgroups", what, "leave it out"))
    return problems


def check_pool(backbone: BackboneSection) -> list[Problem]:
    """Return the problem of a network without tokens whose pooling could be chosen."""
    if backbone.pool is None or family_line(backbone.name).has_pools:
        return []
    what = f"there, and {backbone.name} has one way to make a vector"
    return [Problem("backbone.pool", what, "leave it out")]


def check_quantization(backbone: BackboneSection, adapter: AdapterSection) -> list[Problem]:
    """Return the problem of weights in a few bits that would be trained, or of a network that is
    small without.
    """
    problems: list[Problem] = []
    if backbone.quantization is None:
        return problems
    if adapter.method == "full":
        what = "there, and `full` trains the weights themselves"
        remedy = "leave it out, or train adapters, such as `method: lora`"
        problems.append(Problem("backbone.quantization", what, remedy))
    if family_line(backbone.name).material == "tabular":
        what = f"there, and {backbone.name} is small as it is"
        problems.append(Problem("backbone.quantization", what, "leave it out"))
    return problems


def check_network(task: TaskSection, backbone: BackboneSection) -> list[Problem]:
    """Return the problem of a network that is for another raw material than the task's."""
    seen = family_line(backbone.name).material
    if takes_slices(backbone) and input_line(task.material).has_volumes:
        if input_line(seen).has_pixels and backbone.name != "onnx":
            return []
        what = f"{backbone.name} takes no slices of volumes"
        remedy = "write a network for images, such as resnet18, or leave out volume.slices"
        return [Problem("backbone.name", what, remedy)]
    if seen == task.material:
        return []
    what = f"{backbone.name} cannot take the data of {task.kind}"
    return [Problem("backbone.name", what, input_line(task.material).example)]


def takes_slices(backbone: BackboneSection) -> bool:
    """Return whether a network over images is given the slices of volumes."""
    return backbone.volume is not None and backbone.volume.slices is not None


def check_pixels(task: TaskSection, backbone: BackboneSection) -> list[Problem]:
    """Return what of the channels of images does not suit the raw material, or the network."""
    problems: list[Problem] = []
    line = input_line(task.material)
    for key in ("channels", "windows"):
        if not getattr(backbone, key):
            continue
        if not line.has_pixels:
            what = f"there, and {task.kind} reads no images"
            problems.append(Problem(f"backbone.{key}", what, "leave it out"))
        elif line.has_columns:
            what = "there, and an image beside a table's row is grey or in colour, as it shows"
            problems.append(Problem(f"backbone.{key}", what, "leave it out"))
    if backbone.image_channels not in (None, 3) and backbone.name == "onnx":
        what = f"{backbone.image_channels}, and a converted model takes images in colour"
        problems.append(Problem("backbone.channels", what, "leave it out"))
    return problems


def check_augmentation(task: TaskSection, train: TrainSection) -> list[Problem]:
    """Return the problem of an augmentation that is another material's."""
    known = input_line(task.material).changes
    if train.augment in ("none", *known):
        return []
    takers = [name for name in ("image", "volume") if train.augment in input_line(name).changes]
    what = f"{train.augment} is for {f'{takers[0]}s' if takers else 'series'}"
    remedy = " or ".join(f"`augment: {name}`" for name in ("none", *known))
    return [Problem("train.augment", what, f"write {remedy}")]


def check_proximal(aggregate: AggregateSection, train: TrainSection) -> list[Problem]:
    """Return the problem of a strategy that lacks the proximal term that makes it what it is."""
    without = STRATEGIES[aggregate.strategy].without_proximal
    if without is None or train.proximal:
        return []
    what = f"0, and with that {aggregate.strategy} is {without}"
    remedy = f"write `proximal: 0.01` under train, or `strategy: {without}`"
    return [Problem("train.proximal", what, remedy)]


def check_loss(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of a loss that takes something from the labels that is not noised."""
    if train.loss != "balanced" or privacy.mode != "sample":
        return []
    what = "balanced, and a node's shares of the classes would enter every step without noise"
    remedy = "write `loss: cross-entropy`, or privacy.mode local or central"
    return [Problem("train.loss", what, remedy)]


def check_class_weights(
    task: TaskSection, train: TrainSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of weights that fit no classes, or that records decide unseen."""
    weights = train.class_weights
    if weights == "none":
        return []
    key = "train.class_weights"
    if not task_line(task.question).has_weights:
        what = f"there, and the records of {task.kind} are not each of one class"
        return [Problem(key, what, "leave it out")]
    if weights != "inverse" and len(weights) != len(task.classes):
        what = f"{len(weights)} weights for {len(task.classes)} classes"
        return [Problem(key, what, "write one for each class, in the same order")]
    if train.loss == "balanced":
        what = "there, and the balanced loss takes shares of classes out already"
        return [Problem(key, what, "leave it out, or write `loss: cross-entropy`")]
    if weights == "inverse" and privacy.mode == "sample":
        what = "inverse, and a node's shares of the classes would enter every step without noise"
        remedy = "state them, such as `[1, 9]`, from what is known anywhere, not from the data"
        return [Problem(key, what, remedy)]
    return []


def check_central(aggregate: AggregateSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of central noise where there is no average that it is scaled to."""
    if privacy.mode != "central" or STRATEGIES[aggregate.strategy].is_average:
        return []
    what = f"{aggregate.strategy} is no average, and central noise is scaled to one"
    remedy = "write `strategy: fedavg`, or privacy.mode sample or local"
    return [Problem("aggregate.strategy", what, remedy)]


def check_weighting(aggregate: AggregateSection, train: TrainSection) -> list[Problem]:
    """Return the problem of equal weights where nothing is weighed."""
    if aggregate.weighting == "examples":
        return []
    key = "aggregate.weighting"
    if not STRATEGIES[aggregate.strategy].is_average:
        what = f"equal, and {aggregate.strategy} weighs no node by its examples"
        return [Problem(key, what, "leave it out, or write `strategy: fedavg`")]
    if train.method != "steps":
        what = f"equal, and {METHODS_WITHOUT_STEPS[train.method]} weighs no node"
        return [Problem(key, what, "leave it out, or write `method: steps`")]
    return []


def check_factors(
    adapter: AdapterSection, aggregate: AggregateSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of factors that are not there, or whose old values are followed."""
    key = "aggregate.lora_aggregation"
    combined = aggregate.lora_aggregation
    if combined == "average":
        return []
    if not method_line(adapter.method).has_factors:
        what = f"{combined} is for LoRA, and the adapter is {adapter.method}"
        return [Problem(key, what, "write `lora_aggregation: average`")]
    if combined != "svd":
        return []
    if not STRATEGIES[aggregate.strategy].is_plain_mean:
        what = f"svd makes new factors in each round, which {aggregate.strategy} cannot follow"
        remedy = "write `strategy: fedavg`, or `lora_aggregation: freeze-a`"
        return [Problem(key, what, remedy)]
    if privacy.mode == "central":
        what = "central noise is scaled to an average of updates, and svd takes none"
        return [Problem(key, what, "write `lora_aggregation: freeze-a`")]
    return []


def check_encoding(aggregate: AggregateSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of rounding whose loss cannot be added to the next update."""
    key = "aggregate.encoding"
    encoding = aggregate.encoding
    if encoding == "none":
        return []
    if aggregate.lora_aggregation == "svd":
        what = (
            f"svd makes new factors in each round, and what {encoding} lost of the old ones is none"
            " of theirs"
        )
        return [Problem(key, what, "write `encoding: none`")]
    if privacy.mode == "central" and privacy.clipping == "adaptive":
        what = f"{encoding} moves the norms that adaptive clipping counts"
        return [Problem(key, what, "write `encoding: none`, or `clipping: fixed`")]
    return []


def check_closed_form(
    adapter: AdapterSection,
    train: TrainSection,
    aggregate: AggregateSection,
) -> list[Problem]:
    """Return what does not go with a head that is solved from sums."""
    if not has_sums(train):
        return []
    problems: list[Problem] = []
    if train.method == "closed-form":
        if adapter.method != "head":
            what = f"{adapter.method}, and a closed form solves for a head alone"
            remedy = "write `method: head`, or `finish: closed-form` under train instead of method"
            problems.append(Problem("adapter.method", what, remedy))
        if train.start != "drawn" or train.finish != "steps":
            key = "train.start" if train.start != "drawn" else "train.finish"
            what = "closed-form, and so is all of the training"
            if train.start == "prompts":
                what = "prompts, and a closed form begins with no head"
            problems.append(Problem(key, what, "leave it out, or write `method: steps`"))
    if not STRATEGIES[aggregate.strategy].is_plain_mean:
        what = f"{aggregate.strategy}, and sums are added: no rule chooses among them"
        problems.append(Problem("aggregate.strategy", what, "write `strategy: fedavg`"))
    if aggregate.encoding != "none":
        what = f"{aggregate.encoding}, and rounded sums would not be those of the pooled records"
        problems.append(Problem("aggregate.encoding", what, "write `encoding: none`"))
    return problems


def check_sums_of_changed(task: TaskSection, train: TrainSection) -> list[Problem]:
    """Return the problem of records that are changed at random, where sums are taken over them; a
    decoder of masks learns by its own steps what a solved head lacks, and may see other patches.
    """
    if train.augment == "none" or not has_sums(train):
        return []
    if task_line(task.question).has_masks and train.method == "steps":
        return []
    what = f"{train.augment}, and sums are taken over every record once, as it is"
    return [Problem("train.augment", what, "write `augment: none`")]


def check_rounds(
    backbone: BackboneSection, train: TrainSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of a closed form with more or fewer rounds than it has."""
    learns = family_line(backbone.name).learns
    needed = closed_form_rounds(counts=counts_constants(train, privacy, learns=learns))
    if train.method != "closed-form" or train.rounds == needed:
        return []
    what = f"{train.rounds}, and a closed form has one"
    if needed > 1:
        what += " for histograms and one for sums, with columns"
    return [Problem("train.rounds", what, f"write {needed}, or leave it out")]


def check_learning(backbone: BackboneSection, train: TrainSection) -> list[Problem]:
    """Return what does not go with a backbone of constants, or needs one."""
    name = backbone.name
    problems: list[Problem] = []
    line = family_line(name)
    if not line.learns:
        if not train.closed_form.hinges:
            what = f"false, and {name} has none"
            problems.append(Problem("train.closed_form.hinges", what, "leave it out"))
        if train.closed_form.constants != "counted":
            what = f"{train.closed_form.constants}, and {name} has none"
            problems.append(Problem("train.closed_form.constants", what, "leave it out"))
        return problems
    if not line.is_untrained:
        return problems
    if train.method == "steps":
        what = f"steps, and {name} is solved for in closed form alone"
        remedy = "write `method: closed-form`, or `name: mlp` under backbone"
        problems.append(Problem("train.method", what, remedy))
    if backbone.random:
        what = f"true, and {name} has nothing that was learnt beforehand"
        problems.append(Problem("backbone.random", what, "leave it out"))
    return problems


def check_constants(
    task: TaskSection, backbone: BackboneSection, train: TrainSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of ranges that nobody reads, or that are needed and not there."""
    line = family_line(backbone.name)
    if task.ranges and not (line.learns or line.scaled_by_plan):
        what = f"there, and {backbone.name} does not read them"
        return [Problem("task.ranges", what, "leave them out, or write `name: columns`")]
    if not task.undeclared:
        return []
    if line.scaled_by_plan and task.ranges:
        return [_missing_ranges(task, f"{backbone.name} scales its columns by them")]
    if not line.learns or counts_constants(train, privacy, learns=line.learns):
        return []
    why = "train.closed_form.constants is declared"
    if privacy.mode != "none":
        why = f"under privacy.mode {privacy.mode} no histogram tells where numbers lie"
    return [_missing_ranges(task, why)]


def check_scales_counted(
    task: TaskSection, backbone: BackboneSection, train: TrainSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of a first round that tells scales which nobody needs, or may tell."""
    if train.start != "standardise":
        return []
    key = "train.start"
    name = backbone.name
    line = family_line(name)
    if not line.scaled_by_plan:
        return [Problem(key, f"standardise, and {name} scales its own inputs", "leave it out")]
    if privacy.mode != "none":
        what = f"standardise, and under privacy.mode {privacy.mode} no histogram may be told"
        return [Problem(key, what, "write task.ranges instead: they bound the numbers, too")]
    if task.ranges:
        return [Problem(key, "standardise, and task.ranges scale the columns", "leave one out")]
    if not task.numbers:
        return [Problem(key, "standardise, and no column holds numbers", "leave it out")]
    if line.learns and train.activations != "float32":
        what = f"{train.activations}, and rows are kept as they are until their scales are told"
        return [Problem("train.activations", what, "write `activations: float32`")]
    if train.rounds < 2:
        return [Problem("train.rounds", "1, and that one is for the scales", "write 2 or more")]
    return []


def _missing_ranges(task: TaskSection, why: str) -> Problem:
    """Return the problem of numbers that have no range."""
    named = ", ".join(task.undeclared[:MOST_NAMED])
    if len(task.undeclared) > MOST_NAMED:
        named += f" and {len(task.undeclared) - MOST_NAMED} more"
    what = f"missing for {named}, and {why}"
    first = task.undeclared[0]
    remedy = (
        "write them from what is known of such numbers anywhere, not from the data:"
        f" `- {{columns: [{first}], low: LEAST, high: LARGEST}}`"
    )
    return Problem("task.ranges", what, remedy)


def check_noisy_sums(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return what of the privacy does not go with a head that is solved from sums."""
    problems: list[Problem] = []
    if not has_sums(train):
        return problems
    if privacy.mode in ("central", "local"):
        what = f"{privacy.mode}, and each node adds the noise of its own sums"
        problems.append(Problem("privacy.mode", what, "write `mode: sample`"))
    if privacy.mode != "sample" or train.method == "closed-form":
        return problems
    if train.start == "closed-form":
        what = "closed-form, and noisy sums make a head on features of norm 1: no steps begin there"
        problems.append(Problem("train.start", what, "leave it out, or write `finish` instead"))
    if train.finish == "closed-form" and privacy.target_epsilon is None:
        what = "missing, and the last round's sums spend a part of it"
        problems.append(Problem("privacy.target_epsilon", what, "write it, not a noise multiplier"))
    return problems


def check_shares(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of classes that are declared where they are counted."""
    if train.closed_form.shares == "counted" or not has_sums(train) or privacy.mode != "none":
        return []
    what = "equal, and without differential privacy classes are counted exactly"
    return [Problem("train.closed_form.shares", what, "leave it out")]


def check_release(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of products beside classes that are not counted. Without differential
    privacy the key says nothing: a plan may be run either way.
    """
    section = train.closed_form
    if section.release == "sums" or section.shares == "counted" or privacy.mode == "none":
        return []
    what = "products, and with them classes are counted"
    remedy = "write `release: sums`, or leave `shares` out"
    return [Problem("train.closed_form.release", what, remedy)]


def check_variance(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of a variance where no head is solved for last, or from noise."""
    key = "train.closed_form.variance"
    if not train.closed_form.variance:
        return []
    if "closed-form" not in (train.method, train.finish):
        what = "true, and the last head is trained by steps"
        return [Problem(key, what, "leave it out, or write `finish: closed-form` under train")]
    if privacy.mode != "none":
        what = "true, and under differential privacy no exact products of features are there"
        return [Problem(key, what, "leave it out")]
    return []


def check_local_steps(train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return the problem of steps that are counted where passes have to be."""
    if train.local_steps is None:
        return []
    key = "train.local_steps"
    if privacy.mode != "none":
        what = f"there, and under privacy.mode {privacy.mode} what is spent is counted by passes"
        return [Problem(key, what, "write local_epochs instead")]
    if "local_epochs" in train.model_fields_set and train.local_epochs != 1:
        what = f"there, and local_epochs is {train.local_epochs}, too"
        return [Problem(key, what, "write one of them")]
    if train.method != "steps":
        what = f"there, and {METHODS_WITHOUT_STEPS[train.method]} takes no steps"
        return [Problem(key, what, "leave it out")]
    return []


def check_choice(train: TrainSection) -> list[Problem]:
    """Return the problem of a choice among rounds where there is none."""
    if not chooses_round(train):
        if train.choose_by == "loss":
            return []
        what = f"{train.choose_by}, and nothing is chosen"
        remedy = "leave it out, or write `keep: best` under train"
        return [Problem("train.choose_by", what, remedy)]
    key, value = _name_choice(train)
    if train.method != "steps":
        what = f"{value}, and {METHODS_WITHOUT_STEPS[train.method]} has no rounds to choose from"
        return [Problem(key, what, "leave it out")]
    if train.finish == "closed-form":
        what = f"{value}, and the head is solved for anew in the last round: no other has it"
        return [Problem(key, what, "leave it out, or write `finish: steps`")]
    return []


def check_validation(
    train: TrainSection, evaluate: EvaluateSection, privacy: PrivacySection
) -> list[Problem]:
    """Return the problem of looking at validation records where ε has to cover every look."""
    if privacy.mode == "none":
        return []
    problems: list[Problem] = []
    why = f"under privacy.mode {privacy.mode} a look at validation records is a release that no ε"
    if chooses_round(train):
        key, value = _name_choice(train)
        problems.append(Problem(key, f"{value}, and {why} counts", "leave it out"))
    if calibrates(train):
        what = f"{train.calibrate}, and {why} counts"
        problems.append(Problem("train.calibrate", what, "leave it out"))
    if chooses_point(train):
        what = f"chosen by validation records, and {why} counts"
        problems.append(Problem("train.operating_point", what, "leave it out"))
    if evaluate.validation_fraction:
        key = "evaluate.validation_fraction"
        what = f"{evaluate.validation_fraction:g}, and {why} counts"
        problems.append(Problem(key, what, "leave it out"))
    return problems


def check_measures(
    task: TaskSection, train: TrainSection, evaluate: EvaluateSection
) -> list[Problem]:
    """Return the problem of metrics, or of a loss, that are another question's."""
    line = task_line(task.question)
    problems: list[Problem] = []
    known = (*line.metrics, *line.asked)
    foreign = [name for name in evaluate.metrics if name not in known]
    if foreign:
        what = f"{', '.join(foreign)} cannot be measured of {task.kind}"
        remedy = f"write some of {', '.join(known)}, or leave it out"
        problems.append(Problem("evaluate.metrics", what, remedy))
    if train.choose_by not in known:
        what = f"{train.choose_by} cannot be measured of {task.kind}"
        remedy = f"write one of {', '.join(known)}"
        problems.append(Problem("train.choose_by", what, remedy))
    if train.loss not in line.losses:
        what = f"{train.loss} is no loss of {task.kind}"
        remedy = f"write {' or '.join(line.losses)}, or leave it out"
        problems.append(Problem("train.loss", what, remedy))
    return problems


def check_answers(task: TaskSection, train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return what cannot be done with the answers of a question, or with its sums."""
    line = task_line(task.question)
    section = train.closed_form
    problems: list[Problem] = []
    if calibrates(train) and not line.has_logits:
        what = f"temperature, and the outputs of {task.kind} are no logits"
        problems.append(Problem("train.calibrate", what, "leave it out"))
    if has_sums(train) and not line.has_sums:
        key = "train.method" if train.method == "closed-form" else "train.start"
        if train.finish == "closed-form":
            key = "train.finish"
        what = f"closed-form, and {task.kind} has no sums that a head is solved from"
        problems.append(Problem(key, what, "leave it out: it is trained by steps"))
    if section.variance and not line.has_deviations:
        what = f"true, and the head of {task.kind} does not tell it"
        problems.append(Problem("train.closed_form.variance", what, "leave it out"))
    problems += check_means(task, train)
    if privacy.mode == "none" or not has_sums(train):
        return problems
    if not line.releases:
        what = f"{privacy.mode}, and no noise was made for the sums of {task.kind}"
        problems.append(Problem("privacy.mode", what, "train by steps: `method: steps`"))
    elif section.release not in line.releases:
        what = f"{section.release}, and {task.kind} releases {' or '.join(line.releases)}"
        problems.append(Problem("train.closed_form.release", what, "leave it out"))
    if section.shares == "equal" and "equal" not in line.releases:
        what = f"equal, and {task.kind} has no classes that could be so"
        problems.append(Problem("train.closed_form.shares", what, "leave it out"))
    return problems


def check_means(task: TaskSection, train: TrainSection) -> list[Problem]:
    """Return the problem of class means where there are none, or of what they do not tell."""
    section = train.closed_form
    if section.head == "ridge":
        return []
    problems: list[Problem] = []
    if section.head not in task_line(task.question).heads:
        what = f"{section.head}, and {task.kind} has none"
        problems.append(Problem("train.closed_form.head", what, "write `head: ridge`"))
    for key, is_asked in (
        ("variance", section.variance),
        ("release", section.release == "products"),
    ):
        if is_asked:
            what = f"{getattr(section, key)}, and class means go by no products of features"
            problems.append(Problem(f"train.closed_form.{key}", what, "leave it out"))
    return problems


def check_operating_point(task: TaskSection, train: TrainSection) -> list[Problem]:
    """Return the problem of a point between two classes where there are more."""
    if not chooses_point(train):
        return []
    if not task_line(task.question).has_point:
        what = f"chosen, and the answers of {task.kind} have none"
        return [Problem("train.operating_point", what, "leave it out")]
    if len(task.classes) == 2:
        return []
    what = f"chosen, and among {len(task.classes)} classes the likeliest is answered"
    return [Problem("train.operating_point", what, "leave it out, or name two classes")]


def _name_choice(train: TrainSection) -> tuple[str, str]:
    """Return the key by which a plan chooses a round, and its value."""
    if train.keep == "best":
        return "train.keep", train.keep
    return "train.patience", str(train.patience)


def check_simulation(simulation: SimulationSection, classes: int, min_nodes: int) -> list[Problem]:
    """Return the problems where a round needs more nodes than there are, or a node more classes."""
    problems: list[Problem] = []
    kind = simulation.partition.kind
    nodes = simulation.nodes
    if kind == "files":
        nodes = len(simulation.files)
    if nodes is not None and nodes < min_nodes:
        what = f"{min_nodes}, with {nodes} nodes in all"
        problems.append(Problem("aggregate.min_nodes", what, f"write at most {nodes}"))
    each = simulation.partition.classes_per_node
    if kind == "pathological" and each > classes:
        key = "simulation.partition.classes_per_node"
        problems.append(Problem(key, f"{each} of {classes} classes", f"write at most {classes}"))
    return problems
