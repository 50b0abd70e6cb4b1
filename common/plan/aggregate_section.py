"""The plan's `aggregate`: how the server combines updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedgraft.common.plan.section import Count, Section
from fedgraft.common.registry import Line

_RULES = "fedgraft.server.aggregation"


@dataclass(frozen=True)
class Strategy(Line):
    """A rule of aggregation, and what a plan must know of it without importing it: rules are the
    server's.

    Attributes:
        is_average: whether it combines updates by an average of them, with or without memory.
        is_plain_mean: whether the average is the next adapter itself, and nothing is remembered.
        without_proximal: the strategy that it is where `train.proximal` is 0; None: itself.
    """

    is_average: bool = True
    is_plain_mean: bool = False
    without_proximal: str | None = None


STRATEGIES = {
    "fedavg": Strategy(f"{_RULES}.fedavg:FEDAVG", is_plain_mean=True),
    "fedprox": Strategy(f"{_RULES}.fedavg:FEDPROX", is_plain_mean=True, without_proximal="fedavg"),
    "fedavgm": Strategy(f"{_RULES}.fedavgm:FEDAVGM"),
    "fedadam": Strategy(f"{_RULES}.adaptive:FEDADAM"),
    "fedyogi": Strategy(f"{_RULES}.adaptive:FEDYOGI"),
    "fedadagrad": Strategy(f"{_RULES}.adaptive:FEDADAGRAD"),
    "median": Strategy(f"{_RULES}.median:MEDIAN", is_average=False),
    "trimmed-mean": Strategy(f"{_RULES}.trimmed_mean:TRIMMED_MEAN", is_average=False),
    "krum": Strategy(f"{_RULES}.krum:KRUM", is_average=False),
}
if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]


class AggregateSection(Section):
    """How the server combines the nodes' adapters."""

    later: ClassVar[tuple[str, ...]] = ("missing", "weighting")

    strategy: StrategyName = Field(default="fedavg", description="the rule that combines them")
    weighting: Literal["examples", "equal"] = Field(
        default="examples",
        description=(
            "what a node counts for in an average; examples: as many as it trains on; equal: as"
            " much as every other, so that the largest do not drown the smallest (always so with"
            " central noise)"
        ),
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="part of the nodes asked in each round"
    )
    min_nodes: Count = Field(default=2, description="fewest good replies that a round needs")
    missing: Literal["refuse", "allow"] = Field(
        default="refuse",
        description=(
            "where fewer nodes are there at the start than were expected; allow: the run begins"
            " without them, from min_nodes on, and its results say so"
        ),
    )
    server_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "fedavgm, fedadam, fedyogi, fedadagrad: the server's learning rate (default: Flower's)"
        ),
    )
    server_momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="fedavgm: the server's momentum (default 0.9)"
    )
    trim: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.2, description="trimmed-mean: part left out at each end of every value"
    )
    byzantine: Annotated[int, Field(ge=0)] = Field(
        default=0, description="krum: how many nodes may be bad"
    )
    round_timeout: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="seconds that a round waits for replies"
    )
    lora_aggregation: Literal["average", "freeze-a", "svd"] = Field(
        default="average",
        description=(
            "lora: average A and B apart; freeze-a: A stays as drawn and only B travels; svd: the"
            " best update of this rank for the mean of the products B·A"
        ),
    )
    encoding: Literal["none", "fp16", "int8"] = Field(
        default="none",
        description=(
            "how updates travel: float32, half of it, or a quarter; what rounding loses comes a"
            " round later"
        ),
    )
