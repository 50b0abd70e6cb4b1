"""Apple's pfl on the workload: FederatedAveraging on its SimulatedBackend, the same adapters, one
process.

    build/bench/pfl/bin/python -m fedgraft.simulations.benchmarks.with_pfl ADAPTER SEED SHARDS

As pfl's own benchmarks do, the model is measured centrally (CentralEvaluationCallback) in every
round.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from fedgraft.simulations.benchmarks.workload import (
    BATCH,
    EVALUATION_BATCH,
    NODES,
    RATE,
    ROUNDS,
    Shard,
    accuracy,
    load_shards,
    new_model,
    report,
)


class Network(nn.Module):
    """The grafted model with the two methods that pfl asks for."""

    def __init__(self, adapter: str, seed: int) -> None:
        super().__init__()
        self.model = new_model(adapter, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs → logits."""
        return self.model(x)

    def loss(self, inputs: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(inputs), labels)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, labels: Tensor, eval: bool = False) -> dict[str, Weighted]:
        """Accuracy."""
        correct = int((self(inputs).argmax(1) == labels).sum())
        return {"accuracy": Weighted(correct, len(labels))}


def run(adapter: str, seed: int, shards_path: Path) -> None:
    """Train, measure, report."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    shards = load_shards(shards_path)
    network = Network(adapter, seed)
    started = time.perf_counter()
    average(network, shards)
    seconds = time.perf_counter() - started
    report(
        accuracy=accuracy(network, shards),
        seconds=seconds,
        versions={"pfl": version("pfl"), "torch": torch.__version__},
    )


def average(network: Network, shards: Sequence[Shard]) -> None:
    """Train by pfl's federated averaging."""
    model = PyTorchModel(
        model=network,
        local_optimizer_create=make_local_optimizer,
        central_optimizer=torch.optim.SGD(select_trainable(network.parameters()), lr=1.0),
    )
    training = deal_to_users(shards)
    evaluation = NNEvalHyperParams(local_batch_size=EVALUATION_BATCH)
    measure = CentralEvaluationCallback(join_tests(shards), model_eval_params=evaluation)
    backend = SimulatedBackend(
        training_data=training,
        val_data=training,
        postprocessors=[WeightByDatapoints()],
    )
    algorithm = NNAlgorithmParams(
        central_num_iterations=ROUNDS,
        evaluation_frequency=ROUNDS + 1,
        train_cohort_size=NODES,
        val_cohort_size=None,
    )
    steps = NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=RATE,
        local_batch_size=BATCH,
        local_max_grad_norm=None,
    )
    FederatedAveraging().run(
        algorithm_params=algorithm,
        backend=backend,
        model=model,
        model_train_params=steps,
        model_eval_params=evaluation,
        callbacks=[measure],
    )


def make_local_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return AdamW over what is trained."""
    return torch.optim.AdamW(select_trainable(parameters), lr=lr, weight_decay=0.0)


def select_trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that are trained."""
    return [p for p in parameters if p.requires_grad]


def deal_to_users(shards: Sequence[Shard]) -> FederatedDataset:
    """Return each shard as a user's data."""
    users = {}
    for number, shard in enumerate(shards):
        tensors = (shard.train_inputs, shard.train_labels)
        users[str(number)] = PyTorchTensorDataset(tensors, user_id=str(number))
    sampler = get_user_sampler("minimize_reuse", list(users))
    return FederatedDataset(users.__getitem__, sampler)


def join_tests(shards: Sequence[Shard]) -> Dataset:
    """Return all shards' tests together."""
    inputs = torch.cat([shard.test_inputs for shard in shards])
    labels = torch.cat([shard.test_labels for shard in shards])
    return Dataset([inputs, labels])


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
