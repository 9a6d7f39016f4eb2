"""Runs the suite on other libraries, and records what they were not asked to promise.

    python -m conformance.rivals.survey NAME ... [--profile dev|ci|nightly]

For each backend: the suite's own report; how large errors are on typical linears, as a part of the bound and relative
to the result; and which relations between results hold bit for bit, such as those of a row alone and in a batch. The
contract asks for these of exact backends only, so that here they are observations. Each backend's findings go to
reports/NAME.json, from which page.py writes docs/rivals.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bittensor_conformance import report as reporting
from bittensor_conformance.cases import Snippet, call_on
from bittensor_conformance.catalogue import CATALOGUE, load_chapters
from bittensor_conformance.chapters import test_5_linear_relations as relations
from bittensor_conformance.compare import as_rows
from bittensor_conformance.float_fills import FloatFill
from bittensor_conformance.linear_cases import LinearCase
from bittensor_conformance.linear_strategies import FLOAT_DTYPES, scope
from bittensor_conformance.observed import of_bound
from bittensor_conformance.oracle_linear import FloatDtype
from bittensor_conformance.profiles import PROFILES
from bittensor_conformance.runner import run
from bittensor_conformance.targets import Target

from bittensor.backend import Capabilities

REPORTS = Path(__file__).parent / "reports"
PACKAGES = ("torch", "onnxruntime", "onnx", "openvino", "numpy")
TYPICAL = ((1, 1024, 128), (8, 1024, 128), (128, 1024, 128), (8, 4096, 32))
"""Rows, columns and group size of the linears on which errors are measured; 64 outputs each."""


def errors(name: str, capabilities: Capabilities) -> Iterator[dict[str, Any]]:
    """Errors on normal values, for each mode, width and dtype of x; scales have that dtype where they can."""
    within = scope(capabilities)
    for mode in sorted(capabilities.activation_modes):
        for bits in sorted(capabilities.linear_bits):
            for dtype in FLOAT_DTYPES:
                yield {"mode": mode, "bits": bits, "dtype": dtype, **_errors(name, mode, bits, dtype, within)}


def _errors(name: str, mode: str, bits: int, dtype: FloatDtype, within: Any) -> Mapping[str, float]:
    ratios, relative = [], []
    for seed, (m, k, size) in enumerate(TYPICAL):
        weight = within.weight(bits, 64, k, size, scale_dtype=dtype if dtype in within.scale_dtypes else None)
        case = LinearCase(weight, (m,), "int8" if mode == "int8" else "float", FloatFill(seed=seed), dtype)
        result = as_rows(call_on(name, case, Snippet(case, name)), 64).astype(np.float64)
        off = np.abs(result - case.allowed.center)
        ratios.append(of_bound(off, case.allowed))
        relative.append(np.sqrt(np.mean(off**2) / np.mean(case.allowed.center**2)))
    return {
        "largest_of_bound": float(max(ratio.max() for ratio in ratios)),
        "relative": float(max(relative)),
    }


def observed_relations(name: str, capabilities: Capabilities) -> Iterator[dict[str, Any]]:
    """Which relations between results hold, for each mode and width."""
    for key, check in CATALOGUE.items():
        chapter, _, relation = key.partition("/")
        if chapter != "5_linear_relations" or check.variants_only:
            continue
        function = inspect.unwrap(getattr(relations, f"test_{relation}"))
        for mode in sorted(capabilities.activation_modes):
            for bits in sorted(capabilities.linear_bits):
                yield {"relation": relation, "mode": mode, "bits": bits, **_observe(function, name, bits, mode)}


class _AsIfExact(Target):
    """A target of which the suite asks for the same bits, whatever it declares."""

    is_exact = True


def _observe(function: Any, name: str, bits: int, mode: str) -> dict[str, Any]:
    target = _AsIfExact(name, PROFILES["ci"], check_id=function.__name__)
    try:
        function(target, bits, mode)
    except AssertionError as failure:
        return {"holds": False, "compared": target.examples + 1, "first": str(failure).partition("\n")[0]}
    return {"holds": True, "compared": target.examples, "first": ""}


def versions() -> dict[str, str]:
    """Versions of what has a say in the result, where it is installed."""
    found = dict(reporting.versions())
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def survey(name: str, profile: str) -> dict[str, Any]:
    """Everything that reports/NAME.json holds."""
    from bittensor import get_backend

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        run([name], profile=profile, report=path)
        suite = json.loads(path.read_text(encoding="utf-8"))
    (target,) = (each for each in suite["targets"] if each["target"] == name)
    capabilities = get_backend(name).capabilities
    load_chapters()
    return {
        "backend": name,
        "date": date.today().isoformat(),
        "command": f"python -m conformance.rivals.survey {name} --profile {profile}",
        "profile": profile,
        "machine": suite["machine"],
        "versions": versions(),
        "status": target["status"],
        "totals": target["totals"],
        "declared": {
            "linear_bits": sorted(capabilities.linear_bits),
            "zero_kinds": sorted(capabilities.zero_kinds),
            "scale_dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in capabilities.scale_dtypes),
            "group_size_multiple": capabilities.group_size_multiple,
            "activation_modes": sorted(capabilities.activation_modes),
            "numerics": capabilities.numerics,
        },
        "checks": [
            {key: each[key] for key in ("id", "operation", "bits", "outcome", "examples", "message", "error_to_bound")}
            for each in target["checks"]
            if each["operation"] in ("prepare", "linear", "protocol")
        ],
        "errors": list(errors(name, capabilities)),
        "relations": list(observed_relations(name, capabilities)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold other libraries against the contract.")
    parser.add_argument("backends", nargs="+", metavar="NAME")
    parser.add_argument("--profile", choices=list(PROFILES), default="ci")
    given = parser.parse_args()
    for name in given.backends:
        found = survey(name, given.profile)
        path = REPORTS / f"{name.replace(':', '_')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"{path.name}: {found['status']}\n")


if __name__ == "__main__":
    main()
