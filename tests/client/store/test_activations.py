"""Kept activations: the same bits as without them, whatever happens to the file."""

from __future__ import annotations

import json
import multiprocessing
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import NodeTask, open_splits, working_model
from fedgraft.client.privacy.dp_sgd import PrivateTraining, train_privately
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.round import measure, run_round
from fedgraft.client.store.activation_cache import SUFFIX, ActivationCache, open_cache
from fedgraft.client.store.activation_file import ActivationFile, ActivationForm
from fedgraft.client.store.activations import Activations
from fedgraft.common.errors import UserErrors
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import cross_entropies

PLAN = """
name: cut
task: {kind: image-classification, classes: [five, six, seven], labels: [5, 6, 7]}
backbone: {name: cifar-resnet8, image_size: 16}
adapter: {method: lora, targets: last-block, rank: 2}
train: {rounds: 2, local_epochs: 1, batch_size: 24, optimizer: {lr: 1.0e-2}}
"""


def a_task(folder: Path, *overrides: str, cache: str = "{}", name: str = "node") -> NodeTask:
    """A task on scikit-learn's digits, its store in `folder`."""
    # in one step each: two processes write the same
    write_whole(folder / "plan.yaml", PLAN)
    plan: Plan = load_plan(folder / "plan.yaml", overrides)
    node_text = f"name: n\ndata: {{path: 'sklearn:digits'}}\nstore: store\ncache: {cache}\n"
    write_whole(folder / f"{name}.yaml", node_text)
    node = load_node(folder / f"{name}.yaml")
    backbone = plan_backbone(plan, folder)
    train, test = open_splits(node, plan, backbone.preprocess)
    model = working_model(backbone, plan)
    return NodeTask(
        node.name, plan, model, train, test, model.frozen_fingerprint(), cache=open_cache(node)
    )


def trained(task: NodeTask) -> dict[str, torch.Tensor]:
    """The adapter after both rounds."""
    state = task.model.adapter_state()
    for round_ in (1, 2):
        state = run_round(task, state, round_).state
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("adapter.method=head", "adapter.targets=auto"),
        ("adapter.method=bottleneck",),
        ("backbone.precision=bfloat16",),
    ],
    ids=["lora", "head", "bottleneck", "bfloat16"],
)
def test_the_same_bits_with_the_cache_without_it_and_from_disk(tmp_path, overrides, monkeypatch):
    """Results that depend on whether the activations were kept: batches of 24 against blocks of 32,
    test batches of 256, rows computed in another order. The third run finds everything on disk and
    computes nothing.
    """
    without = a_task(tmp_path, *overrides, cache="{enabled: false}")
    cold, warm = a_task(tmp_path, *overrides), a_task(tmp_path, *overrides)
    wanted = trained(without)
    assert equal(trained(cold), wanted)
    _, split = warm.for_training()
    assert isinstance(split, Activations)
    computed = []
    monkeypatch.setattr(Activations, "compute", lambda _, rows: computed.append(rows))
    split.inputs(torch.arange(len(split)))
    assert not computed
    monkeypatch.undo()
    assert equal(trained(warm), wanted)
    sums = [measure(task, wanted).to_flat() for task in (without, warm)]
    assert sums[0] == sums[1]


def test_kept_rows_are_close_to_a_whole_forward_pass(tmp_path):
    """Rows of other records, or of another layer: whole forward passes agree within rounding."""
    task = a_task(tmp_path)
    model, split = task.for_training()
    positions = torch.randperm(len(split))[:50]
    with torch.inference_mode():
        whole = task.model(task.train.inputs(positions))
        for _ in range(2):  # computed, then read
            torch.testing.assert_close(model(split.inputs(positions)), whole, rtol=1e-5, atol=1e-6)


def test_private_training_is_the_same_with_the_cache(tmp_path):
    """DP-SGD on other activations; Poisson batches have every size."""
    found = []
    for cache in ("{enabled: false}", "{}", "{}"):
        task = a_task(
            tmp_path,
            "privacy.mode=sample",
            "privacy.noise_multiplier=1",
            "privacy.delta=1e-5",
            cache=cache,
        )
        model, split = task.for_training()
        mechanism = Mechanism(1.0, 0.1, 5, 0.1 * len(split), 1.0)
        optimizer = torch.optim.SGD(task.model.trainable_parameters().values(), lr=0.1)
        training = PrivateTraining(mechanism, cross_entropies)
        train_privately(model, split, optimizer, training, Randomness(b"s"))
        found.append(task.model.adapter_state())
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


def test_float16_halves_the_file_and_rounds(tmp_path):
    """Other bits from disk than from the computation, or a file as large as before."""
    sizes, states = [], []
    for number, dtype in enumerate(("float32", "float16", "float16")):
        (folder := tmp_path / str(number)).mkdir()
        cache = "{enabled: false}" if number == 2 else "{}"
        task = a_task(folder, f"train.activations={dtype}", cache=cache)
        states.append(trained(task))
        sizes.append(sum(path.stat().st_size for path in task.cache.files()) if task.cache else 0)
    assert 0.4 < sizes[1] / sizes[0] < 0.6
    assert equal(states[1], states[2])
    assert not equal(states[0], states[1])
    values = []
    for name, dtype in (("0", "float32"), ("1", "float16")):
        _, split = a_task(tmp_path / name, f"train.activations={dtype}").for_training()
        values.append(split.inputs(torch.arange(40)).only)
    exact, rounded = values
    torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=2**-24)


def test_nothing_is_kept_where_images_are_augmented_or_everything_trains(tmp_path):
    """A frozen copy of augmented images, or a file of the inputs themselves."""
    flipped = a_task(tmp_path, "train.augment=flip")
    assert flipped.for_training() == (flipped.model, flipped.train)
    assert isinstance(flipped.for_tests()[1], Activations)
    whole = a_task(tmp_path, "adapter.method=full", "adapter.targets=auto")
    assert whole.for_training() == (whole.model, whole.train)


def test_damaged_rows_are_computed_again(tmp_path):
    """A row torn by a crash, or a disk that lost bits, would train on what no record is like."""
    wanted = trained(a_task(tmp_path))
    (path,) = (tmp_path / "store" / "activations").glob(f"*{SUFFIX}")
    content = bytearray(path.read_bytes())
    content[-40_000::7] = bytes(len(content[-40_000::7]))
    content[4096 + 400 : 4096 + 800] = b"\x01" * 400  # checksums of 100 rows
    path.unlink()
    path.write_bytes(content)
    assert equal(trained(a_task(tmp_path)), wanted)
    path.write_bytes(b"no header")
    assert equal(trained(a_task(tmp_path)), wanted)


def test_other_weights_another_cut_and_other_preprocessing_have_files_of_their_own(tmp_path):
    """Activations of another backbone, layer or image size, used as if they were these."""
    for overrides in ((), ("seed=8",), ("adapter.method=bottleneck",), ("backbone.image_size=8",)):
        a_task(tmp_path, *overrides).for_training()
    assert len(list((tmp_path / "store" / "activations").glob(f"*{SUFFIX}"))) == 4


def test_another_precision_and_other_instructions_have_files_of_their_own(tmp_path, monkeypatch):
    """Activations that a processor with AMX computed, used on one without; or float32 for both."""
    a_task(tmp_path).for_training()
    a_task(tmp_path, "backbone.precision=bfloat16").for_training()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    a_task(tmp_path).for_training()
    a_task(tmp_path, "backbone.precision=bfloat16").for_training()
    assert len(list((tmp_path / "store" / "activations").glob(f"*{SUFFIX}"))) == 3


def test_only_the_owner_may_read(tmp_path):
    """Features of patients' images, readable by every user of the machine."""
    trained(a_task(tmp_path))
    folder = tmp_path / "store" / "activations"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_size_is_bounded_and_the_longest_unused_goes_first(tmp_path):
    """A disk that fills up with the activations of plans of long ago."""
    first = a_task(tmp_path)
    first.for_training()
    assert first.cache is not None
    (oldest,) = first.cache.files()
    bound = int(oldest.stat().st_size * 1.5)
    second = a_task(tmp_path, "seed=8", cache=f"{{max_bytes: {bound}}}", name="bounded")
    second.for_training()
    assert second.cache is not None
    assert len(second.cache.files()) == 1
    assert oldest not in second.cache.files()
    small = a_task(tmp_path, "seed=9", cache="{max_bytes: 5000}", name="small")
    model, split = small.for_training()
    assert isinstance(split, Activations)
    assert split.file is None
    assert model is not small.model  # computed each time, and so the same bits
    assert len(second.cache.files()) == 1


def test_a_full_disk_costs_time_and_no_result(tmp_path, monkeypatch):
    """A node that cannot train because its cache is full."""
    wanted = trained(a_task(tmp_path, cache="{enabled: false}"))

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedgraft.client.store.activation_file.os.pwrite", full)
    assert equal(trained(a_task(tmp_path)), wanted)


def test_purging_while_a_node_works(tmp_path):
    """A purge that leaves something behind, or that a running node stumbles over."""
    task = a_task(tmp_path)
    wanted = trained(task)
    assert task.cache is not None
    assert task.cache.purge() == 1
    assert task.cache.files() == []
    task.model.load_adapter_state(a_task(tmp_path).model.adapter_state())
    assert equal(trained(task), wanted)
    assert len(task.cache.files()) == 1


def in_another_process(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.save(trained(a_task(Path(folder))), out)


@pytest.mark.slow
def test_two_processes_fill_one_file(tmp_path):
    """Two rounds at one node at once, each seeing half-written rows of the other."""
    wanted = trained(a_task(tmp_path, cache="{enabled: false}"))
    context = multiprocessing.get_context("spawn")
    outs = [str(tmp_path / f"{number}.pt") for number in range(2)]
    running = [
        context.Process(target=in_another_process, args=(str(tmp_path), out)) for out in outs
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert all(equal(torch.load(out, weights_only=True), wanted) for out in outs)


def test_threads_that_share_a_file(tmp_path):
    """The engine's threads: a row that one is writing, read by another."""
    tasks = [a_task(tmp_path) for _ in range(3)]
    wanted = trained(a_task(tmp_path, cache="{enabled: false}"))
    found: dict[int, dict[str, torch.Tensor]] = {}
    threads = [
        threading.Thread(target=lambda n=n, task=task: found.update({n: trained(task)}))
        for n, task in enumerate(tasks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(state, wanted) for state in found.values())
    assert len(found) == 3


def test_a_row_that_is_kept_while_it_is_read_is_not_taken_for_read(tmp_path):
    """Zeros that are trained on: copied before another thread kept the row, and believed since a
    third had seen it.
    """
    (tmp_path / "file").write_bytes(bytes(1 << 16))
    kept = ActivationFile(tmp_path / "file", ActivationForm((4,), False, "float32"), rows=3)
    rows, values, there = np.array([1]), np.arange(1, 5, dtype=np.float32)[None], kept._values

    class WhileOthersWork:
        def __getitem__(self, asked):
            copied = there[asked].copy()
            vars(kept)["_values"] = there
            kept.write(rows, values)
            _, missing = kept.read(rows)
            assert not missing.any()
            return copied

    vars(kept)["_values"] = WhileOthersWork()
    read, missing = kept.read(rows)
    assert missing.all() or np.array_equal(read, values)
    assert np.array_equal(kept.read(rows)[0], values)


def test_many_small_nodes_of_one_file_compute_it_once(tmp_path, monkeypatch):
    """Blocks of 32 in which 30 tasks are empty: ten times the work for nodes of a few records
    each.
    """
    task = a_task(tmp_path)
    train = task.train
    assert isinstance(train, Split)
    blocks = []
    read = train.records.source.read
    source = train.records.source
    object.__setattr__(
        source, "read", lambda rows, prepare=None: blocks.append(len(rows)) or read(rows, prepare)
    )
    try:
        for start in range(0, len(train), 3):
            part = Split(train.records, train.rows[start : start + 3], train.preparation)
            _, split = replace(task, train=part).for_training()
            split.inputs(torch.arange(len(split)))
    finally:
        object.__setattr__(source, "read", read)
    assert len(blocks) <= len(source) / 32 + 4


def test_the_verb(tmp_path, process_free_cli):
    """A purge that a person cannot do, or that says something else than it did."""
    trained(a_task(tmp_path))
    said = json.loads(process_free_cli("cache", str(tmp_path / "node.yaml"), "--json"))
    assert said["files"] == 1
    assert said["bytes"] > 0
    process_free_cli("cache", str(tmp_path / "node.yaml"), "--purge")
    assert (
        json.loads(process_free_cli("cache", str(tmp_path / "node.yaml"), "--json"))["files"] == 0
    )


@pytest.fixture
def process_free_cli() -> Callable[..., str]:
    """`fedgraft node …` in this process; gives what it prints."""
    from typer.testing import CliRunner

    from fedgraft.client.cli import node

    def run(*words: str) -> str:
        done = CliRunner().invoke(node, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_bound_that_is_no_number(tmp_path):
    with pytest.raises(UserErrors):
        a_task(tmp_path, cache="{max_bytes: lots}")


def test_an_empty_split(tmp_path):
    """A node without a test split, whose prefix would be tried on nothing."""
    task = a_task(tmp_path)
    assert isinstance(task.train, Split)
    nothing = Split(task.train.records, np.empty(0, np.int64), task.train.preparation)
    task = replace(task, test=nothing)
    assert measure(task, task.model.adapter_state()).examples == 0


def test_the_cache_of_a_node_is_in_its_store(tmp_path):
    task = a_task(tmp_path)
    assert task.cache == ActivationCache(tmp_path / "store" / "activations", 8 * 2**30)
