"""Plans: ready ones load, every mistake is told with its place, and the identity depends on the
meaning alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.yaml_file import parse_yaml, validate
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import (
    READY_PLANS,
    amended,
    canonical,
    find_plan,
    load_plan,
    plan_from_json,
    plan_hash,
    plan_yaml,
    ready_plans,
)
from fedgraft.common.plan.plan_keys import describe_keys
from fedgraft.common.tasks import OF_CLASSES

PLAN = """\
name: small
task: {kind: image-classification, classes: [a, b]}
backbone: {name: cifar-resnet20}
adapter: {method: lora}
train: {rounds: 3}
"""

TABLE = """\
name: table
task: {kind: tabular-classification, classes: [a, b], columns: [x, y]}
backbone: {name: mlp}
adapter: {method: lora}
"""


def read(text: str) -> Plan:
    """The plan in a text, as if it stood in plan.yaml."""
    data, lines = parse_yaml(text, "plan.yaml")
    return validate(Plan, data, lines, "plan.yaml")


def mistakes(text: str) -> list[UserError]:
    """What is told about a text that is no plan."""
    with pytest.raises(UserErrors) as caught:
        read(text)
    return list(caught.value.errors)


# What a private mode needs


@pytest.mark.parametrize(
    ("mode", "unit"), [("sample", "example"), ("local", "node"), ("central", "node")]
)
def test_delta_and_unit_that_are_left_out_become_part_of_the_plan(mode: str, unit: str) -> None:
    """Two sides that fill in δ by themselves would not agree; in the hash, they do."""
    short = read(PLAN + f"privacy: {{mode: {mode}, target_epsilon: 3}}")
    whole = read(
        PLAN + f"privacy: {{mode: {mode}, target_epsilon: 3, delta: 1.0e-5, unit: {unit}}}"
    )
    assert (short.privacy.delta, short.privacy.unit) == (1e-5, unit)
    assert plan_hash(short) == plan_hash(whole)
    assert read(PLAN).privacy.delta is None


# Identity

words = st.text("abcxyz019 ._é-", min_size=1, max_size=8).filter(lambda word: word == word.strip())
positive = st.floats(1e-9, 1e6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of all kinds, with defaults left out or in."""
    classes = draw(st.lists(words, min_size=2, max_size=4, unique=True))
    table = draw(st.booleans())
    label = st.integers(-5, 5) | words
    labels = st.none() | st.lists(
        label, min_size=len(classes), max_size=len(classes), unique_by=str
    )
    data: dict[str, Any] = {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        "task": {
            "kind": "tabular-classification" if table else "image-classification",
            "classes": classes,
            "labels": draw(labels),
            "columns": ["1e-3", "no", "null"] if table else [],
        },
        "backbone": {"name": "mlp" if table else "resnet18"},
        "adapter": {
            "method": draw(st.sampled_from(["head", "lora", "bias"])),
            "alpha": draw(st.none() | positive),
            "targets": draw(
                st.sampled_from(["auto", "last-block"])
                | st.lists(words, min_size=1, max_size=3, unique=True)
            ),
        },
        "train": {
            "proximal": draw(st.sampled_from([0, 0.0, -0.0, 1, 0.25])),
            "optimizer": {"lr": draw(positive)},
        },
        "evaluate": {
            "metrics": draw(st.lists(st.sampled_from(OF_CLASSES), min_size=1, unique=True))
        },
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    if draw(st.booleans()):
        data["simulation"] = {"nodes": draw(st.integers(2, 9)), "data": draw(words)}
    return validate(Plan, data, {}, "drawn")


@settings(max_examples=80, deadline=None)
@given(plans())
def test_a_plan_survives_every_way_of_writing_it(plan: Plan) -> None:
    """A node must find the hash that the coordinator found: by YAML, by JSON, with defaults written
    out or not.
    """
    assert read(plan_yaml(plan)) == plan
    assert plan_from_json(canonical(plan)) == plan
    assert (
        plan_hash(read(plan_yaml(plan)))
        == plan_hash(plan_from_json(canonical(plan)))
        == plan_hash(plan)
    )


def test_the_hash_is_of_the_meaning() -> None:
    """Key order, comments, 1 or 1.0 and defaults do not change a plan; every other change does."""
    base = read(PLAN)
    same = (
        "# a comment\n"
        + "\n".join(reversed(PLAN.splitlines()))
        + "\naggregate: {fraction: 1, trim: 2.0e-1}\n"
    )
    assert plan_hash(read(same)) == plan_hash(base)
    assert plan_hash(read(PLAN.replace("rounds: 3", "rounds: 3, proximal: -0.0"))) == plan_hash(
        base
    )
    changes = [
        "seed=1",
        "task.classes=[b, a]",
        "train.optimizer.lr=2e-3",
        "task.labels=[0, 1]",
        "name=other",
    ]
    hashes = {plan_hash(amended(base, [change])) for change in changes}
    assert len(hashes | {plan_hash(base)}) == len(changes) + 1
    assert plan_hash(amended(base, ["task.labels=[0, 1]"])) != plan_hash(
        amended(base, ["task.labels=['0', '1']"])
    )


def test_the_canonical_form_is_plain_sorted_json() -> None:
    """Others may compute the identity with any JSON library and SHA-256; the form is a promise."""
    text = canonical(read(PLAN))
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text == again
    assert plan_hash(read(PLAN)) == "sha256:" + hashlib.sha256(again.encode("utf-8")).hexdigest()
    assert json.loads(text)["aggregate"]["round_timeout"] == 3600.0


def test_a_plan_is_frozen_all_the_way_down() -> None:
    """A plan that changes after its hash was taken would run what nobody approved."""
    plan = load_plan("pneumonia")
    with pytest.raises(ValidationError):
        plan.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        plan.train.optimizer.lr = 1.0  # type: ignore[misc]
    hash(plan)  # no list or dict anywhere in it


# Ready plans


@pytest.mark.parametrize("name", ["digits", "heart", "medquad", "pneumonia"])
def test_ready_plans_load_and_so_do_the_commands_in_their_headers(name: str) -> None:
    """The header of a ready plan is what a newcomer types first."""
    assert name in ready_plans()
    plan = load_plan(name)
    assert plan.name == name
    text = find_plan(name).read_text()
    header = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    assert f"fedgraft simulate {name}" in header.splitlines()[0]
    commands = re.findall(rf"^\s+(fedgraft simulate {name}(?:.*\\\n)*.*)$", header, re.MULTILINE)
    examples = [
        [after for flag, after in itertools.pairwise(parts) if flag == "--set"]
        for parts in map(shlex.split, commands)
    ]
    assert any(examples)
    for overrides in examples:
        load_plan(name, overrides)


def test_pretrained_backbones_are_where_the_plan_looks_for_them() -> None:
    """`fedgraft pretrain` writes backbone.weights; a plan whose two parts disagree could never
    run.
    """
    for name in ready_plans():
        plan = load_plan(name)
        # a language model is a folder
        if plan.pretrain is not None and plan.pretrain.language is None:
            assert (plan.backbone.weights or "").endswith(".safetensors")
    digits = load_plan("digits")
    assert digits.pretrain is not None
    assert digits.pretrain.labels is not None
    assert digits.task.labels is not None
    assert not set(digits.pretrain.labels) & set(digits.task.labels), (
        "the transfer must be to other digits"
    )


def test_unknown_plans_are_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt name must teach; a folder called like a ready plan must not hide it."""
    with pytest.raises(UserError, match="did you mean `pneumonia`"):
        load_plan("pnuemonia")
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_plan("digits").name == "digits"
    (tmp_path / "heart").write_text(PLAN)
    assert load_plan("heart").name == "small"  # one's own file goes first


# Mistakes


@pytest.mark.parametrize(
    ("text", "where", "says", "remedy"),
    [
        (
            PLAN.replace("rounds", "ruonds"),
            "plan.yaml:5",
            "train.ruonds: unknown key",
            "did you mean `rounds`?",
        ),
        (PLAN + "trian: {}", "plan.yaml:6", "trian: unknown key", "did you mean `train`?"),
        (
            PLAN.replace("adapter: {method: lora}\n", ""),
            "plan.yaml:1",
            "adapter: missing",
            "write `adapter: …`",
        ),
        (
            PLAN.replace("lora", "lroa"),
            "plan.yaml:4",
            "adapter.method: found 'lroa'",
            "did you mean `lora`?",
        ),
        (
            PLAN.replace("3", "three"),
            "plan.yaml:5",
            "found 'three'; a whole number",
            "rounds of the federation",
        ),
        (
            PLAN.replace("3", "true"),
            "plan.yaml:5",
            "found true; a whole number",
            "rounds of the federation",
        ),
        (
            PLAN.replace("3", "0"),
            "plan.yaml:5",
            "found 0; a number greater",
            "rounds of the federation",
        ),
        (
            PLAN.replace("small", "../small"),
            "plan.yaml:1",
            "name: found '../small'",
            "letters, digits",
        ),
        (
            PLAN.replace("[a, b]", "[a]"),
            "plan.yaml:2",
            "1 of them, and image-classification needs at least 2",
            "classes: [normal, sick]",
        ),
        (
            PLAN.replace("[a, b]", "[a, a]"),
            "plan.yaml:2",
            "'a' is there more than once",
            "names of the classes",
        ),
        (
            PLAN.replace("[a, b]", "[a, 2]"),
            "plan.yaml:2",
            "task.classes[1]: found 2",
            "names of the classes",
        ),
        (
            PLAN + "aggregate: {fraction: 0}",
            "plan.yaml:6",
            "aggregate.fraction: found 0",
            "part of the nodes",
        ),
        (
            PLAN + "aggregate: {trim: 0.5}",
            "plan.yaml:6",
            "aggregate.trim: found 0.5",
            "part left out",
        ),
        (PLAN + "seed: -1", "plan.yaml:6", "seed: found -1", "seed of everything"),
        (
            PLAN.replace("{method: lora}", "lora"),
            "plan.yaml:4",
            "adapter: found 'lora'; a group",
            "what is grafted",
        ),
        (
            PLAN.replace("lora", "lora, targets: last"),
            "plan.yaml:4",
            "found 'last'",
            "did you mean `last-block`?",
        ),
        (
            PLAN.replace("resnet20", "resnet20, weights: w.bin"),
            "plan.yaml:3",
            "neither a file",
            "IMAGENET1K_V1",
        ),
        (
            PLAN.replace("resnet20", "resnet20, fingerprint: abc"),
            "plan.yaml:3",
            "found 'abc'",
            "sha256:",
        ),
        # Keys that do not fit together
        (
            PLAN.replace("[a, b]", "[a, b], columns: [x]"),
            "plan.yaml:2",
            "images have no columns",
            "leave it out",
        ),
        (
            PLAN.replace("[a, b]", "[a, b], labels: [1, 2, 3]"),
            "plan.yaml:2",
            "3 labels for 2 classes",
            "one label",
        ),
        (
            PLAN.replace("cifar-resnet20", "mlp"),
            "plan.yaml:3",
            "backbone.name: mlp cannot",
            "cifar-resnet20",
        ),
        (
            PLAN + "aggregate: {strategy: fedprox}",
            "plan.yaml:5",
            "train.proximal: 0",
            "proximal: 0.01",
        ),
        (PLAN + "privacy: {target_epsilon: 3}", "plan.yaml:6", "protects nobody", "mode: sample"),
        (
            PLAN + "privacy: {mode: sample, delta: 1e-5}",
            "plan.yaml:6",
            "how much noise",
            "target_epsilon",
        ),
        (
            PLAN + "privacy: {mode: sample, target_epsilon: 3, unit: node}",
            "plan.yaml:6",
            "mode sample does not hide one node",
            "unit: example",
        ),
        (
            PLAN + "privacy: {mode: central, target_epsilon: 3, unit: patient}",
            "plan.yaml:6",
            "mode central does not hide one patient",
            "leave it out",
        ),
        (
            PLAN + "privacy: {mode: local, target_epsilon: 3, clipping: adaptive}",
            "plan.yaml:6",
            "adaptive belongs to mode central",
            "clipping: fixed",
        ),
        (
            PLAN + "privacy: {mode: central, target_epsilon: 3}\naggregate: {strategy: median}",
            "plan.yaml:7",
            "median is no average",
            "strategy: fedavg",
        ),
        (
            PLAN + "aggregate: {strategy: median, weighting: equal}",
            "plan.yaml:6",
            "median weighs no node by its examples",
            "strategy: fedavg",
        ),
        (
            PLAN.replace("lora", "head") + "aggregate: {lora_aggregation: svd}",
            "plan.yaml:6",
            "svd is for LoRA",
            "lora_aggregation: average",
        ),
        (
            PLAN + "aggregate: {lora_aggregation: svd, strategy: fedadam}",
            "plan.yaml:6",
            "fedadam cannot follow",
            "freeze-a",
        ),
        (
            PLAN
            + "aggregate: {lora_aggregation: svd}\nprivacy: {mode: central, target_epsilon: 3}",
            "plan.yaml:6",
            "svd takes none",
            "freeze-a",
        ),
        (
            PLAN + "privacy: {mode: local, target_epsilon: 3, noise_multiplier: 1, delta: 1e-5}",
            "plan.yaml:6",
            "together with target_epsilon",
            "keep one",
        ),
        (
            PLAN
            + "privacy:\n  mode: central\n  target_epsilon: 3\n  delta: 1e-5\n  grad_sample_mode:"
            " ghost",
            "plan.yaml:10",
            "belongs to mode sample",
            "hooks",
        ),
        (
            PLAN + "privacy: {mode: sample, unit: patient, target_epsilon: 3, delta: 1e-5,"
            " grad_sample_mode: ghost}",
            "plan.yaml:6",
            "not of a patient's",
            "unit: example",
        ),
        (
            PLAN + "pretrain: {data: d.npz, labels: [0, 1], epochs: 1}",
            "plan.yaml:3",
            "no file for its result",
            "write",
        ),
        (
            PLAN + "simulation: {data: d.npz}",
            "plan.yaml:6",
            "simulation.nodes: missing",
            "nodes: 8",
        ),
        (
            PLAN + "simulation: {data: d.npz, nodes: 1}",
            "plan.yaml:1",
            "with 1 nodes in all",
            "at most 1",
        ),
        (
            PLAN + "simulation: {data: [d, e], nodes: 2}",
            "plan.yaml:6",
            "2 files with partition iid",
            "kind: files",
        ),
        (
            PLAN + "simulation: {data: [d, e], nodes: 3, partition: {kind: files}}",
            "plan.yaml:6",
            "3 nodes for 2 files",
            "leave it out",
        ),
        (
            PLAN + "simulation: {data: d, partition: {kind: column}}",
            "plan.yaml:6",
            "partition.column: missing",
            "column:",
        ),
        (
            PLAN + "simulation: {data: d, nodes: 4, partition: {kind: pathological,"
            " classes_per_node: 3}}",
            "plan.yaml:6",
            "3 of 2 classes",
            "at most 2",
        ),
        (
            TABLE.replace(", columns: [x, y]", ""),
            "plan.yaml:2",
            "tables need them",
            "columns: [age",
        ),
        (
            TABLE.replace("[x, y]", "[x, x]"),
            "plan.yaml:2",
            "'x' is there more than once",
            "feature columns",
        ),
        (
            TABLE.replace("[x, y]", "[x, target]"),
            "plan.yaml:2",
            "'target' is among the features",
            "leave it out",
        ),
        (TABLE.replace("mlp", "resnet18"), "plan.yaml:3", "resnet18 cannot take", "name: mlp"),
        (
            TABLE.replace("mlp", "mlp, image_size: 32"),
            "plan.yaml:3",
            "tables have no pixels",
            "leave it out",
        ),
        (TABLE + "train: {augment: flip}", "plan.yaml:5", "flip is for images", "augment: none"),
    ],
)
def test_each_mistake_has_its_place_its_value_and_its_remedy(
    text: str, where: str, says: str, remedy: str
) -> None:
    """One mistake, one message, at the line where a person must write something else."""
    (error,) = mistakes(text)
    assert error.where == where
    assert says in error.what
    assert remedy in error.remedy


@pytest.mark.parametrize("mode", ["sample", "local", "central"])
@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ("train.keep=best", "train.keep"),
        ("train.patience=3", "train.patience"),
        ("train.calibrate=temperature", "train.calibrate"),
        ("evaluate.validation_fraction=0.2", "evaluate.validation_fraction"),
    ],
)
def test_nothing_is_chosen_under_differential_privacy(mode: str, keys: str, key: str) -> None:
    """Looks at validation records that no ε counts, under a plan that promises one."""
    privacy = f"privacy={{mode: {mode}, target_epsilon: 3}}"
    with pytest.raises(UserErrors) as caught:
        load_plan("pneumonia", [privacy, keys])
    (error,) = caught.value.errors
    assert key in f"{error.where} {error.what}"
    assert f"under privacy.mode {mode} a look at validation records" in error.what
    assert error.remedy == "leave it out"
    # each alone is fine
    load_plan("pneumonia", [privacy])
    load_plan("pneumonia", [keys])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["train.finish=closed-form", "train.keep=best"], "solved for anew in the last round"),
        (["train.finish=closed-form", "train.patience=2"], "2, and the head is solved for anew"),
        (
            ["adapter={method: head}", "train={method: closed-form}", "train.keep=best"],
            "best, and a closed form has no rounds",
        ),
        (["train.choose_by=auroc"], "auroc, and nothing is chosen"),
    ],
)
def test_nothing_is_chosen_where_there_is_no_choice(keys: list[str], says: str) -> None:
    """A head that was solved for last thrown away for one that is worse; a key without effect."""
    with pytest.raises(UserErrors) as caught:
        load_plan("pneumonia", keys)
    (error,) = caught.value.errors
    assert says in error.what
    assert error.remedy


def test_plans_that_choose_nothing_keep_their_hash() -> None:
    """Approvals that are void since a key was added that nobody uses."""
    plan = load_plan("pneumonia")
    spelt_out = ["train.keep=last", "train.patience=null", "evaluate.validation_fraction=0"]
    assert plan_hash(load_plan("pneumonia", spelt_out)) == plan_hash(plan)
    assert "keep" not in canonical(plan)
    assert "validation" not in canonical(plan)


def test_all_mistakes_come_at_once() -> None:
    """One attempt must show everything that is wrong with types and names."""
    text = (
        PLAN.replace("lora", "lroa").replace("rounds: 3", "rounds: x, batch: 3")
        + "seed: a\naggregate: {trim: 2}\n"
    )
    assert [error.where for error in mistakes(text)] == [
        f"plan.yaml:{line}" for line in (4, 5, 5, 7, 6)
    ]


def test_a_plan_of_ten_megabytes_is_refused(tmp_path: Path) -> None:
    """Read to its end, it would take minutes and gigabytes."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN + "# padding\n" * 1_000_000)
    with pytest.raises(UserError, match="larger than 1,000,000 bytes"):
        load_plan(path)


@pytest.mark.parametrize(
    "text", ["", "3", "null", "[" * 100_000, "[" * 500 + "]" * 500, '{"name": NaN}', "9" * 5000]
)
def test_a_hostile_text_from_the_wire_is_refused(text: str) -> None:
    """What is offered to a node is no better than what anybody could send."""
    with pytest.raises(UserError):
        plan_from_json(text)
    with pytest.raises(UserError):
        plan_from_json(canonical(read(PLAN)).replace('"small"', '"\\ud800"'))
    with pytest.raises(UserError):
        plan_from_json(
            canonical(read(PLAN)).replace('"name":"small"', f'"name":"{"x" * 2_000_000}"')
        )


# --set


def test_overrides_are_yaml_and_reach_any_depth() -> None:
    """`--set` must be able to write whatever the file can say."""
    plan = load_plan(
        "pneumonia",
        [
            "train.optimizer.lr=1e-2",
            "adapter={method: head}",
            "simulation.nodes=3",
            "evaluate.metrics=[loss]",
            "seed=1",
        ],
    )
    assert plan.train.optimizer.lr == 0.01
    assert plan.adapter.method == "head"
    assert plan.adapter.rank == 8  # the group was replaced whole
    assert plan.simulation is not None
    assert (plan.simulation.nodes, plan.evaluate.metrics, plan.seed) == (3, ("loss",), 1)
    assert load_plan("pneumonia", ["simulation=null"]).simulation is None
    assert (
        load_plan("pneumonia", ["train.rounds=3", "train.rounds=4"]).train.rounds == 4
    )  # the last one counts


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.rounds", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("train..rounds=3", "not of the form key=value"),
        ("seed.x=3", "`seed` is 7 and has no keys"),
        ("task.classes.0=x", "`task.classes` is ['normal', 'pneumonia'] and has no keys"),
        ("train.rounds=[", "not valid YAML"),
        ("train.rounds=&a 3", "aliases and anchors"),
        ("train.rounds=" + "9" * 20_000, "far too long"),
        ("train.rounds=three", "train.rounds: found 'three'"),
        ("train.ruonds=3", "train.ruonds: unknown key"),
        ("trian.rounds=3", "trian: unknown key"),
        ("simulation.nodes=1", "with 1 nodes in all"),
        ("simulation.partition.kind=column", "partition.column: missing"),
    ],
)
def test_bad_overrides_teach(override: str, says: str) -> None:
    """The mistake is in what was typed, so the message must quote it and not a line of the file."""
    with pytest.raises(UserErrors) as caught:
        load_plan("pneumonia", [override])
    (error,) = caught.value.errors
    assert says in error.what
    assert error.remedy
    if "=" in override and "in all" not in says and "column" not in says:
        assert error.where.startswith(f"--set {override[:70]}")


# Files that a plan names


def test_files_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the plan, then here, then the data folder: another of that name must not slip in."""
    beside, here, data = (tmp_path / name for name in ("beside", "here", "data"))
    for folder in (beside, here, data):
        folder.mkdir()
        (folder / "x.npz").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("FEDGRAFT_DATA", str(data))
    for folder in (beside, here, data):
        assert resolve("x.npz", beside) == folder / "x.npz"
        (folder / "x.npz").unlink()
    (data / "y.npz").touch()
    assert resolve("../shared/data/y.npz", beside) == data / "y.npz"
    assert resolve(str(data / "y.npz"), None) == data / "y.npz"
    assert str(resolve("sklearn:digits", beside)) == "sklearn:digits"
    with pytest.raises(UserError) as caught:
        resolve("x.npz", beside, remedy="make it")
    assert all(str(folder / "x.npz") in str(caught.value) for folder in (beside, here, data))
    assert "make it" in str(caught.value)
    with pytest.raises(UserError, match="FEDGRAFT_DATA"):
        resolve("x" * 5000, None)


# For people


def test_every_key_is_described() -> None:
    """`fedgraft validate --keys` is the reference; a key without a word about it cannot be used."""
    rows = describe_keys()
    assert all(row.description and row.type for row in rows)
    names = {row.key for row in rows}

    def leaves(data: dict[str, Any], prefix: str = "") -> set[str]:
        inner = (
            leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k}
            for k, v in data.items()
        )
        return set().union(*inner)

    for name in ready_plans():
        assert leaves(load_plan(name).model_dump(mode="json")) <= names
    defaults = {row.key: row.default for row in rows}
    assert (defaults["train.rounds"], defaults["name"], defaults["simulation"]) == (
        "10",
        "",
        "null",
    )


def test_ready_plans_are_beside_the_code() -> None:
    """They are package data; elsewhere an installed fedgraft would not find them."""
    assert {path.stem for path in READY_PLANS.iterdir() if path.suffix == ".yaml"} == set(
        ready_plans()
    )


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
TEXTS = """
name: notes
task: {kind: text-classification, classes: [a, b], text: note, target: kind}
backbone: {name: huggingface, weights: ./minilm}
adapter: {method: lora}
"""


def read_texts_plan(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(path)


def test_a_plan_of_texts_names_one_column_or_several(tmp_path: Path) -> None:
    """One column is the usual case, and is written as one word."""
    assert read_texts_plan(tmp_path, TEXTS).task.text == ("note",)
    several = TEXTS.replace("text: note", "text: [title, note]")
    assert read_texts_plan(tmp_path, several).task.text == ("title", "note")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("text: note, ", "", r"task\.text: missing[\s\S]*text: COLUMN"),
        ("text: note", "text: kind", "among the texts"),
        ("text: note", "columns: [note]", r"texts are named by `text`"),
        ("text-classification", "image-classification", "reads no texts"),
        ("weights: ./minilm", "image_size: 32", "texts have no pixels"),
        (", weights: ./minilm", "", r"is a model's folder[\s\S]*write the folder"),
        ("name: huggingface", "name: resnet18", "name: huggingface"),
        ("{name: huggingface, weights: ./minilm}", "{name: mlp, weights: a/b}", "reads no folders"),
        ("weights: ./minilm", "weights: ./m, max_length: 2", "max_length"),
        ("weights: ./minilm", "weights: ./m, pool: largest", r"backbone\.pool"),
        ("huggingface, weights: ./minilm", "fastai/awd-lstm, weights: ./m, pool: mean", "one way"),
        ("{name: huggingface, weights: ./minilm}", "{name: onnx-text, weights: a/b}", "no folders"),
        (", weights: ./minilm", ", weights: ./m, pool: native, volume: {}", "reads no volumes"),
        ("{method: lora}", "{method: lora}\ntrain: {augment: flip}", "is for images"),
    ],
)
def test_a_plan_of_texts_that_cannot_be_says_what_to_write(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    """A person who writes the first plan of texts learns from what is refused."""
    assert old in TEXTS
    with pytest.raises(UserError, match=words):
        read_texts_plan(tmp_path, TEXTS.replace(old, new))


def test_other_plans_have_no_length_of_texts(tmp_path: Path) -> None:
    """A key that nobody reads is a mistake of the person who wrote it."""
    plan = TEXTS.replace("{kind: text-classification, classes: [a, b], text: note, target: kind}",
                         "{kind: image-classification, classes: [a, b]}")  # fmt: skip
    plan = plan.replace("{name: huggingface, weights: ./minilm}", "{name: resnet18, max_length: 9}")
    with pytest.raises(UserError, match="reads no texts"):
        read_texts_plan(tmp_path, plan)
