"""One ledger, three runs: ε counts everything that was ever run on the same records.

    python private_budget.py

Each hospital keeps a ledger. A second plan on the same records does not begin at zero, and a policy
sets a ceiling that no plan and no server can pass.
"""

from pathlib import Path

import fedgraft
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.privacy.statement import statement

PLAN = {
    "simulation.nodes": 2,
    "adapter.method": "head",
    "train.rounds": 2,
    "privacy.mode": "sample",
    "privacy.target_epsilon": 3.0,
}
CEILING = {"dp_required": True, "max_epsilon_total": 4.5, "max_delta": 1e-5}


def simulate(name: str, rate: float, **policy: object) -> None:
    """Run the plan with a learning rate of its own, on ledgers that outlast the runs."""
    changes = {**PLAN, "name": name, "train.optimizer.lr": rate}
    run = fedgraft.simulate(
        "digits", set=changes, out=f"runs/{name}", ledger="ledgers", policy=policy, progress=False
    )
    spent = run.result.privacy["node-0"].epsilon
    (records,) = statement(Ledger(Path("ledgers/node-0.sqlite")))["data_sets"]
    print(f"{name}: ε = {spent:.2f} for this plan, {records['epsilon']:.2f} for all so far")


fedgraft.pretrain("digits")
simulate("plan-a", rate=0.05)
simulate("plan-b", rate=0.02)

# a third would pass the ceiling: both hospitals refuse it before any gradient
try:
    simulate("plan-c", rate=0.01, **CEILING)
except fedgraft.RunFailed as refusal:
    print(f"plan-c: {refusal}")
