"""The floor: federated averaging in plain PyTorch, one process, no framework, nothing but the
arithmetic.

    python -m fedgraft.simulations.benchmarks.floor ADAPTER SEED SHARDS full|cached

`full` runs the whole network at every step. `cached` computes once what enters the first trainable
layer, as fedgraft does. Both measure the received model on every node's tests in every round, as
fedgraft does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.simulations.benchmarks.workload import (
    BATCH,
    RATE,
    ROUNDS,
    Shard,
    accuracy,
    load_shards,
    new_model,
    report,
)


class Tail(nn.Module):
    """What of a CIFAR ResNet follows its frozen prefix: the last block and the head, or the head
    alone.
    """

    def __init__(self, net: nn.Module, adapter: str) -> None:
        super().__init__()
        self.block = None
        if adapter == "lora":
            self.block = net.layer3[-1]  # pyright: ignore[reportIndexIssue]
        self.linear = net.linear

    def forward(self, x: Tensor) -> Tensor:
        """Activations (n, 64, 8, 8), or pooled ones (n, 64) for the head → logits."""
        if self.block is not None:
            x = self.block(x).mean((2, 3))  # pyright: ignore
        return self.linear(x)  # pyright: ignore


def prefix_of(net: nn.Module, adapter: str) -> Callable[[Tensor], Tensor]:
    """Return the frozen part before the tail."""
    blocks = [*net.layer1, *net.layer2, *net.layer3]  # pyright: ignore[reportGeneralTypeIssues]
    if adapter == "lora":
        blocks.pop()

    def prefix(x: Tensor) -> Tensor:
        x = F.relu(net.bn1(net.conv1(x)))  # pyright: ignore[reportCallIssue]
        for block in blocks:
            x = block(x)
        return x if adapter == "lora" else x.mean((2, 3))

    return prefix


@torch.no_grad()
def apply_once(prefix: Callable[[Tensor], Tensor], shard: Shard) -> Shard:
    """Return a shard whose inputs are what enters the tail."""
    return Shard(
        train_inputs=_in_pieces(prefix, shard.train_inputs),
        train_labels=shard.train_labels,
        test_inputs=_in_pieces(prefix, shard.test_inputs),
        test_labels=shard.test_labels,
    )


def _in_pieces(prefix: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([prefix(piece) for piece in torch.split(inputs, 256)])


def run(adapter: str, seed: int, shards_path: Path, cached: bool) -> None:
    """Train, measure, report."""
    torch.manual_seed(seed)
    shards = load_shards(shards_path)
    model = new_model(adapter, seed)
    started = time.perf_counter()
    net: nn.Module = model
    data = shards
    if cached:
        net = Tail(model.net, adapter)
        prefix = prefix_of(model.net, adapter)
        data = []
        for shard in shards:
            data.append(apply_once(prefix, shard))
    average(net, data)
    seconds = time.perf_counter() - started
    report(accuracy=accuracy(model, shards), seconds=seconds, versions={"torch": torch.__version__})


def average(net: nn.Module, data: Sequence[Shard]) -> None:
    """Train by federated averaging, weighted by examples."""
    trainable = [p for p in net.parameters() if p.requires_grad]
    sizes = torch.tensor([len(shard.train_labels) for shard in data], dtype=torch.float32)
    weights = (sizes / sizes.sum()).tolist()
    for _ in range(ROUNDS):
        received = [p.detach().clone() for p in trainable]
        total = [torch.zeros_like(p) for p in trainable]
        for shard, weight in zip(data, weights, strict=True):
            _copy(received, trainable)
            _measure(net, shard)
            train_epoch(net, trainable, shard)
            for sum_, p in zip(total, trainable, strict=True):
                sum_.add_(p.detach(), alpha=weight)
        _copy(total, trainable)


def train_epoch(net: nn.Module, trainable: Sequence[nn.Parameter], shard: Shard) -> None:
    """Pass over a shard's training data once."""
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    for positions in torch.split(torch.randperm(len(shard.train_inputs)), BATCH):
        outputs = net(shard.train_inputs[positions])
        loss = F.cross_entropy(outputs, shard.train_labels[positions])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _measure(net: nn.Module, shard: Shard) -> int:
    return int((net(shard.test_inputs).argmax(1) == shard.test_labels).sum())


@torch.no_grad()
def _copy(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "cached")
