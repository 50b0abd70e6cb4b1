"""Record what a release computes, to hold later ones to it: hashes of shared models, and results
that must not change.

    python tests/golden/record.py FILE [CASE …] [-- COMMAND …]

COMMAND is how the release under test is called (default: this environment's `fedgraft`); a file
that exists is added to. The hashes hold on one kind of processor with one release of torch, both of
which are written beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

DATA = Path(
    os.environ.get("FEDGRAFT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)
ROUNDS = ("--set", "train.rounds=2")
SAMPLE = ("--set", "privacy.mode=sample", "--set", "privacy.target_epsilon=3")
HEAD = ("--set", "adapter.method=head")
BIAS = ("--set", "adapter.method=bias")
CENTRAL = ("--set", "privacy.mode=central", "--set", "privacy.noise_multiplier=0.5")
LOCAL = ("--set", "privacy.mode=local", "--set", "privacy.noise_multiplier=0.5")
TABLES = ("heart", "--set", "train.rounds=3")

# Words of `fedgraft simulate`; what a case needs is pre-trained first.
CASES: dict[str, tuple[str, ...]] = {
    "digits": ("digits",),
    "digits-head": ("digits", *ROUNDS, *HEAD),
    "digits-bias": ("digits", *ROUNDS, *BIAS),
    "digits-scale-shift": ("digits", *ROUNDS, "--set", "adapter.method=scale-shift"),
    "digits-bottleneck": ("digits", *ROUNDS, "--set", "adapter.method=bottleneck"),
    "digits-full": ("digits", *ROUNDS, "--set", "adapter.method=full"),
    "digits-last-block": ("digits", *ROUNDS, "--set", "adapter.targets=last-block"),
    "digits-random": ("digits", *ROUNDS, "--set", "backbone.random=true"),
    "digits-balanced": (
        "digits",
        *ROUNDS,
        "--set",
        "train.loss=balanced",
        "--set",
        "train.augment=flip",
    ),
    "digits-fedprox": (
        "digits",
        *ROUNDS,
        "--set",
        "aggregate.strategy=fedprox",
        "--set",
        "train.proximal=0.1",
    ),
    "digits-fedadam": ("digits", *ROUNDS, "--set", "aggregate.strategy=fedadam"),
    "digits-fedyogi": ("digits", *ROUNDS, "--set", "aggregate.strategy=fedyogi"),
    "digits-fedadagrad": ("digits", *ROUNDS, "--set", "aggregate.strategy=fedadagrad"),
    "digits-fedavgm": ("digits", *ROUNDS, "--set", "aggregate.strategy=fedavgm"),
    "digits-median": ("digits", *ROUNDS, "--set", "aggregate.strategy=median"),
    "digits-trimmed-mean": ("digits", *ROUNDS, "--set", "aggregate.strategy=trimmed-mean"),
    "digits-krum": (
        "digits",
        *ROUNDS,
        "--set",
        "aggregate.strategy=krum",
        "--set",
        "aggregate.byzantine=1",
    ),
    "digits-freeze-a": ("digits", *ROUNDS, "--set", "aggregate.lora_aggregation=freeze-a"),
    "digits-svd": ("digits", *ROUNDS, "--set", "aggregate.lora_aggregation=svd"),
    "digits-fp16": ("digits", *ROUNDS, "--set", "aggregate.encoding=fp16"),
    "digits-int8": ("digits", *ROUNDS, "--set", "aggregate.encoding=int8"),
    "digits-cohorts": ("digits", "--set", "train.rounds=3", "--set", "aggregate.fraction=0.5"),
    "digits-sgd": ("digits", *ROUNDS, "--set", "train.optimizer.name=sgd"),
    "digits-together": ("digits", *ROUNDS, *HEAD, "--together", "--workers", "1"),
    "digits-sample-head": ("digits", *ROUNDS, *HEAD, *SAMPLE),
    "digits-sample-lora": ("digits", *ROUNDS, *SAMPLE),
    "digits-sample-bottleneck": ("digits", *ROUNDS, *SAMPLE, "--set", "adapter.method=bottleneck"),
    "digits-sample-ghost": (
        "digits",
        *ROUNDS,
        *HEAD,
        *SAMPLE,
        "--set",
        "privacy.grad_sample_mode=ghost",
    ),
    "digits-sample-rdp": ("digits", *ROUNDS, *BIAS, *SAMPLE, "--set", "privacy.accountant=rdp"),
    "digits-sample-metrics": ("digits", *ROUNDS, *HEAD, *SAMPLE, "--policy", "metrics_noise=20"),
    "digits-central": ("digits", *ROUNDS, *CENTRAL, "--set", "aggregate.fraction=0.8"),
    "digits-central-adaptive": ("digits", *ROUNDS, *CENTRAL, "--set", "privacy.clipping=adaptive"),
    "digits-local": ("digits", *ROUNDS, *LOCAL),
    "heart": ("heart",),
    "heart-head": (*TABLES, *HEAD),
    "heart-sample": (*TABLES, *SAMPLE),
    "heart-central": (*TABLES, *CENTRAL),
    "heart-local": (*TABLES, *LOCAL),
    "pneumonia-two-rounds": ("pneumonia", *ROUNDS),
    "pneumonia-sample": (
        "pneumonia",
        *ROUNDS,
        *BIAS,
        *SAMPLE,
        "--set",
        "adapter.targets=last-block",
    ),
    "pneumonia": ("pneumonia",),
}
BACKBONES = ("digits", "heart")


def processor() -> str:
    """Return the processor's name, on which the last bits of a matrix product depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith(("model name", "vendor_id"))
    ]
    flags = [line for line in lines if line.startswith("flags")][:1]
    wide = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flags and flag in flags[0].split()]
    return " ".join(dict.fromkeys([platform.machine(), *names, *wide]))


def machine() -> dict[str, Any]:
    """Return what the bits depend on beside the code."""
    versions = {
        name: version(name)
        for name in ("torch", "torchvision", "flwr", "opacus", "numpy", "scikit-learn")
    }
    return {
        "processor": processor(),
        "threads": 1,
        "python": platform.python_version(),
        "versions": versions,
    }


def essence(run: Path) -> dict[str, Any]:
    """Return of a run's folder what must stay as it is."""
    result = json.loads((run / "result.json").read_text())
    tensors = sorted((run / "shared_model").glob("*.safetensors"))
    return {
        "plan_hash": result["plan_hash"],
        "tensors": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tensors},
        "final": result["final"],
        "privacy": result.get("privacy"),
    }


def run(command: Sequence[str], words: Sequence[str], folder: Path) -> None:
    """Run one command of the release in a folder; a failure is shown."""
    environment = os.environ | {"FEDGRAFT_DATA": str(DATA), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        )


def record(
    command: Sequence[str], cases: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, Any]:
    """Run the cases in a folder, their backbones first, and return what each came to."""
    for name in BACKBONES:
        if any(words[0] == name for words in cases.values()):
            run(command, ["pretrain", name], folder)
    made = {}
    for case, words in cases.items():
        run(command, ["simulate", *words, "--out", case, "--json"], folder)
        made[case] = essence(folder / case)
        print(case, flush=True)
    return made


def main() -> None:
    """Record the cases that the command line names, or all."""
    words = sys.argv[1:]
    command = [str(Path(sys.executable).with_name("fedgraft"))]
    if "--" in words:
        at = words.index("--")
        command = words[at + 1 :]
        words = words[:at]
    target = Path(words[0])
    cases = {name: CASES[name] for name in words[1:] or CASES}
    with tempfile.TemporaryDirectory() as folder:
        made = record(command, cases, Path(folder))
    kept = json.loads(target.read_text())["cases"] if target.exists() else {}
    target.write_text(json.dumps({"machine": machine(), "cases": kept | made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
