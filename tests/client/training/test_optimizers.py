"""Our optimizers against torch's own: the same bits after many steps, and no slow import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fedgraft.client.training.local_steps import build_optimizer
from fedgraft.client.training.optimizers import new_optimizer
from fedgraft.common.plan.train_section import OptimizerSection


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_same_bits_as_torch(name, decay):
    """Another order of operations, a forgotten bias correction, decay in the wrong place, a lost
    momentum.
    """
    chosen = OptimizerSection(name=name, weight_decay=decay)
    generator = torch.Generator().manual_seed(1)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    steps, reference = (
        new_optimizer(ours.parameters(), chosen, 0.05),
        build_optimizer(theirs, chosen, 0.05),
    )
    for _ in range(25):
        x = torch.randn(7, 5, generator=generator)
        for net, optimizer in ((ours, steps), (theirs, reference)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for mine, his in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, his)


def test_a_parameter_without_a_gradient_stays():
    """Weight decay or momentum that moves what the loss does not touch."""
    still, moved = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = new_optimizer([still, moved], OptimizerSection(weight_decay=0.5), 0.1)
    moved.sum().backward()
    optimizer.step()
    assert torch.equal(still, torch.ones(2))
    assert not torch.equal(moved, torch.ones(2))


def test_training_imports_no_compiler():
    """A second of imports in every process: torch._dynamo comes with the first of torch's own
    optimizers.
    """
    program = (
        "import sys, torch; from fedgraft.client.training.optimizers import new_optimizer; from"
        " fedgraft.common.plan.train_section import OptimizerSection\n"
        "p = torch.nn.Parameter(torch.ones(2)); o ="
        " new_optimizer([p], OptimizerSection(), 0.1)\np.sum().backward(); o.step();"
        " sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
