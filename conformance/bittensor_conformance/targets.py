"""What is held against the contract: a backend, or one of its variants, under the name that selects it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Protocol, TypeVar
from zlib import crc32

from hypothesis import given, seed
from hypothesis.strategies import SearchStrategy

from bittensor import get_backend
from bittensor.backend import Backend, Capabilities

from .drawn_cases import DrawnCases
from .profiles import Profile, SearchTime

T = TypeVar("T")


class Runnable(Protocol):
    """A case: runs itself on a target by name, and raises if the target is wrong."""

    def run(self, target: str) -> None: ...


@dataclass
class Target:
    """A backend or variant under test, and the count of examples that the current check has run on it.

    Attributes:
        search_time: shared by the searches, where they end by time.
        drawn: where the sessions of a run keep the cases that they have drawn, if there are others.
    """

    name: str
    profile: Profile
    check_id: str = ""
    examples: int = field(default=0)
    search_time: SearchTime | None = None
    drawn: Path | None = None

    @property
    def backend(self) -> Backend:
        return get_backend(self.name)

    @property
    def capabilities(self) -> Capabilities:
        return self.backend.capabilities

    @property
    def variant(self) -> str | None:
        """The variant's name, None if the target is a backend with its own choice of kernels."""
        return self.name.partition(":")[2] or None

    def for_all(self, cases: SearchStrategy[T], check: Callable[[T], None]) -> None:
        """Run `check` on drawn cases, as many as the profile says or time allows; shrink what fails.

        The seed is the check's name, so that a deterministic run draws other cases for other checks. Shrinking ends
        after the profile's budget: from then on only cases that are known to fail are run again.
        """
        if self.drawn is not None and self.profile.deterministic:
            kept = DrawnCases(self.drawn, f"{self.check_id} {self.profile} {cases}")
            self._search_once(cases, check, kept)
            return
        deadline = self.search_time.next_deadline() if self.search_time else 0.0
        self._search(cases, check)
        while monotonic() < deadline:
            self._search(cases, check)

    def _search_once(self, cases: SearchStrategy[T], check: Callable[[T], None], kept: DrawnCases) -> None:
        """As `_search`, but without drawing anew what another session has drawn, unless it fails here."""
        known = kept.read()
        if known is None:
            drawn: list[bytes] = []

            def keep_and_check(case: T) -> None:
                drawn.append(pickle.dumps(case))  # before a run adds what it has worked out
                check(case)

            self._search(cases, keep_and_check)
            kept.write(drawn)
            return
        try:
            for case in known:
                check(case)
                self.examples += 1
        except Exception:
            self.examples = 0
            self._search(cases, check)  # fails on the same case, and shrinks it
            raise

    def _search(self, cases: SearchStrategy[T], check: Callable[[T], None]) -> None:
        failures: set[str] = set()
        first_failure: float | None = None

        @self.profile.settings()
        @given(cases)
        def holds(case: T) -> None:
            nonlocal first_failure
            if first_failure is not None:
                late = monotonic() - first_failure > self.profile.shrink_seconds
                if late and repr(case) not in failures:
                    return
            try:
                check(case)
            except BaseException:
                first_failure = first_failure or monotonic()
                failures.add(repr(case))
                raise
            self.examples += 1

        (seed(crc32(self.check_id.encode()))(holds) if self.profile.deterministic else holds)()

    @property
    def is_exact(self) -> bool:
        """Whether results must have the bits of the contract; otherwise they must lie within its bounds."""
        return self.capabilities.numerics == "exact"

    def run(self, cases: Sequence[Runnable], *, always: bool = False) -> None:
        """Run a deterministic sweep of cases, thinned as the profile says unless it is to run `always`."""
        for case in cases if always else cases[:: self.profile.stride]:
            case.run(self.name)
            self.examples += 1


def expand(names: Sequence[str]) -> list[str]:
    """Every target that `names` stand for: a backend is itself and each of its variants, ``cpp:avx2`` only that.

    Raises:
        BackendError: a name is not installed, or its backend could not be loaded.
    """
    expanded: list[str] = []
    for name in names:
        backend = get_backend(name)
        targets = [name] if ":" in name else [name, *(f"{name}:{each}" for each in backend.capabilities.variants)]
        expanded.extend(each for each in targets if each not in expanded)
    return expanded
