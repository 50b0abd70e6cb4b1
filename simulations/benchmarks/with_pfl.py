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
        return {"accuracy": Weighted(int((self(inputs).argmax(1) == labels).sum()), len(labels))}


def run(adapter: str, seed: int, shards_path: Path) -> None:
    """Train, measure, report."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    shards = load_shards(shards_path)
    network = Network(adapter, seed)
    started = time.perf_counter()
    trainable = [p for p in network.parameters() if p.requires_grad]
    model = PyTorchModel(
        model=network,
        local_optimizer_create=lambda parameters, lr: torch.optim.AdamW(
            [p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0
        ),
        central_optimizer=torch.optim.SGD(trainable, lr=1.0),
    )
    users = {
        str(number): PyTorchTensorDataset(
            (shard.train_inputs, shard.train_labels), user_id=str(number)
        )
        for number, shard in enumerate(shards)
    }
    sampler = get_user_sampler("minimize_reuse", list(users))
    training = FederatedDataset(lambda user: users[user], sampler)
    tests = Dataset(
        [torch.cat([s.test_inputs for s in shards]), torch.cat([s.test_labels for s in shards])]
    )
    measured = NNEvalHyperParams(local_batch_size=EVALUATION_BATCH)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ROUNDS,
            evaluation_frequency=ROUNDS + 1,
            train_cohort_size=NODES,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=training, val_data=training, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=RATE,
            local_batch_size=BATCH,
            local_max_grad_norm=None,
        ),
        model_eval_params=measured,
        callbacks=[CentralEvaluationCallback(tests, model_eval_params=measured)],
    )
    seconds = time.perf_counter() - started
    report(
        accuracy=accuracy(network, shards),
        seconds=seconds,
        versions={"pfl": version("pfl"), "torch": torch.__version__},
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
