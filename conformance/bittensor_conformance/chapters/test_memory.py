"""Memory: no byte outside an input is read, none inside is written. Undeclared calls are refused, not crashed on.

Both are tried in a process of their own (isolation.py), because a mistake ends it.
"""

from __future__ import annotations

from ..catalogue import check
from ..isolation import Job, run_job
from ..targets import Target


@check("pack")
def test_pack_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """Codes against an inaccessible page, write-protected: packing neither crashes nor errs."""
    _check(target, Job("guarded", "pack", bits))


@check("unpack")
def test_unpack_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """Words against an inaccessible page, write-protected: unpacking neither crashes nor errs."""
    _check(target, Job("guarded", "unpack", bits))


@check("packed_matmul")
def test_packed_matmul_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """x, weight, bias and scale against inaccessible pages, write-protected: multiplying neither crashes nor errs."""
    _check(target, Job("guarded", "packed_matmul", bits))


@check("prepare")
def test_prepare_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """A weight's tensors, canonical and prepared, against inaccessible pages, write-protected."""
    _check(target, Job("guarded", "prepare", bits))


@check("linear")
def test_linear_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """x, prepared weight and bias against inaccessible pages, write-protected: multiplying neither crashes nor errs."""
    _check(target, Job("guarded", "linear", bits))


@check("linear_input_grad")
def test_gradient_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """The result's gradient and the prepared weight against inaccessible pages, write-protected."""
    _check(target, Job("guarded", "linear_input_grad", bits))


@check("embedding")
def test_embedding_stays_inside_its_inputs(target: Target, bits: int) -> None:
    """Indices and the prepared weight against inaccessible pages, write-protected."""
    _check(target, Job("guarded", "embedding", bits))


@check("pack", undeclared=True)
def test_undeclared_pack_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError for what the capabilities leave out."""
    _check(target, Job("undeclared", "pack", bits))


@check("unpack", undeclared=True)
def test_undeclared_unpack_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError for what the capabilities leave out."""
    _check(target, Job("undeclared", "unpack", bits))


@check("packed_matmul", undeclared=True)
def test_undeclared_packed_matmul_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError for what the capabilities leave out."""
    _check(target, Job("undeclared", "packed_matmul", bits))


@check("prepare", undeclared=True)
def test_undeclared_prepare_is_refused(target: Target, bits: int) -> None:
    """An error for what the capabilities leave out."""
    _check(target, Job("undeclared", "prepare", bits))


@check("linear", undeclared=True)
def test_undeclared_linear_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError for what the capabilities leave out."""
    _check(target, Job("undeclared", "linear", bits))


@check("linear_input_grad", undeclared=True)
def test_undeclared_gradient_is_refused(target: Target, bits: int) -> None:
    """An error for what the capabilities leave out."""
    _check(target, Job("undeclared", "linear_input_grad", bits))


def _check(target: Target, job: Job) -> None:
    outcome = run_job(target.name, job)
    target.examples += outcome.calls
    if outcome.failure is not None:
        raise AssertionError(outcome.failure)
