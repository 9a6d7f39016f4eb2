"""The corpus, replayed before anything is searched: each case is a check of its own."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalogue import check
from ..replay import Entry, corpus
from ..targets import Target


def _cases(operation: str) -> Mapping[str, Entry]:
    return {entry.name: entry for entry in corpus() if entry.operation == operation}


@check("pack", cases=_cases("pack"), applies=lambda capabilities, entry: entry.is_declared(capabilities))
def test_pack_corpus(target: Target, case: Entry) -> None:
    """A kept case of `pack`."""
    _replay(target, case)


@check("unpack", cases=_cases("unpack"), applies=lambda capabilities, entry: entry.is_declared(capabilities))
def test_unpack_corpus(target: Target, case: Entry) -> None:
    """A kept case of `unpack`."""
    _replay(target, case)


@check("packed_matmul", cases=_cases("packed_matmul"), applies=lambda declared, entry: entry.is_declared(declared))
def test_packed_matmul_corpus(target: Target, case: Entry) -> None:
    """A kept case of `packed_matmul`."""
    _replay(target, case)


@check("prepare", cases=_cases("prepare"), applies=lambda capabilities, entry: entry.is_declared(capabilities))
def test_prepare_corpus(target: Target, case: Entry) -> None:
    """A kept weight, prepared and restored."""
    _replay(target, case)


@check("linear", cases=_cases("linear"), applies=lambda capabilities, entry: entry.is_declared(capabilities))
def test_linear_corpus(target: Target, case: Entry) -> None:
    """A kept case of `linear`."""
    _replay(target, case)


@check(
    "linear_input_grad", cases=_cases("linear_input_grad"), applies=lambda declared, entry: entry.is_declared(declared)
)
def test_gradient_corpus(target: Target, case: Entry) -> None:
    """A kept case of `linear_input_grad`."""
    _replay(target, case)


def _replay(target: Target, entry: Entry) -> None:
    entry.check_oracle()
    try:
        entry.case.run(target.name)
    except AssertionError as error:
        raise AssertionError(f"corpus/{entry.name}.json ({entry.why}): {error}") from error
    target.examples += 1
