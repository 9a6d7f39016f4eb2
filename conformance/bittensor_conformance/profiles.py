"""How much work a run does: `dev` is quick, `ci` repeats itself exactly, `nightly` searches."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings


@dataclass(frozen=True)
class Profile:
    """A run's effort.

    Attributes:
        examples: number of examples of a property.
        deterministic: the same examples in each run.
        stride: of the deterministic sweeps, every `stride`-th case is run. 1 runs all.
        work: multiply-adds that one drawn case may cost.
        shrink_seconds: time spent on a smaller counterexample once there is one.
    """

    name: str
    examples: int
    deterministic: bool
    stride: int
    work: int
    shrink_seconds: float

    def settings(self) -> settings:
        """Hypothesis settings. No database: a counterexample worth keeping goes to the corpus, which all share."""
        return settings(
            max_examples=self.examples,
            derandomize=self.deterministic,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("dev", examples=40, deterministic=False, stride=7, work=100_000, shrink_seconds=2),
        Profile("ci", examples=120, deterministic=True, stride=1, work=300_000, shrink_seconds=10),
        Profile("nightly", examples=3000, deterministic=False, stride=1, work=2_000_000, shrink_seconds=60),
    )
}
