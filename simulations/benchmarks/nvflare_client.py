"""What runs at each client of `with_nvflare.py`: NVIDIA FLARE's client API around a plain training
loop.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedgraft.simulations.benchmarks.workload import BATCH, RATE, correct, load_shard, new_model


class Trained(nn.Module):
    """What is trained, and nothing else: the model that the server keeps."""

    def __init__(self, adapter: str, seed: int) -> None:
        super().__init__()
        for name, value in new_model(adapter, seed).adapter_state().items():
            self._holder(name).register_parameter(name.rpartition(".")[2], nn.Parameter(value))

    def _holder(self, name: str) -> nn.Module:
        module: nn.Module = self
        for part in name.split(".")[:-1]:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # pyright: ignore[reportAssignmentType]
        return module


def main(adapter: str, seed: int, shards: Path) -> None:
    """Receive, measure, train, send; until the server ends it."""
    import nvflare.client as flare

    flare.init()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    number = int(flare.get_site_name().rpartition("-")[2]) - 1  # site-1 … site-10
    shard = load_shard(shards, number)
    loader = DataLoader(
        TensorDataset(shard.train_inputs, shard.train_labels), batch_size=BATCH, shuffle=True
    )
    model = new_model(adapter, seed)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_adapter_state(
            {name: torch.as_tensor(value) for name, value in received.params.items()}
        )
        right = correct(model, shard.test_inputs, shard.test_labels)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
        )
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        flare.send(
            flare.FLModel(
                params=model.adapter_state(),
                metrics={"accuracy": right / len(shard.test_labels)},
                meta={"NUM_STEPS_CURRENT_ROUND": len(shard.train_labels)},
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
