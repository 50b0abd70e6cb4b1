"""Who computes the frozen part fastest on the processor: torch as it is, `torch.compile`, or ONNX
Runtime; in float32 and in bfloat16.

    python -m fedgraft.simulations.benchmarks.frozen_runtimes [--repeats 5] [--threads 1]

The backbone whole, up to its features; random weights, made-up images. Every row's variants take
turns in one process; figures are medians of processor time in milliseconds for a batch, after two
to warm up, and what it takes to be ready: compiled, or exported and opened. In bfloat16 it is the
frozen part of a head (`frozen_precision.py`); compiled is the same, its stages in one function.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.frozen_precision import run_frozen_in_bfloat16
from fedgraft.common.model.frozen_prefix import FrozenPrefix, frozen_prefix
from fedgraft.common.model.grafted_model import graft
from fedgraft.simulations.benchmarks.cards import take_turns
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

SIDE = 224
NETWORKS = ("resnet50", "vit_b_16")
HEAD = (
    "network",
    "torch, float32",
    "compiled",
    "ONNX Runtime",
    "torch, bfloat16",
    "compiled, bfloat16",
    "ready: compiled; ONNX Runtime; compiled, bfloat16 (s)",
)


def main() -> None:
    """Measure, print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = ResultTable(HEAD)
    table.print_head()
    for name in NETWORKS:
        table.add(name, *measure(name, options.batch, options.threads, options.repeats))
        table.print_last()
    notes = [f"batch {options.batch}, {options.threads} thread"]
    record("cards", "runtimes", table, packages=("torch", "onnxruntime"), notes=notes)


@torch.no_grad()
def measure(name: str, batch: int, threads: int, repeats: int) -> list[str]:
    """Return the cells of a network's row."""
    backbone = load_backbone(name, image_size=SIDE)
    x = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    exact = open_prefix(backbone, bfloat16=False)
    lower = open_prefix(backbone, bfloat16=True)
    # its weights are rounded when it first runs
    lower(x[:1])
    compiled, first = make_ready(lambda: torch.compile(exact), x)
    lower_compiled, third = make_ready(lambda: torch.compile(lower), x)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        session, second = make_ready(lambda: open_session(backbone.net, x, file, threads), x)
        runs = [exact, compiled, session, lower, lower_compiled]
        check_same(exact(x), compiled(x), session(x))
        bound = [lambda run=run: run(x) for run in runs]
        medians = take_turns(bound, [time.process_time] * len(runs), repeats)
    ready = "; ".join(f"{seconds:.0f}" for seconds in (first, second, third))
    return [*(f"{1000 * seconds:.0f}" for seconds in medians), ready]


def open_prefix(backbone: Backbone, *, bfloat16: bool) -> FrozenPrefix:
    """Return the frozen part of a head's model."""
    model = graft(backbone, method="head", classes=2)
    if bfloat16:
        run_frozen_in_bfloat16(model)
    prefix = frozen_prefix(model)
    assert prefix is not None
    return prefix


def make_ready(
    make: Callable[[], Callable[[Tensor], Tensor]], x: Tensor
) -> tuple[Callable[[Tensor], Tensor], float]:
    """Make a run and let it run once; return it, and the seconds that both took."""
    started = time.perf_counter()
    run = make()
    run(x)
    return run, time.perf_counter() - started


def open_session(net: nn.Module, x: Tensor, file: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Export a network and open it in ONNX Runtime."""
    import onnxruntime

    with warnings.catch_warnings():
        # the other exporter needs a package more
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> Tensor:
        (found,) = session.run(None, {"x": inputs.numpy()})
        return torch.from_numpy(np.asarray(found))

    return run


def check_same(expected: Tensor, *others: Tensor) -> None:
    """Raise `AssertionError` where one computes something else."""
    for other in others:
        torch.testing.assert_close(other.reshape(expected.shape), expected, atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    main()
