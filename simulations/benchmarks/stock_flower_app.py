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

from fedgraft.common.model.grafted_model import GraftedModel
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


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train for one local epoch."""
    model = _receive_model(message, context)
    shard = _shard_of(context)
    data = TensorDataset(shard.train_inputs, shard.train_labels)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    running = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()

    numbers = {"train_loss": running / len(loader), "num-examples": len(data)}
    arrays = ArrayRecord(model.adapter_state())  # pyright: ignore[reportArgumentType, reportCallIssue]
    reply = RecordDict({"arrays": arrays, "metrics": MetricRecord(numbers)})
    return Message(reply, reply_to=message)


@client.evaluate()
@torch.no_grad()
def evaluate(message: Message, context: Context) -> Message:
    """Measure accuracy on this client's tests."""
    model = _receive_model(message, context)
    shard = _shard_of(context)
    data = TensorDataset(shard.test_inputs, shard.test_labels)
    correct = 0
    for inputs, labels in DataLoader(data, batch_size=EVALUATION_BATCH):
        correct += int((model(inputs).argmax(1) == labels).sum())
    numbers = MetricRecord({"eval_acc": correct / len(data), "num-examples": len(data)})
    return Message(RecordDict({"metrics": numbers}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Average over all clients; write the last model's accuracy where the run config says."""
    config = context.run_config
    model = new_model(str(config["adapter"]), int(config["seed"]))
    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=nodes)
    initial = ArrayRecord(model.adapter_state())  # pyright: ignore[reportArgumentType]
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS)
    model.load_adapter_state(result.arrays.to_torch_state_dict())
    measured = accuracy(model, load_shards(Path(str(config["shards"]))))
    Path(str(config["result"])).write_text(json.dumps({"accuracy": measured}))


def _receive_model(message: Message, context: Context) -> GraftedModel:
    torch.set_num_threads(1)
    config = context.run_config
    model = new_model(str(config["adapter"]), int(config["seed"]))
    arrays = message.content.array_records["arrays"]
    model.load_adapter_state(arrays.to_torch_state_dict())
    return model


def _shard_of(context: Context) -> Shard:
    number = int(context.node_config["partition-id"])
    return _load_once(str(context.run_config["shards"]), number)


@cache
def _load_once(path: str, number: int) -> Shard:
    return load_shard(Path(path), number)
