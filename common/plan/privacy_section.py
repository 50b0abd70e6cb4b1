"""The plan's `privacy`: whose presence is hidden, by whose noise, at what ε."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Problem, Section, check_together

# δ of a private plan that names none: below 1 / (10 · units) for up to 10,000 units
DELTA = 1e-5
HOW_MUCH = ("target_epsilon", "noise_multiplier")


class PrivacySection(Section):
    """Differential privacy of what leaves a node."""

    mode: Literal["none", "sample", "central", "local"] = Field(
        default="none",
        description=(
            "sample: DP-SGD at each node; central: noise at the server; local: noise on updates"
        ),
    )
    unit: Literal["example", "patient", "node"] = Field(
        default="example",
        description="whose presence is hidden (central and local: node, all data of one)",
    )
    target_epsilon: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="ε of the whole run; the noise is found for it"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="δ, well below 1 / units (default 1e-5, unless the mode is none)"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="sample: L2 norm that gradients are clipped to"
    )
    max_update_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="central, local: L2 norm that a node's whole update is clipped to"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description=(
            "central: adaptive follows a quantile of the nodes' norms from max_update_norm on"
        ),
    )
    quantile: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="clipping adaptive: part of the updates that shall not be clipped"
    )
    noise_multiplier: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "standard deviation of the noise over the sensitivity (the clipping norm; local: twice"
            " that), instead of target_epsilon"
        ),
    )
    accountant: Literal["prv", "rdp"] = Field(default="prv", description="how ε is counted")
    grad_sample_mode: Literal["hooks", "ghost"] = Field(
        default="hooks", description="sample: how gradients are clipped"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """Write what a private mode needs into the plan: its hash tells it to everyone."""
        if not isinstance(given, dict) or given.get("mode") not in ("sample", "central", "local"):
            return given
        filled = dict(given)
        if filled.get("delta") is None:
            filled["delta"] = DELTA
        if filled.get("unit") is None and filled["mode"] != "sample":
            filled["unit"] = "node"
        return filled

    @property
    def at_node(self) -> bool:
        """Whether a node protects its own data: what depends on them leaves noised and counted."""
        return self.mode in ("sample", "local")

    @property
    def on_updates(self) -> bool:
        """Whether what is clipped and noised is a node's whole update of a round."""
        return self.mode in ("central", "local")

    @model_validator(mode="after")
    def _fits_together(self) -> PrivacySection:
        problems = self._check_noise()
        if self.clipping == "adaptive" and self.at_node:
            what = "adaptive belongs to mode central"
            problems.append(Problem("clipping", what, "write `clipping: fixed`"))
        if self.grad_sample_mode == "ghost":
            problems += self._check_ghost()
        return check_together(self, problems)

    def _check_noise(self) -> list[Problem]:
        """Return where noise is named twice, not at all, for another unit, or without any."""
        given = [key for key in HOW_MUCH if getattr(self, key) is not None]
        if self.mode == "none":
            # nobody may believe that they are protected when they are not
            if self.delta is not None:
                given.append("delta")
            what = "given, but the mode is none and protects nobody"
            remedy = "write `mode: sample` (or central, local), or leave it out"
            return [Problem(key, what, remedy) for key in given]
        problems: list[Problem] = []
        if not given:
            what = f"{self.mode} needs to know how much noise"
            problems.append(Problem("mode", what, "write `target_epsilon: 8`"))
        if len(given) == len(HOW_MUCH):
            what = "given together with target_epsilon"
            problems.append(Problem("noise_multiplier", what, "keep one: either gives the other"))
        hides_nodes = self.mode != "sample"
        if (self.unit == "node") != hides_nodes:
            what = f"mode {self.mode} does not hide one {self.unit}"
            remedy = "write `unit: example`, or patient"
            if hides_nodes:
                remedy = "leave it out"
            problems.append(Problem("unit", what, remedy))
        return problems

    def _check_ghost(self) -> list[Problem]:
        problems: list[Problem] = []
        key = "grad_sample_mode"
        if self.unit == "patient":
            what = "ghost clipping knows the norm of an example's gradient, not of a patient's"
            remedy = "write `grad_sample_mode: hooks`, or `unit: example`"
            problems.append(Problem(key, what, remedy))
        if self.mode != "sample":
            what = "ghost clipping belongs to mode sample"
            problems.append(Problem(key, what, "write `grad_sample_mode: hooks`"))
        return problems
