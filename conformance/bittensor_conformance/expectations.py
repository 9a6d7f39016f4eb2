"""Known failures: a JSON file ``{check id: reason}``, held to strictly.

An expected failure that passes is a failure, and an id that no check has is an error: the file can only be true.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from bittensor import get_backend
from bittensor.backend import OPERATIONS

from .catalogue import CATALOGUE


class ExpectationError(ValueError):
    """The file of expected failures cannot be read, or names a check that does not exist."""


def read(path: Path | None) -> dict[str, str]:
    """Expected failures by check id, or by ``target::check id`` for one target of several."""
    if path is None:
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpectationError(f"expected failures: {path}: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(reason, str) and reason for reason in stored.values()):
        raise ExpectationError(f"expected failures: {path}: expected an object of {{check id: reason}}, each a text")
    return stored


def for_target(expected: Mapping[str, str], target: str) -> dict[str, str]:
    """The part of `expected` that applies to `target`, by check id: what is not owed there cannot fail there."""
    applied: dict[str, str] = {}
    owed = owed_ids(target) if expected else {}
    for key, reason in expected.items():
        qualifier, separator, check_id = key.rpartition("::")
        if check_id in owed and (not separator or qualifier == target):
            applied[check_id] = reason
    return applied


def check_known(expected: Mapping[str, str], targets: Collection[str]) -> None:
    """Raise unless every entry names a check that a target of this run owes; the chapters must have been imported."""
    owed = {target: owed_ids(target) for target in targets}
    for key in expected:
        qualifier, separator, check_id = key.rpartition("::")
        if separator and qualifier not in owed:
            raise ExpectationError(f"expected failures: {key!r}: {qualifier!r} is no target of this run: {list(owed)}")
        considered = [owed[qualifier]] if separator else list(owed.values())
        if not any(check_id in ids for ids in considered):
            raise ExpectationError(f"expected failures: no check is called {check_id!r}")


def owed_ids(target: str) -> dict[str, tuple[str, int | None]]:
    """Ids of all checks that a target owes, with the capability that each covers: operation and bit width."""
    capabilities = get_backend(target).capabilities
    instances = [instance for check in CATALOGUE.values() for instance in check.instances(capabilities, ":" in target)]
    order = {operation: place for place, operation in enumerate(OPERATIONS)}
    instances.sort(key=lambda instance: (order.get(instance.operation, -1), instance.bits or 0))
    return {instance.id: (instance.operation, instance.bits) for instance in instances}
