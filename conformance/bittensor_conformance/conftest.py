"""Lets plain pytest run the suite: ``BITTENSOR_BACKEND=NAME pytest --pyargs bittensor_conformance``.

The environment says what the command line would: ``BITTENSOR_BACKEND`` (names separated by commas),
``BITTENSOR_CONFORMANCE_PROFILE``, ``BITTENSOR_CONFORMANCE_REPORT``, ``BITTENSOR_CONFORMANCE_EXPECTED_FAILURES``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bittensor import BackendError

from . import expectations, report
from .plugin import ConformancePlugin
from .profiles import PROFILES
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
            expand(names.split(",")), PROFILES[profile], expectations.read(Path(expected) if expected else None)
        )
    except (BackendError, expectations.ExpectationError) as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(plugin)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line of denominators for each target, and the JSON report if one is asked for."""
    plugin = _plugin(config)
    if plugin is None or config.getoption("no_summary"):  # the runner has a summary of its own
        return
    targets = plugin.reports()
    for each in targets:
        counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in each["totals"].items())
        terminalreporter.write_line(f"conformance of {each['target']}: {each['status']} ({counts})")
    if path := os.environ.get(f"{_PREFIX}REPORT"):
        profile = next(iter(plugin.targets.values())).profile.name
        Path(path).write_text(json.dumps(report.of_run(profile, config.option.keyword or None, targets), indent=1))


def _plugin(config: pytest.Config) -> ConformancePlugin | None:
    return next((each for each in config.pluginmanager.get_plugins() if isinstance(each, ConformancePlugin)), None)
