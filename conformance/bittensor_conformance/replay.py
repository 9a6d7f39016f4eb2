"""The corpus: counterexamples worth keeping, as JSON, replayed on every target before anything is searched.

A file in corpus/ holds one case: its class, why it is kept, its arguments, and optionally the result worked out by
hand, which then binds the oracle too. `as_json` writes the arguments of a counterexample that a run has printed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .cases import Case, MatmulCase, PackCase, ScaleFill, UnpackCase
from .fills import BiasFill, Fill

_FOLDER = Path(__file__).parent / "corpus"
_CASES: dict[str, type[Case]] = {"pack": PackCase, "unpack": UnpackCase, "packed_matmul": MatmulCase}
_NESTED = {"x": Fill, "weight": Fill, "codes": Fill, "bias": BiasFill, "scale": ScaleFill}


@dataclass(frozen=True)
class Entry:
    """A case of the corpus; `expected` is the result as nested lists where somebody worked it out by hand."""

    name: str
    operation: str
    why: str
    case: Case
    expected: list[Any] | None

    @property
    def bits(self) -> int:
        return self.case.bits


@cache
def corpus() -> tuple[Entry, ...]:
    """All entries, by file name."""
    return tuple(_read(path) for path in sorted(_FOLDER.glob("*.json")))


def _read(path: Path) -> Entry:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        case = _CASES[stored["operation"]](**_revive(stored["case"]))
        return Entry(path.stem, stored["operation"], stored["why"], case, stored.get("expected"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"corpus/{path.name}: {type(error).__name__}: {error}") from error


def _revive(stored: dict[str, Any]) -> dict[str, Any]:
    """JSON to constructor arguments: lists are tuples, objects are fills."""
    revived: dict[str, Any] = {}
    for name, value in stored.items():
        if isinstance(value, dict):
            revived[name] = _NESTED[name](**_revive(value))
        else:
            revived[name] = tuple(value) if isinstance(value, list) else value
    return revived


def as_json(case: Any) -> dict[str, Any]:
    """Arguments of a case that differ from their defaults, as a corpus file stores them under "case"."""
    stored: dict[str, Any] = {}
    for field in fields(case):
        value = getattr(case, field.name)
        if value != field.default:
            stored[field.name] = as_json(value) if is_dataclass(value) else value
    return stored
