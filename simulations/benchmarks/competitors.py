"""Who is measured on the workload: what each is, and the command that runs it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fedgraft.simulations.benchmarks import environments

PACKAGE = "fedgraft.simulations.benchmarks"


@dataclass(frozen=True)
class Competitor:
    """One row of the table: what it is, what runs it, with which adapters.

        COMPETITORS["floor"].command("head", 7, Path("shards-7.npz"))

    Attributes:
        threads: workers × threads of torch in each, in words.
        module: of this folder; it takes the adapter, the seed, the file of the shards and `more`.
        takes_shards: whether it reads the file of the shards.
        torch_threads: of each process.
        peer: the environment it needs, see `environments.py`.
        keeps_activations: they stay on disk, and a run before this one put them there.
    """

    title: str
    threads: str
    module: str
    more: tuple[str, ...] = ()
    takes_shards: bool = True
    torch_threads: int = 1
    adapters: tuple[str, ...] = ("head", "lora")
    peer: str | None = None
    keeps_activations: bool = False

    def command(self, adapter: str, seed: int, shards: Path) -> list[str]:
        """Return the words that run it once."""
        python = sys.executable
        if self.peer:
            python = str(environments.python_of(self.peer))
        words = [python, "-m", f"{PACKAGE}.{self.module}", adapter, str(seed)]
        if self.takes_shards:
            words.append(str(shards))
        return [*words, *self.more]


OURS = Competitor("fedgraft", "2 × 1", "ours", more=("2",), takes_shards=False)
OURS_ALONE = Competitor("fedgraft, one worker", "1", "ours", more=("1",), takes_shards=False)
OURS_KEPT = Competitor(
    "fedgraft, activations kept by the run before",
    "2 × 1",
    "ours",
    more=("2",),
    takes_shards=False,
    keeps_activations=True,
)
OURS_BFLOAT16 = Competitor(
    "fedgraft, frozen part in bfloat16", "2 × 1", "ours", more=("2", "bfloat16"), takes_shards=False
)
OURS_AT_ONCE = Competitor(
    "fedgraft, one round",
    "2 × 1",
    "ours",
    more=("2", "one-round"),
    takes_shards=False,
    adapters=("head",),
)
OURS_AT_ONCE_BFLOAT16 = Competitor(
    "fedgraft, one round, in bfloat16",
    "2 × 1",
    "ours",
    more=("2", "one-round", "bfloat16"),
    takes_shards=False,
    adapters=("head",),
)
FLOOR = Competitor(
    "plain PyTorch, frozen prefix computed once: the floor", "1", "floor", more=("cached",)
)
FLOOR_FULL = Competitor("plain PyTorch, whole network at each step", "1", "floor", more=("full",))
FLOWER = Competitor(
    "Flower, stock simulation (Ray)",
    "2 × 1",
    "with_flower",
    adapters=("head", "lora", "full"),
)
PFL = Competitor("pfl, SimulatedBackend", "1", "with_pfl", peer="pfl")
PFL_TWO = Competitor("pfl, SimulatedBackend", "2", "with_pfl", torch_threads=2, peer="pfl")
NVFLARE = Competitor("NVIDIA FLARE, simulator", "10 × 1", "with_nvflare", peer="nvflare")

COMPETITORS = {
    "ours": OURS,
    "ours-kept": OURS_KEPT,
    "ours-bfloat16": OURS_BFLOAT16,
    "ours-at-once": OURS_AT_ONCE,
    "ours-at-once-bfloat16": OURS_AT_ONCE_BFLOAT16,
    "ours-1": OURS_ALONE,
    "floor": FLOOR,
    "floor-full": FLOOR_FULL,
    "flower": FLOWER,
    "pfl": PFL,
    "pfl-2": PFL_TWO,
    "nvflare": NVFLARE,
}
