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
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.simulations.benchmarks.workload import (
    BATCH,
    RATE,
    ROUNDS,
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
        self.block = net.layer3[-1] if adapter == "lora" else None  # pyright: ignore[reportIndexIssue]
        self.linear = net.linear

    def forward(self, x: Tensor) -> Tensor:
        """Activations (n, 64, 8, 8), or pooled ones (n, 64) for the head → logits."""
        if self.block is not None:
            x = self.block(x).mean((2, 3))  # pyright: ignore
        return self.linear(x)  # pyright: ignore


def prefix_of(net: nn.Module, adapter: str) -> Callable[[Tensor], Tensor]:
    """The frozen part before the tail."""

    def prefix(x: Tensor) -> Tensor:
        x = F.relu(net.bn1(net.conv1(x)))  # pyright: ignore[reportCallIssue]
        blocks = [*net.layer1, *net.layer2, *net.layer3]  # pyright: ignore[reportGeneralTypeIssues]
        for block in blocks[:-1] if adapter == "lora" else blocks:
            x = block(x)
        return x if adapter == "lora" else x.mean((2, 3))

    return prefix


def run(adapter: str, seed: int, shards_path: Path, cached: bool) -> None:
    """Train, measure, report."""
    torch.manual_seed(seed)
    shards = load_shards(shards_path)
    model = new_model(adapter, seed)
    started = time.perf_counter()
    data = [(shard.train_inputs, shard.test_inputs) for shard in shards]
    net: nn.Module = model
    if cached:
        net = Tail(model.net, adapter)
        prefix = prefix_of(model.net, adapter)
        with torch.no_grad():
            data = [
                tuple(torch.cat([prefix(x) for x in torch.split(part, 256)]) for part in pair)
                for pair in data
            ]
    trainable = [p for p in net.parameters() if p.requires_grad]
    sizes = torch.tensor([len(shard.train_labels) for shard in shards], dtype=torch.float32)
    for _ in range(ROUNDS):
        received = [p.detach().clone() for p in trainable]
        total = [torch.zeros_like(p) for p in trainable]
        for (train, test), shard, weight in zip(
            data, shards, (sizes / sizes.sum()).tolist(), strict=True
        ):
            with torch.no_grad():
                for p, value in zip(trainable, received, strict=True):
                    p.copy_(value)
                int((net(test).argmax(1) == shard.test_labels).sum())
            optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
            for positions in torch.split(torch.randperm(len(train)), BATCH):
                loss = F.cross_entropy(net(train[positions]), shard.train_labels[positions])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for sum_, p in zip(total, trainable, strict=True):
                sum_.add_(p.detach(), alpha=weight)
        with torch.no_grad():
            for p, value in zip(trainable, total, strict=True):
                p.copy_(value)
    seconds = time.perf_counter() - started
    report(accuracy=accuracy(model, shards), seconds=seconds, versions={"torch": torch.__version__})


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "cached")
