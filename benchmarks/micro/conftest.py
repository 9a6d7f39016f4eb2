"""Backends as a parameter: our own, each of their variants, as far as its speed allows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import bittensor
from bittensor import get_backend

BACKENDS = ("cpp", "reference")

SLOW = {"reference": 2**22, "cpp:scalar": 2**28}
"""Most elementary steps (codes, or products) of a case that is worth waiting for, on backends that are slow."""


def backend_names() -> list[str]:
    """Each variant of each backend; a backend without variants by its own name."""
    names = []
    for name in BACKENDS:
        variants = get_backend(name).capabilities.variants
        names += [f"{name}:{variant}" for variant in variants] or [name]
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pairs backends with the cases of the mark ``cases(*cases)``; a case knows its `steps` and has a name."""
    mark = metafunc.definition.get_closest_marker("cases")
    if mark is None:
        return
    pairs = [
        pytest.param(name, case, id=f"{case}-{name}")
        for case in mark.args
        for name in backend_names()
        if case.steps <= SLOW.get(name, case.steps)
    ]
    metafunc.parametrize(("backend", "case"), pairs, indirect=["backend"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(*cases): cases to run on every backend that can afford them")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend by name, in use while the benchmark runs."""
    torch.manual_seed(0)
    with bittensor.use_backend(request.param):
        yield request.param
