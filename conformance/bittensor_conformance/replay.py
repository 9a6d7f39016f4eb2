"""The corpus: counterexamples worth keeping, as JSON, replayed on every target before anything is searched.

A file in corpus/ holds one case: its class, why it is kept, its arguments, and optionally the result worked out by
hand, which then binds the oracle too. `as_json` writes the arguments of a counterexample that a run has printed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_type_hints

import numpy as np

from bittensor.backend import Capabilities

from .cases import MatmulCase, PackCase, ScaleFill, UnpackCase
from .float_fills import FloatFill
from .gradient_cases import GradientCase
from .linear_cases import TORCH_DTYPES, LinearCase, WeightCase
from .oracle_linear import Interval

AnyCase: TypeAlias = PackCase | UnpackCase | MatmulCase | WeightCase | LinearCase | GradientCase

_FOLDER = Path(__file__).parent / "corpus"
_CASES: dict[str, type[AnyCase]] = {
    "pack": PackCase,
    "unpack": UnpackCase,
    "packed_matmul": MatmulCase,
    "prepare": WeightCase,
    "linear": LinearCase,
    "linear_input_grad": GradientCase,
}


@dataclass(frozen=True)
class Entry:
    """A case of the corpus; `expected` is the result as nested lists where somebody worked it out by hand."""

    name: str
    operation: str
    why: str
    case: AnyCase
    expected: list[Any] | None

    def is_declared(self, capabilities: Capabilities) -> bool:
        """Whether a backend with these capabilities owes the case. That it declares the operation is not asked here."""
        if isinstance(self.case, PackCase | UnpackCase | MatmulCase):
            return self.case.bits in capabilities.bits
        weight = self.case if isinstance(self.case, WeightCase) else self.case.weight
        declared = (
            weight.bits in capabilities.linear_bits
            and weight.zero in capabilities.zero_kinds
            and TORCH_DTYPES[weight.scale_dtype] in capabilities.scale_dtypes
            and (
                weight.group_size is None
                or weight.group_size == weight.k
                or weight.group_size % capabilities.group_size_multiple == 0
            )
        )
        if isinstance(self.case, LinearCase):
            modes, epilogues = capabilities.activation_modes, capabilities.epilogues
            return declared and self.case.mode in modes and self.case.epilogue in epilogues
        return declared

    def check_oracle(self) -> None:
        """Fail if the oracle disagrees with the result that was worked out by hand."""
        if self.expected is None or isinstance(self.case, WeightCase):
            return
        by_oracle = self.case.expected
        values = by_oracle.center if isinstance(by_oracle, Interval) else by_oracle
        if not np.array_equal(values, np.array(self.expected, dtype=values.dtype), equal_nan=values.dtype.kind == "f"):
            raise AssertionError(
                f"corpus/{self.name}.json: the oracle disagrees with the result worked out by hand: "
                f"{values.tolist()} against {self.expected}"
            )


@cache
def corpus() -> tuple[Entry, ...]:
    """All entries, by file name."""
    return tuple(_read(path) for path in sorted(_FOLDER.glob("*.json")))


def _read(path: Path) -> Entry:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        case: AnyCase = from_json(_CASES[stored["operation"]], stored["case"])
        return Entry(path.stem, stored["operation"], stored["why"], case, stored.get("expected"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"corpus/{path.name}: {type(error).__name__}: {error}") from error


def from_json(kind: type[Any], stored: dict[str, Any]) -> Any:
    """JSON to a case or a fill: lists are tuples, objects are what the field's type says."""
    hints, revived = get_type_hints(kind), dict[str, Any]()
    for name, value in stored.items():
        if isinstance(value, dict):
            nested = next(each for each in (hints[name], *get_args(hints[name])) if is_dataclass(each))
            revived[name] = from_json(nested, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            numbers = float if kind in (FloatFill, ScaleFill) else int
            revived[name] = tuple(numbers(each) for each in value) if name == "values" else tuple(value)
        else:
            revived[name] = value
    return kind(**revived)


def as_json(case: Any) -> dict[str, Any]:
    """Arguments of a case that differ from their defaults, as a corpus file stores them under "case"."""
    stored: dict[str, Any] = {}
    for field in fields(case):
        value = getattr(case, field.name)
        if is_dataclass(value):
            stored[field.name] = as_json(value)
        elif value != field.default:
            # JSON has no infinities: they are texts.
            listed = isinstance(value, tuple)
            stored[field.name] = [each if math.isfinite(each) else str(each) for each in value] if listed else value
    return stored
