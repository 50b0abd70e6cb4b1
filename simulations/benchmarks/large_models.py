"""What memory a node needs to train adapters of a large network: as it is counted beforehand, and
as it is measured.

    python -m fedgraft.simulations.benchmarks.large_models [--networks vit_l_16 bert-large decoder]
        [--on-paper]

Random weights, made-up records: only memory and time are looked at. LoRA of rank 8 on every layer,
a step of `--batch` records, each row in a process of its own, which loads the backbone as a node
loads it: from the file that was handed out. Counted: `client/step_memory.py`. Measured: the most
that the process held during a step (VmHWM) above what it held before the backbone was loaded; a
file's pages that lie in memory are in it. `--on-paper` adds networks that are counted and not run:
their layers are made on `meta`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedgraft.client.open_on_card import probe_targets, take_step
from fedgraft.client.step_memory import count_step
from fedgraft.common.backbones.backbone import Backbone, build_network
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.family import NetworkShape, last_linear
from fedgraft.common.backbones.huggingface_library import import_library
from fedgraft.common.backbones.huggingface_shapes import TEXT_SHAPES, read_config, write_shape
from fedgraft.common.backbones.huggingface_tensors import DESCRIPTION
from fedgraft.common.backbones.quantization import Quantization, quantize_layers
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.inputs.text import TOKENIZER, TextPreparation
from fedgraft.common.model.assembly import load_network, plan_model
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_from_json
from fedgraft.simulations.benchmarks.cards import write_folder
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

BATCH = 8
TOKENS = 128
GIGABYTE = 1e9
PACKAGES = ("torch", "bitsandbytes", "transformers")
VARIANTS: tuple[tuple[Quantization | None, bool], ...] = (
    (None, False),
    (None, True),
    ("int8", True),
    ("nf4", True),
)


@dataclass(frozen=True)
class Network:
    """A large network.

    Attributes:
        words: in the table.
        name: in a plan.
        model, config, sizes: of the Hugging Face folder that is written; None: torchvision's.
    """

    words: str
    name: str = "huggingface"
    model: str = "GPT2Model"
    config: str = "GPT2Config"
    sizes: Mapping[str, Any] | None = None


def gpt2(words: str, width: int, layers: int, heads: int) -> Network:
    """Return a decoder with GPT-2's layers."""
    return Network(words, sizes={"n_embd": width, "n_layer": layers, "n_head": heads})


NETWORKS = {
    "vit_l_16": Network("ViT-L/16, 224 px", name="vit_l_16"),
    "bert-large": Network(
        f"BERT-large, {TOKENS} tokens",
        model="BertModel",
        config="BertConfig",
        sizes={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "decoder": gpt2(f"decoder of 1.1 billion values, {TOKENS} tokens", 1536, 36, 16),
}
ON_PAPER = {
    "gpt2-xl": gpt2(f"GPT-2 XL (1.6 billion), {TOKENS} tokens", 1600, 48, 25),
    "6.6": gpt2(f"decoder of 6.7 billion values, {TOKENS} tokens", 4096, 32, 32),
}


@dataclass(frozen=True)
class Row:
    """What a variant takes: bytes, seconds.

    Attributes:
        file: bytes that are handed out.
        weights, counted: of the frozen part, and in all.
        measured: in all; 0: not run.
        seconds: of a step.
    """

    file: int
    weights: int
    counted: int
    measured: int = 0
    seconds: float = 0.0


def main() -> None:
    """Measure, print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--on-paper", action="store_true")
    parser.add_argument("--one", help="a variant as JSON, in a process of its own: printed as JSON")
    options = parser.parse_args()
    if options.one is not None:
        asked = json.loads(options.one)
        print(json.dumps(asdict(measure(**asked))))
        return
    head = ["network", "weights", "gradient checkpointing", "handed out (GB)"]
    head += ["frozen weights (GB)", "a step, counted (GB)", "measured (GB)", "seconds"]
    table = ResultTable(head, words=(0, 1, 2))
    table.print_head()
    for name in options.networks:
        with tempfile.TemporaryDirectory(prefix="fedgraft-large-") as folder:
            write(NETWORKS[name], Path(folder))
            for kind, again in VARIANTS:
                asked = {"name": name, "folder": folder, "kind": kind, "again": again}
                asked |= {"batch": options.batch, "threads": options.threads}
                show(table, NETWORKS[name], kind, again, run_alone(asked))
    if options.on_paper:
        for network in ON_PAPER.values():
            for kind, again in VARIANTS:
                show(table, network, kind, again, count_on_paper(network, kind, again, options))
    record("large-models", "memory", table, packages=PACKAGES)


def show(
    table: ResultTable, network: Network, kind: Quantization | None, again: bool, row: Row
) -> None:
    """Add a row and print it."""
    sizes = [f"{count / GIGABYTE:.2f}" for count in (row.file, row.weights, row.counted)]
    measured = f"{row.measured / GIGABYTE:.2f}" if row.measured else "–"
    seconds = f"{row.seconds:.1f}" if row.measured else "–"
    table.add(network.words, kind or "float32", "yes" if again else "no", *sizes, measured, seconds)
    table.print_last()


def write(network: Network, folder: Path) -> None:
    """Write a network's weights as the coordinator has them."""
    if network.sizes is None:
        save_backbone(load_backbone(network.name), folder / "weights.safetensors", {})
        return
    write_folder(folder / "model", network.model, network.config, network.sizes)


def make_plan(
    network: Network, kind: Quantization | None, again: bool, batch: int, weights: str
) -> Plan:
    """Return the plan of a row."""
    task = {"kind": "image-classification", "classes": ["no", "yes"]}
    backbone: dict[str, Any] = {"name": network.name, "weights": weights, "quantization": kind}
    if network.sizes is not None:
        task |= {"kind": "text-classification", "text": "text", "target": "kind"}
        backbone["max_length"] = TOKENS
    plan = {
        "name": "large",
        "task": task,
        "backbone": backbone,
        "adapter": {"method": "lora", "rank": 8},
        "train": {"batch_size": batch, "gradient_checkpointing": again},
    }
    return plan_from_json(json.dumps(plan))


def run_alone(asked: Mapping[str, Any]) -> Row:
    """Measure a variant in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--one", json.dumps(asked)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Row(**json.loads(told.splitlines()[-1]))


def measure(
    name: str, folder: str, kind: Quantization | None, again: bool, batch: int, threads: int
) -> Row:
    """Load a network as a node does, count a step and take two."""
    torch.set_num_threads(threads)
    network = NETWORKS[name]
    source = Path(folder) / ("weights.safetensors" if network.sizes is None else "model")
    handed = Path(folder) / f"{kind}.safetensors"
    plan = make_plan(network, kind, again, batch, f"{source}/" if source.is_dir() else str(source))
    if not handed.is_file():
        # the coordinator's part, in a process that ends
        write_handed_out(plan, source, handed)
    own = plan.backbone.model_copy(update={"weights": str(handed), "quantization": None})
    plan = plan.model_copy(update={"backbone": own})
    before = read_status("VmRSS")
    backbone = load_network(plan, handed)
    model = plan_model(backbone, plan)
    example = INPUTS[plan.task.material].example(backbone.preprocess, plan.backbone, plan.task)
    inputs = draw_probes(plan.task.material, backbone.preprocess, example, batch)
    counted = count_step(model, plan, inputs)
    targets = probe_targets(plan, batch)
    optimizer = torch.optim.Adam(list(model.trainable_parameters().values()))
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        started = time.perf_counter()
        take_step(model, plan, inputs, targets)
        optimizer.step()
        seconds = time.perf_counter() - started
    measured = read_status("VmHWM") - before
    return Row(handed.stat().st_size, counted.weights, counted.in_all, measured, seconds)


def write_handed_out(plan: Plan, source: Path, handed: Path) -> None:
    """Write what the coordinator hands out, by a process of its own: nothing of it stays here."""
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from fedgraft.common.backbones.backbone_files import save_backbone\n"
        "from fedgraft.common.model.assembly import load_network\n"
        "from fedgraft.common.plan.plan_file import plan_from_json\n"
        "plan = plan_from_json(sys.argv[1])\n"
        "save_backbone(load_network(plan, Path(sys.argv[2])), Path(sys.argv[3]), {})\n"
    )
    command = [sys.executable, "-c", script, plan.model_dump_json(), str(source), str(handed)]
    subprocess.run(command, check=True)


def count_on_paper(
    network: Network, kind: Quantization | None, again: bool, options: argparse.Namespace
) -> Row:
    """Count a step of a network whose values are not made."""
    library = import_library()
    config = getattr(library, network.config)(**network.sizes or {}).to_dict()
    described = read_config(config, TEXT_SHAPES, None, network.words, None)
    files = {DESCRIPTION: write_shape(described), TOKENIZER: b""}
    net = build_network(network.name, NetworkShape(files=files), None)
    head_name, head = last_linear(net)
    net.set_submodule(head_name, nn.Identity())
    net.eval().requires_grad_(False)
    quantize_layers(net, head_name, kind)
    preparation = TextPreparation(TOKENS)
    backbone = Backbone(network.name, net, head_name, head.in_features, preparation, "on paper")
    plan = make_plan(network, kind, again, options.batch, "./on-paper/")
    inputs = Batch({"tokens": torch.zeros(options.batch, TOKENS, dtype=torch.int64)})
    counted = count_step(plan_model(backbone, plan), plan, inputs)
    return Row(counted.weights, counted.weights, counted.in_all)


def read_status(key: str) -> int:
    """Return a line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main()
