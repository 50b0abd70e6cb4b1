"""One ledger, three runs: ε counts everything that was ever run on the same records.

    python private_budget.py

Each hospital keeps a ledger. A second run on the same records does not begin at zero, and a policy
sets a ceiling that no plan and no server can pass.
"""

import fedgraft

PRIVATE = {
    "adapter.method": "head",
    "train.rounds": 2,
    "train.optimizer.lr": 0.05,
    "privacy.mode": "sample",
    "privacy.target_epsilon": 3.0,
}
CEILING = {"dp_required": True, "max_epsilon_total": 5.0, "max_delta": 1e-5}


def largest_epsilon(run: fedgraft.Run) -> float:
    """Return the largest ε of all hospitals, over everything in their ledgers."""
    return max(spent.epsilon for spent in run.result.privacy.values())


def simulate(seed: int, **options: object) -> fedgraft.Run:
    """Run the private plan with this seed, on the ledgers that outlast the runs."""
    changes = {**PRIVATE, "seed": seed}
    out = f"runs/seed-{seed}"
    return fedgraft.simulate(
        "digits", set=changes, out=out, ledger="ledgers", progress=False, **options
    )


fedgraft.pretrain("digits")
first = simulate(seed=7)
print(f"after the first run:  ε = {largest_epsilon(first):.2f} at most")

second = simulate(seed=8)
print(f"after the second run: ε = {largest_epsilon(second):.2f} at most")

# the third is too much for a hospital that stops at 5: it refuses before any gradient
try:
    simulate(seed=9, policy=CEILING)
except fedgraft.RunFailed as refusal:
    print(f"the third run: {refusal}")
