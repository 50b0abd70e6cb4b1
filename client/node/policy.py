"""What a hospital permits: the `policy` of its node.yaml. A server can not loosen it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedgraft.client.privacy.spending import Ceilings
from fedgraft.common.errors import Code, Refused
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.section import Count, Problem, Section, check_together, unique

Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Approved = Literal["any"] | tuple[Sha256, ...]
Positive = Annotated[float, Field(gt=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Unit = Literal["example", "patient", "node"]
Units = Annotated[tuple[Unit, ...], Field(min_length=1), AfterValidator(unique)]

# A plan without differential privacy would go past these.
_CLAUSES_OF_PRIVACY = ("max_epsilon_run", "max_epsilon_total", "max_delta", "min_noise_multiplier")


class Policy(Section):
    """What this hospital permits; a server can not loosen it.

    policy = load_node("node.yaml").policy
    policy.check_privacy(plan.privacy)  # Refused, with the clause
    policy.ceilings(plan.privacy)  # for the ledger
    """

    min_examples: Count = Field(
        default=10, description="with fewer training examples the node does not take part"
    )
    approved_backbones: Approved = Field(
        default="any",
        description="fingerprints of the backbones that may run here (sha256:…), or any",
    )
    approved_plans: Approved | Literal["recorded"] = Field(
        default="any",
        description=(
            "hashes of the plans that may run here (sha256:…); recorded: those that a person"
            " approved here with `fedgraft node approve`; or any"
        ),
    )
    report_metrics: bool | None = Field(
        default=None,
        description=(
            "whether sums of metrics may leave the node (default: not under differential privacy,"
            " whose ε does not cover them)"
        ),
    )
    metrics_noise: Positive | None = Field(
        default=None,
        description=(
            "under sample-level privacy: counts of right and wrong answers leave the node with"
            " noise of this standard deviation, and the ledger counts them; nothing else of the"
            " metrics does"
        ),
    )
    min_subgroup: Count | None = Field(
        default=10,
        description=(
            "a group of people that the plan names (evaluate.subgroups) is measured by itself where"
            " so many test records are of it, and as many are not or none; null: never. Under"
            " differential privacy: never"
        ),
    )
    records_a_feature: Positive | None = Field(
        default=None,
        description=(
            "sums over records without noise leave the node only where it has at least so many"
            " training records for each feature that they are over, and histograms not at all; 2:"
            " of a record at hand they hardly tell any more whether it is among them"
        ),
    )
    dp_required: bool = Field(
        default=False,
        description=(
            "whether only plans run here whose noise this node adds itself: sample or local"
        ),
    )
    max_epsilon_run: Positive | None = Field(
        default=None, description="most ε of one plan, at the plan's δ"
    )
    max_epsilon_total: Positive | None = Field(
        default=None, description="most ε of everything ever run on these records, at max_delta"
    )
    max_delta: Delta | None = Field(
        default=None, description="largest δ of a plan, well below 1 / examples"
    )
    min_noise_multiplier: Positive | None = Field(
        default=None, description="least standard deviation of the noise over the clipping norm"
    )
    allowed_units: Units = Field(
        default=("example", "patient", "node"),
        description="whose presence a plan may choose to hide",
    )
    replays: Literal["refuse", "count"] = Field(
        default="refuse",
        description=(
            "a round that was run or begun here before, and whose answer is not here any more:"
            " refuse it, or run it and count it once more, even above the plan's own ε"
        ),
    )
    hold_hours: Positive = Field(
        default=72.0,
        description=(
            "with max_epsilon_total: a plan that is accepted keeps ε of all its rounds for so long"
            " after its last round here; until then no other run may spend it"
        ),
    )
    round_counts: Count = Field(
        default=10,
        description="under differential privacy counts are rounded down to a multiple of this",
    )

    @model_validator(mode="after")
    def _check_clauses(self) -> Policy:
        problems: list[Problem] = []
        given = [key for key in _CLAUSES_OF_PRIVACY if getattr(self, key) is not None]
        if given and not self.dp_required:
            what = "does not hold for plans without differential privacy"
            problems.append(Problem(given[0], what, "add `dp_required: true`"))
        for key in ("max_epsilon_run", "max_epsilon_total"):
            if getattr(self, key) is not None and self.max_delta is None:
                what = "an ε says nothing without its δ"
                problems.append(Problem(key, what, "add `max_delta: 1e-5`"))
        return check_together(self, problems)

    # ── sums without noise ────────────────────────────────────────────────────────────────────────
    def check_sums(self, records: int, features: int) -> None:
        """Raise `Refused` unless sums of so many features over so many records may leave without
        noise.
        """
        if self.records_a_feature is None or records >= self.records_a_feature * features:
            return
        what = f"sums of {features:,} features without noise, over fewer records than allowed"
        raise Refused(Code.POLICY, f"policy: records_a_feature: {what}")

    def check_histograms(self) -> None:
        """Raise `Refused` unless histograms may leave without noise."""
        if self.records_a_feature is not None:
            what = "histograms without noise show values that a single person has"
            raise Refused(Code.POLICY, f"policy: records_a_feature: {what}")

    # ── which code and plans run ──────────────────────────────────────────────────────────────────
    def check_approved(
        self,
        *,
        plan_hash: str | None,
        backbone: str | None,
        recorded: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Raise `Refused` unless this plan and this backbone may run here; None is not checked.

        Args:
            recorded: gives the hashes of the plans that people approved here; called only where the
                policy says so.
        """
        self._check_hash("backbone", backbone, self.approved_backbones)
        if self.approved_plans == "recorded":
            if plan_hash is not None:
                self._check_hash("plan", plan_hash, recorded())
        else:
            self._check_hash("plan", plan_hash, self.approved_plans)

    @staticmethod
    def _check_hash(what: str, given: str | None, approved: Collection[str]) -> None:
        if given is None or approved == "any" or given in approved:
            return
        raise Refused(Code.POLICY, f"policy: {what} {given} is not approved at this node")

    # ── what privacy is demanded ──────────────────────────────────────────────────────────────────
    def check_privacy(
        self, privacy: PrivacySection, *, noise_multiplier: float | None = None
    ) -> None:
        """Raise `Refused`, naming the clause, unless a plan protects the data as this demands.

        Args:
            noise_multiplier: what was calibrated for this node; None: the plan's own, if any.
        """
        if noise_multiplier is None:
            noise_multiplier = privacy.noise_multiplier

        problem = self._problem_of(privacy, noise_multiplier)
        if problem:
            raise Refused(Code.POLICY, f"policy: {problem}")

    def _problem_of(self, privacy: PrivacySection, noise_multiplier: float | None) -> str:
        """Return the first clause that a plan's privacy breaks, in words; "" if none."""
        if privacy.mode == "none":
            if self.dp_required:
                return "dp_required, and the plan has no differential privacy"
            return ""
        if privacy.mode == "central" and self.dp_required:
            return "dp_required, and in mode central the noise is the server's, not this node's"
        if privacy.unit not in self.allowed_units:
            return f"the unit {privacy.unit} is not among {', '.join(self.allowed_units)}"
        if _is_above(privacy.delta, self.max_delta):
            return f"δ {privacy.delta} is above max_delta {self.max_delta:g}"
        if _is_below(noise_multiplier, self.min_noise_multiplier):
            return f"the noise is below min_noise_multiplier {self.min_noise_multiplier:g}"
        return ""

    def ceilings(self, privacy: PrivacySection) -> Ceilings:
        """Return the stricter of plan and policy, for the ledger."""
        of_a_run = [self.max_epsilon_run]
        # a round that is run twice is not in the plan's
        if self.replays == "refuse":
            of_a_run.append(privacy.target_epsilon)
        stricter = min((most for most in of_a_run if most is not None), default=None)
        return Ceilings(run=stricter, total=self.max_epsilon_total, delta=self.max_delta)

    # ── what of the metrics leaves ────────────────────────────────────────────────────────────────
    def reports(self, privacy: PrivacySection) -> bool:
        """Return whether sums of metrics may leave this node as they are under such a plan."""
        if self.noises_metrics(privacy):
            return False
        if self.report_metrics is None:
            return privacy.mode == "none"
        return self.report_metrics

    def noises_metrics(self, privacy: PrivacySection) -> bool:
        """Return whether counts leave this node with noise.

        Only one example's weight in them is known to be 1.
        """
        by_example = privacy.mode == "sample" and privacy.unit == "example"
        return by_example and self.metrics_noise is not None

    def least_in_group(self, privacy: PrivacySection) -> int | None:
        """Return the fewest test records of a group whose sums may leave; None: no group's may.

        ε would not cover them.
        """
        if privacy.mode == "none" and self.reports(privacy):
            return self.min_subgroup
        return None


def _is_above(value: float | None, most: float | None) -> bool:
    """Return whether a value passes a ceiling; where there is one, no value passes it, too."""
    if most is None:
        return False
    return value is None or value > most


def _is_below(value: float | None, least: float | None) -> bool:
    """Return whether a value is below a floor; where either is not known, it is not."""
    if value is None or least is None:
        return False
    return value < least
