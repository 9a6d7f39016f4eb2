"""Backends as a parameter, with each of their variants as far as its speed allows: our own, or those of --backend."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import pytest
import torch

import bittensor
from bittensor import get_backend

BACKENDS = ("cpp", "reference")

SLOW = {"reference": 2**22, "cpp:scalar": 2**28}
"""Most elementary steps (codes, or products) of a case that is worth waiting for, on backends that are slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="a registered backend or a variant of it, to be timed instead of our own; repeatable",
    )


def backend_names(chosen: Sequence[str]) -> list[str]:
    """Each variant of each backend; a backend without variants, and a variant, by its own name."""
    names = []
    for name in chosen:
        try:
            capabilities = get_backend(name).capabilities
        except bittensor.BackendError as error:
            raise pytest.UsageError(str(error)) from None
        variants = () if ":" in name else capabilities.variants
        names += [f"{name}:{variant}" for variant in variants] or [name]
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pairs backends with the cases of the mark ``cases(*cases)``; a case knows its `steps` and has a name."""
    mark = metafunc.definition.get_closest_marker("cases")
    if mark is None:
        return
    names = backend_names(metafunc.config.getoption("backend") or BACKENDS)
    pairs = [
        pytest.param(name, case, id=f"{case}-{name}")
        for case in mark.args
        for name in names
        if case.steps <= SLOW.get(name, case.steps)
    ]
    metafunc.parametrize(("backend", "case"), pairs, indirect=["backend"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Skips what a chosen backend does not declare; our own declare everything."""
    try:
        return (yield)
    except bittensor.UnsupportedOperationError as error:
        if item.config.getoption("backend"):
            pytest.skip(str(error))
        raise


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(*cases): cases to run on every backend that can afford them")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend by name, in use while the benchmark runs."""
    torch.manual_seed(0)
    with bittensor.use_backend(request.param):
        yield request.param
