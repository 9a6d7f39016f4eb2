"""The corpus, replayed before anything is searched. A target's width of which the corpus has no case owes no check."""

from __future__ import annotations

from ..catalogue import check
from ..replay import corpus
from ..targets import Target


def _widths(operation: str) -> tuple[int, ...]:
    return tuple(sorted({entry.bits for entry in corpus() if entry.operation == operation}))


@check("pack", widths=_widths("pack"))
def test_pack_corpus(target: Target, bits: int) -> None:
    """Every kept case of `pack` at this width."""
    _replay(target, "pack", bits)


@check("unpack", widths=_widths("unpack"))
def test_unpack_corpus(target: Target, bits: int) -> None:
    """Every kept case of `unpack` at this width."""
    _replay(target, "unpack", bits)


@check("packed_matmul", widths=_widths("packed_matmul"))
def test_packed_matmul_corpus(target: Target, bits: int) -> None:
    """Every kept case of `packed_matmul` at this width."""
    _replay(target, "packed_matmul", bits)


def _replay(target: Target, operation: str, bits: int) -> None:
    for entry in corpus():
        if (entry.operation, entry.bits) != (operation, bits):
            continue
        if entry.expected is not None and entry.case.expected.tolist() != entry.expected:
            raise AssertionError(
                f"corpus/{entry.name}.json: the oracle disagrees with the result worked out by hand: "
                f"{entry.case.expected.tolist()} against {entry.expected}"
            )
        try:
            entry.case.run(target.name)
        except Exception as error:
            raise AssertionError(f"corpus/{entry.name}.json ({entry.why}): {error}") from error
        target.examples += 1
