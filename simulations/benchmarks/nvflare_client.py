"""What runs at each client of `with_nvflare.py`: NVIDIA FLARE's client API around a plain training
loop.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedgraft.simulations.benchmarks.workload import BATCH, RATE, correct, load_shard, new_model


class Trained(nn.Module):
    """What is trained, and nothing else: the model that the server keeps."""

    def __init__(self, adapter: str, seed: int) -> None:
        super().__init__()
        for name, value in new_model(adapter, seed).adapter_state().items():
            _, _, last = name.rpartition(".")
            self._holder(name).register_parameter(last, nn.Parameter(value))

    def _holder(self, name: str) -> nn.Module:
        """Return the module that holds a parameter; make it and those above it."""
        module: nn.Module = self
        *parents, _ = name.split(".")
        for part in parents:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # pyright: ignore[reportAssignmentType]
        return module


def main(adapter: str, seed: int, shards: Path) -> None:
    """Receive, measure, train, send; until the server ends it."""
    # here, since the server imports this file for `Trained` alone
    import nvflare.client as flare

    flare.init()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    # site-1 … site-10
    _, _, site = flare.get_site_name().rpartition("-")
    shard = load_shard(shards, int(site) - 1)
    data = TensorDataset(shard.train_inputs, shard.train_labels)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    model = new_model(adapter, seed)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        state = {name: torch.as_tensor(value) for name, value in received.params.items()}
        model.load_adapter_state(state)
        right = correct(model, shard.test_inputs, shard.test_labels)
        train_epoch(model, loader)
        answer = flare.FLModel(
            params=model.adapter_state(),
            metrics={"accuracy": right / len(shard.test_labels)},
            meta={"NUM_STEPS_CURRENT_ROUND": len(shard.train_labels)},
        )
        flare.send(answer)


def train_epoch(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Pass over the data once."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    for inputs, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
