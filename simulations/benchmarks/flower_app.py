"""A stock Flower app on the workload, as Flower's documentation writes one: FedAvg, a ClientApp,
full forward passes.

`with_flower.py` bundles this file by itself. Only what is trained travels; the backbone is loaded
at each client.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader, TensorDataset

from fedgraft.simulations.benchmarks.workload import (
    BATCH,
    EVALUATION_BATCH,
    RATE,
    ROUNDS,
    Shard,
    accuracy,
    load_shard,
    load_shards,
    new_model,
)

client = ClientApp()
server = ServerApp()


@cache
def _shard(path: str, number: int) -> Shard:
    return load_shard(Path(path), number)


def _loaders(context: Context) -> tuple[DataLoader, DataLoader]:
    shard = _shard(str(context.run_config["shards"]), int(context.node_config["partition-id"]))
    train = TensorDataset(shard.train_inputs, shard.train_labels)
    test = TensorDataset(shard.test_inputs, shard.test_labels)
    return DataLoader(train, batch_size=BATCH, shuffle=True), DataLoader(
        test, batch_size=EVALUATION_BATCH
    )


def _model(message: Message, context: Context) -> torch.nn.Module:
    torch.set_num_threads(1)
    model = new_model(str(context.run_config["adapter"]), int(context.run_config["seed"]))
    model.load_adapter_state(message.content.array_records["arrays"].to_torch_state_dict())
    return model


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch."""
    model = _model(message, context)
    loader, _ = _loaders(context)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    running = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
    numbers = {"train_loss": running / len(loader), "num-examples": len(loader.dataset)}  # pyright: ignore[reportArgumentType]
    arrays = ArrayRecord(model.adapter_state())  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord(numbers)}), reply_to=message
    )


@client.evaluate()
@torch.no_grad()
def evaluate(message: Message, context: Context) -> Message:
    """Accuracy on this client's tests."""
    model = _model(message, context)
    _, loader = _loaders(context)
    right = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in loader)
    count = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    numbers = MetricRecord({"eval_acc": right / count, "num-examples": count})
    return Message(RecordDict({"metrics": numbers}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all clients; writes the last model's accuracy where the run config says."""
    config = context.run_config
    model = new_model(str(config["adapter"]), int(config["seed"]))
    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=int(config["nodes"])
    )
    initial = ArrayRecord(model.adapter_state())  # pyright: ignore[reportArgumentType]
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS)
    model.load_adapter_state(result.arrays.to_torch_state_dict())
    found = accuracy(model, load_shards(Path(str(config["shards"]))))
    Path(str(config["result"])).write_text(json.dumps({"accuracy": found}))
