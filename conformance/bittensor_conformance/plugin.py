"""The pytest plugin: applies the catalogue to the targets, and records what becomes of each check."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from . import expectations, isolation, observed, report
from .catalogue import Instance, find
from .profiles import Effort, SearchTime
from .targets import Target

_MARK = "conformance"


class ConformancePlugin:
    """Runs every check on every target and keeps the records, by target.

    Args:
        targets: names of backends and variants, already expanded.
        effort: how much work to do.
        expected_failures: reasons by check id (expectations.py).
        done: ids of checks that are not to be run again.
        tell: is given each event as it happens, as data: "selected", "at", "record" or "error".
        drawn: a folder in which sessions of the same run keep drawn cases (drawn_cases.py).
    """

    def __init__(
        self,
        targets: list[str],
        effort: Effort,
        expected_failures: Mapping[str, str],
        done: frozenset[str] = frozenset(),
        tell: Callable[[dict[str, Any]], None] | None = None,
        drawn: Path | None = None,
    ) -> None:
        self.effort = effort
        self.targets = {name: Target(name, effort.applied(), drawn=drawn) for name in targets}
        self.expected_failures = expected_failures
        self.done = done
        self.tell = tell or (lambda event: None)
        self.selected: dict[str, list[str]] = {name: [] for name in targets}
        self.records: dict[str, list[report.Record]] = {name: [] for name in targets}
        self.errors: list[str] = []
        self.started = monotonic()
        self._threads = torch.get_num_threads()

    def reports(self) -> list[report.Report]:
        """A report for each target, from what has been recorded so far."""
        return [
            report.of_target(
                name,
                describe_capabilities(target),
                expectations.owed_ids(name),
                self.selected[name],
                self.records[name],
                monotonic() - self.started,
                self.errors,
            )
            for name, target in self.targets.items()
        ]

    def error(self, message: str) -> None:
        """Note a trouble outside any check."""
        self.errors.append(message)
        self.tell({"error": message})

    @pytest.hookimpl
    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", f"{_MARK}(target, instance): a check of the conformance suite")

    @pytest.hookimpl
    def pytest_sessionstart(self) -> None:
        # One thread: small cases are faster, and the checks that are about threads set their own number.
        torch.set_num_threads(1)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        isolation.close_children()
        torch.set_num_threads(self._threads)

    @pytest.hookimpl
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each target and each width and case that the target owes."""
        declared = find(metafunc.module.__name__, metafunc.function.__name__)
        if declared is None:
            return
        names = [name for name in ("target", "bits", "case") if name in metafunc.fixturenames]
        parameters = []
        for target in self.targets.values():
            for instance in declared.instances(target.capabilities, target.variant is not None):
                values = [target, *(instance.arguments[name] for name in names[1:])]
                label = instance.id.partition("[")[2].rstrip("]")
                mark = pytest.mark.conformance(target=target, instance=instance)
                parameters.append(pytest.param(*values, id="-".join(filter(None, (target.name, label))), marks=mark))
        metafunc.parametrize(names, parameters)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Drop checks that no target owes, and mark the failures that are expected."""
        mine = [item for item in items if _bound(item) is not None]
        unowed = [item for item in items if item not in mine and _is_check(item)]
        items[:] = [item for item in items if item not in unowed]
        config.hook.pytest_deselected(items=unowed)
        try:
            expectations.check_known(self.expected_failures, list(self.targets))
        except expectations.ExpectationError as error:
            raise pytest.UsageError(str(error)) from error
        for item in mine:
            target, instance = _require(item)
            if instance.id in self.done:
                items.remove(item)
            reason = expectations.for_target(self.expected_failures, target.name).get(instance.id)
            if reason is not None:
                item.add_marker(pytest.mark.xfail(strict=True, reason=reason))

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what is to be run, after every selection; and share out the time there is for searching."""
        searches = dict.fromkeys(self.targets, 0)
        for target, instance in filter(None, map(_bound, session.items)):
            self.selected[target.name].append(instance.id)
            searches[target.name] += instance.searches
        self.tell({"selected": [check_id for ids in self.selected.values() for check_id in ids]})
        if self.effort.search_seconds is not None:
            for name, count in searches.items():
                self.targets[name].search_time = SearchTime(self.effort.search_seconds, count)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.error(f"{report.nodeid} could not be collected: {report.longreprtext}")

    @pytest.hookimpl
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if (bound := _bound(item)) is not None:
            target, instance = bound
            target.check_id, target.examples = instance.id, 0
            observed.start()
            self.tell({"at": instance.id})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        result = yield
        # The call decides; set-up and tear-down only count if they go wrong.
        if (bound := _bound(item)) is not None and (call.when == "call" or not result.passed):
            target, instance = bound
            self._record(target, instance, result, call)
            if result.failed:
                result.sections.append(("contract", instance.section))
        return result

    def _record(
        self, target: Target, instance: Instance, result: pytest.TestReport, call: pytest.CallInfo[None]
    ) -> None:
        outcome: report.Outcome = "failed"
        if result.passed:
            outcome = "passed"
        elif result.skipped:
            outcome = "expected failure" if hasattr(result, "wasxfail") else "skipped"
        examples = max(1, target.examples) if outcome == "passed" else target.examples
        message = _message(result, call) if outcome != "passed" else ""
        if outcome == "failed":
            message = f"{message}\nContract: {instance.section}"
        record = report.Record(
            instance.id,
            instance.operation,
            instance.bits,
            outcome,
            examples,
            round(call.duration, 4),
            message,
            observed.largest(),
        )
        self.records[target.name].append(record)
        self.tell({"record": asdict(record)})


def describe_capabilities(target: Target) -> dict[str, Any]:
    """Capabilities as JSON."""
    declared = target.capabilities
    try:
        described = dict(target.backend.describe())
    except Exception as error:  # of the backend; a check says so too
        described = {"error": f"describe() failed: {error!r}"}
    return {
        "operations": sorted(declared.operations),
        "bits": sorted(declared.bits),
        "devices": sorted(declared.devices),
        "numerics": declared.numerics,
        "variants": list(declared.variants),
        "checks_arguments": declared.checks_arguments,
        "describe": described,
    }


def _bound(item: pytest.Item) -> tuple[Target, Instance] | None:
    mark = item.get_closest_marker(_MARK)
    return None if mark is None else (mark.kwargs["target"], mark.kwargs["instance"])


def _require(item: pytest.Item) -> tuple[Target, Instance]:
    bound = _bound(item)
    assert bound is not None
    return bound


def _is_check(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and find(item.module.__name__, item.function.__name__) is not None


def _message(result: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
    """The failure without a traceback if a check raised it, with its place if something else did."""
    if call.excinfo is None:
        return str(result.longrepr)
    error = call.excinfo.value
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return str(error)
    entry = call.excinfo.traceback[-1]
    notes = "\n".join(getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}\nat {entry.path}:{entry.lineno + 1}\n{notes}".rstrip()
