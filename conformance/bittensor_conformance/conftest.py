"""Lets plain pytest run the suite: ``BITTENSOR_BACKEND=NAME pytest --pyargs bittensor_conformance``.

The environment says what the command line would: ``BITTENSOR_BACKEND`` (names separated by commas),
``BITTENSOR_CONFORMANCE_PROFILE``, ``BITTENSOR_CONFORMANCE_REPORT``, ``BITTENSOR_CONFORMANCE_EXPECTED_FAILURES``.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from bittensor import BackendError

from . import expectations, report, summary
from .plugin import ConformancePlugin
from .profiles import PROFILES, Effort
from .targets import expand

_PREFIX = "BITTENSOR_CONFORMANCE_"


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin, unless the runner has."""
    if _plugin(config) is not None:
        return
    names = os.environ.get("BITTENSOR_BACKEND")
    if not names:
        raise pytest.UsageError("set BITTENSOR_BACKEND to the name of the backend that is to be tested")
    profile = os.environ.get(f"{_PREFIX}PROFILE", "dev")
    if profile not in PROFILES:
        raise pytest.UsageError(f"{_PREFIX}PROFILE: expected one of {list(PROFILES)}, got {profile!r}")
    expected = os.environ.get(f"{_PREFIX}EXPECTED_FAILURES")
    try:
        plugin = ConformancePlugin(
            expand(names.split(",")), Effort(profile), expectations.read(Path(expected) if expected else None)
        )
    except (BackendError, expectations.ExpectationError) as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(plugin)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A check that was to be run and was not is as bad here as it is on the command line."""
    whole = _report(session.config)
    if whole is not None and session.exitstatus == pytest.ExitCode.OK and whole["exit_code"] != report.EXIT_GREEN:
        session.exitstatus = whole["exit_code"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of denominators, and the JSON report if one is asked for."""
    whole = _report(config)
    if whole is None or config.getoption("no_summary"):  # the runner has a summary of its own
        return
    text = io.StringIO()
    summary.show(whole, Console(file=text, width=100), failures=False)
    terminalreporter.section("conformance")
    terminalreporter.write(text.getvalue())
    if path := os.environ.get(f"{_PREFIX}REPORT"):
        Path(path).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _report(config: pytest.Config) -> report.Report | None:
    plugin = _plugin(config)
    if plugin is None:
        return None
    return report.of_run(plugin.effort, config.option.keyword or None, plugin.reports())


def _plugin(config: pytest.Config) -> ConformancePlugin | None:
    return next((each for each in config.pluginmanager.get_plugins() if isinstance(each, ConformancePlugin)), None)
