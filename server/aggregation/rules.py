"""The rules of aggregation by the plan's names; `common/plan/aggregate_section.py` lists them."""

from __future__ import annotations

from typing import Any

from fedgraft.common.plan.aggregate_section import STRATEGIES
from fedgraft.common.registry import Registry
from fedgraft.server.aggregation.rule import Rule

RULES: Registry[Rule[Any]] = Registry("aggregate.strategy", "rule", STRATEGIES)
