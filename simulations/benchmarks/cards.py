"""What a batch costs on each device and in each precision, side by side: the frozen pass, a plain
and a private step behind it, and the features of a closed form.

    python -m fedgraft.simulations.benchmarks.cards [--repeats 5] [--batch 32] [--threads 1]

Every row's variants take turns in one process; figures are medians in milliseconds, after one to
warm up: of processor time on the processor, of the clock on a card. Networks have random weights
and made-up records: only time is measured here. With a card, its columns are added; `make gpu` runs
this there.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.backbones import family_line
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.huggingface_folder import TOKENIZER_FILE
from fedgraft.common.backbones.huggingface_library import import_library
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.devices import describe_device, find_device, list_devices, prepare_device
from fedgraft.common.model.frozen_precision import run_frozen_in_bfloat16
from fedgraft.common.model.frozen_prefix import FrozenPrefix, frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import cross_entropies
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

CLASSES = 2
TOKENS = 128
MECHANISM = Mechanism(1.0, 0.1, 1, 32, 1.0)
PRECISIONS = ("float32", "bfloat16")
WAYS = ("frozen pass", "step", "private step", "closed form")
Run = Callable[[], object]


@dataclass(frozen=True)
class Network:
    """A backbone of the benchmark.

    Attributes:
        words: what it is called in the table.
        load: a folder that may be written → the backbone.
    """

    words: str
    load: Callable[[Path], Backbone]


def write_folder(folder: Path, model: str, config: str, sizes: Mapping[str, Any]) -> Path:
    """Write a Hugging Face folder of random weights with a tokenizer of one word."""
    from tokenizers import Tokenizer, models

    library = import_library()
    torch.manual_seed(0)
    getattr(library, model)(getattr(library, config)(**sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str())
    return folder


def load_minilm(folder: Path) -> Backbone:
    """Return a network of MiniLM's sizes (Wang et al. 2020: 6 layers, 384 wide)."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    write_folder(folder, "BertModel", "BertConfig", sizes)
    return load_backbone("huggingface", weights=folder, max_length=TOKENS)


def load_gpt2(folder: Path) -> Backbone:
    """Return a network of the sizes of GPT-2 small (12 layers, 768 wide)."""
    write_folder(folder, "GPT2Model", "GPT2Config", {})
    return load_backbone("huggingface", weights=folder, max_length=TOKENS)


NETWORKS = {
    "resnet50": Network("ResNet-50, 224 px", lambda _: load_backbone("resnet50", image_size=224)),
    "vit_b_16": Network("ViT-B/16, 224 px", lambda _: load_backbone("vit_b_16", image_size=224)),
    "minilm": Network(f"MiniLM, {TOKENS} tokens", load_minilm),
    "gpt2": Network(f"GPT-2 small, {TOKENS} tokens", load_gpt2),
}


def main() -> None:
    """Measure, print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices = [name for name in ("cpu", list_devices()[0]) if name != "mps"]
    variants = [(device, each) for device in dict.fromkeys(devices) for each in PRECISIONS]
    head = [
        "network",
        "way",
        *(f"{device}, {precision}" for device, precision in variants),
        "ratio",
    ]
    table = ResultTable(head, words=(0, 1))
    table.print_head()
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            measure_network(NETWORKS[name], Path(folder), variants, options, table)
    described = [describe_device(find_device(device)) for device in dict.fromkeys(devices)]
    notes = [
        f"batch {options.batch}, {options.threads} thread; {'; '.join(described)}",
        "LoRA of rank 8 in the last block; ratio: the first column over the last",
    ]
    record("cards", "cards", table, packages=("torch", "torchvision", "transformers"), notes=notes)


def measure_network(
    network: Network,
    folder: Path,
    variants: list[tuple[str, str]],
    options: argparse.Namespace,
    table: ResultTable,
) -> None:
    """Add one network's rows to the table."""
    backbone = network.load(folder)
    for way in WAYS:
        runs = [make_run(backbone, way, variant, options.batch) for variant in variants]
        clocks = [choose_clock(device) for device, _ in variants]
        medians = take_turns(runs, clocks, options.repeats)
        cells = [f"{1000 * seconds:.1f}" for seconds in medians]
        table.add(network.words, way, *cells, f"{medians[0] / medians[-1]:.1f}")
        table.print_last()


def make_run(backbone: Backbone, way: str, variant: tuple[str, str], batch: int) -> Run:
    """Return one of `WAYS` on a device and in a precision, with a model of its own."""
    device, _ = variant
    inputs = draw_inputs(backbone, batch)
    if way == "closed form":
        depths = DepthChoice("all", "mean", inputs.joined[:1])
        model = bring_to(graft(backbone, method="head", classes=CLASSES, depths=depths), variant)
        return functools.partial(_finished, device, functools.partial(model.features, inputs))
    model = graft(backbone, method="lora", classes=CLASSES, targets="last-block", rank=8)
    model = bring_to(model, variant)
    prefix = frozen_prefix(model)
    if prefix is None:
        raise RuntimeError(f"{backbone.name}: nothing is frozen in front of its last block")
    if way == "frozen pass":
        run = functools.partial(prefix, inputs.joined.to(model.device))
        return functools.partial(_finished, device, run)
    entering = prefix(inputs.joined)
    targets = torch.arange(batch) % CLASSES
    run = make_step(prefix, entering, targets, private=way == "private step")
    return functools.partial(_finished, device, run)


def bring_to(model: GraftedModel, variant: tuple[str, str]) -> GraftedModel:
    """Return a model on a device and in a precision."""
    name, precision = variant
    if precision == "bfloat16":
        run_frozen_in_bfloat16(model)
    device = find_device(name)
    prepare_device(device, tf32=False)
    return model.move_to(device)


def draw_inputs(backbone: Backbone, batch: int) -> Batch:
    """Return made-up records, as a backbone takes them."""
    material = family_line(backbone.name).material
    example = torch.zeros(1, 3, 224, 224)
    if material == "text":
        example = torch.zeros(1, TOKENS, dtype=torch.int64)
    return draw_probes(material, backbone.preprocess, Batch({"x": example}), batch)


def make_step(
    prefix: FrozenPrefix, entering: torch.Tensor, targets: torch.Tensor, *, private: bool
) -> Run:
    """Return a step of the trained part: its gradient, or what DP-SGD releases of it."""
    tail = prefix.tail
    here = targets.to(entering.device)
    parameters = list(tail.trainable_parameters().values())

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(tail(entering), here), parameters)

    def private_step() -> None:
        training = PrivateTraining(MECHANISM, cross_entropies)
        with make_private(tail, None, training, Randomness()) as model:
            model.gradient(entering, targets)

    return private_step if private else step


def _finished(device: str, run: Run) -> None:
    """Run, and wait until a card has."""
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def choose_clock(device: str) -> Callable[[], float]:
    """Return what seconds are read from."""
    return time.process_time if device == "cpu" else time.perf_counter


def take_turns(runs: list[Run], clocks: list[Callable[[], float]], repeats: int) -> list[float]:
    """Return the median seconds of each, taken in turns after one to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for run, clock, own in zip(runs, clocks, times, strict=True):
            started = clock()
            run()
            own.append(clock() - started)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    main()
