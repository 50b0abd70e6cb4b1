"""The rules of aggregation by the plan's names: a line each, and nothing else is ever one."""

from __future__ import annotations

from typing import Any

from fedgraft.common.registry import Registry
from fedgraft.server.aggregation.rule import Rule

_HERE = "fedgraft.server.aggregation"

RULES: Registry[Rule[Any]] = Registry(
    "aggregate.strategy",
    "rule",
    {
        "fedavg": f"{_HERE}.fedavg:FEDAVG",
        "fedprox": f"{_HERE}.fedavg:FEDPROX",
        "fedavgm": f"{_HERE}.fedavgm:FEDAVGM",
        "fedadam": f"{_HERE}.adaptive:FEDADAM",
        "fedyogi": f"{_HERE}.adaptive:FEDYOGI",
        "fedadagrad": f"{_HERE}.adaptive:FEDADAGRAD",
        "median": f"{_HERE}.median:MEDIAN",
        "trimmed-mean": f"{_HERE}.trimmed_mean:TRIMMED_MEAN",
        "krum": f"{_HERE}.krum:KRUM",
    },
)
