"""How much work a run does: `dev` is quick, `ci` repeats itself exactly, `nightly` searches, as long as it is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic

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

_ROUND = 200
"""Examples between two looks at the clock, where a search ends by time."""


@dataclass(frozen=True)
class Effort:
    """A profile, with what the caller said otherwise.

    Attributes:
        profile: its name.
        examples: of a property, instead of the profile's.
        search_seconds: all properties of a target together search until this much time is over, however many examples
            that takes, each at least once; what is no search is run once and counts too. None: a number of examples.
        shrink_seconds: instead of the profile's.
    """

    profile: str
    examples: int | None = None
    search_seconds: float | None = None
    shrink_seconds: float | None = None

    def applied(self) -> Profile:
        """The profile, with the number of examples to draw at a time."""
        profile = PROFILES[self.profile]
        if self.shrink_seconds is not None:
            profile = replace(profile, shrink_seconds=self.shrink_seconds)
        if self.search_seconds is not None:
            return replace(profile, examples=_ROUND)
        return profile if self.examples is None else replace(profile, examples=self.examples)


class SearchTime:
    """Shares time out to the searches of a session, evenly among those that have not begun."""

    def __init__(self, seconds: float, searches: int) -> None:
        self._deadline, self._left = monotonic() + seconds, searches

    def next_deadline(self) -> float:
        """When the search that begins now is to end."""
        now = monotonic()
        share = max(0.0, self._deadline - now) / max(1, self._left)
        self._left -= 1
        return now + share
