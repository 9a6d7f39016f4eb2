"""Checks as lines of Python: what is run is what a failure prints, so that it can be pasted and runs.

The body of a script sees the names that it is given, and what it names out of the suite. It is run with the target
selected, and fails by an AssertionError; so does the printed text, as long as the fault is there.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

import bittensor

from .compare import fail

if TYPE_CHECKING:
    from .targets import Target

Script: TypeAlias = tuple[str, Mapping[str, Any]]
"""The body of a script, and the names that it is given."""

_SUITE = __package__
_IMPORTS: Mapping[str, str] = {
    "replace": "from dataclasses import replace",
    "np": "import numpy as np",
    "pytest": "import pytest",
    "torch": "import torch",
    "oracle": f"from {_SUITE} import oracle",
    "oracle_linear": f"from {_SUITE} import oracle_linear",
    "oracle_transformer": f"from {_SUITE} import oracle_transformer",
    "same": f"from {_SUITE}.compare import same",
    **{name: f"from {_SUITE}.cases import {name}" for name in ("PackCase", "UnpackCase", "MatmulCase", "ScaleFill")},
    **{name: f"from {_SUITE}.fills import {name}" for name in ("BiasFill", "Fill")},
    "FloatFill": f"from {_SUITE}.float_fills import FloatFill",
    **{name: f"from {_SUITE}.linear_cases import {name}" for name in ("WeightCase", "LinearCase")},
    "EmbeddingCase": f"from {_SUITE}.embedding_cases import EmbeddingCase",
    **{name: f"from {_SUITE}.gradient_cases import {name}" for name in ("GradientCase", "allowed_gradients")},
    "Elsewhere": f"from {_SUITE}.elsewhere import Elsewhere",
    "refused": f"from {_SUITE}.refusals import refused",
    "guarded_call": f"from {_SUITE}.guarded_calls import guarded_call",
    "guarded_linear": f"from {_SUITE}.guarded_linears import guarded_linear",
}
"""How a script gets at a name."""


NEW_MEMORY = """
first = case.call()
kept = first.clone()
second = other.call()
same(first, kept)
assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr(), "two results share memory"
"""
"""A script: the result of `case` stays as it is when `other` is called, and has memory of its own."""

CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
expected = [each.expected for each in cases]
def repeat(each):
    with bittensor.use_backend(backend):
        return [each.call() for _ in range(3)]
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(repeat, cases))
for wanted, calls in zip(expected, results):
    for result in calls:
        same(result, wanted)
"""
"""A script: each of `cases`, called on `backend` from four Python threads at once, gives what it should."""


def on_threads(count: int) -> str:
    """What to put before a snippet whose fault needs that many threads."""
    return f"import torch\n\ntorch.set_num_threads({count})\n"


def source(value: Any) -> str:
    """Python that builds `value`: of a case its repr, without the fields that are at their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        given = [(each, getattr(value, each.name)) for each in fields(value) if each.init]
        said = [f"{each.name}={source(content)}" for each, content in given if content != each.default]
        return f"{type(value).__name__}({', '.join(said)})"
    if isinstance(value, torch.Tensor):
        return tensor_source(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(source, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {source(content)}' for key, content in value.items())}}}"
    name = getattr(value, "__name__", "")
    return f"torch.{name}" if name and getattr(torch, name, None) is value else repr(value)


def tensor_source(tensor: torch.Tensor) -> str:
    """Python that builds a small or mostly constant tensor, with its strides."""
    dtype, shape = tensor.dtype, tuple(tensor.shape)
    if tensor.is_sparse:
        return f"{tensor_source(tensor.to_dense())}.to_sparse()"
    if tensor.device.type != "cpu":
        return f"torch.empty({shape}, dtype={dtype}, device={tensor.device.type!r})"
    if not tensor.numel():
        return f"torch.empty({shape}, dtype={dtype})"
    flat = tensor.reshape(-1)
    common = flat[-1] if tensor.numel() < 3 else flat[1:].mode().values
    others = (tensor != common).nonzero()
    text = f"torch.full({shape}, {source(common.item())}, dtype={dtype})"
    if tensor.numel() <= 12 and len(others):
        text = f"torch.tensor({source(tensor.tolist())}, dtype={dtype})"
    elif len(others):
        at = ", ".join(f"torch.tensor({column.tolist()})" for column in others.T)
        values = tensor[tuple(others.T)]
        text = f"{text}.index_put(({at},), torch.tensor({source(values.tolist())}, dtype={dtype}))"
    return (
        text
        if tensor.is_contiguous()
        else f"torch.empty_strided({shape}, {tensor.stride()}, dtype={dtype}).copy_({text})"
    )


def script(backend: str, body: str, names: Mapping[str, Any]) -> str:
    """The whole text: imports, the names, and the body with `backend` selected."""
    lines = [f"{name} = {source(value)}" for name, value in names.items()]
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    lines.append(f"with bittensor.use_backend({backend!r}):\n{body}")
    text = "\n".join(lines)
    imports = {line for name, line in _IMPORTS.items() if re.search(rf"(?<![\w.]){name}\b", text)}
    return "\n".join([*sorted({"import bittensor", *imports}, key=_import_order), "", text])


def holds(target: Target, body: str, **names: Any) -> None:
    """Run the body of a script on a target; what it raises fails the check, with the script."""
    run_body(target.name, body, names)
    target.examples += 1


def run_body(backend: str, body: str, names: Mapping[str, Any]) -> None:
    """Run the body of a script on a backend by name; what it raises is an AssertionError with the script."""
    try:
        with bittensor.use_backend(backend):
            exec(_compiled(textwrap.dedent(body).strip()), {**_namespace(), **names})
    except AssertionError as error:
        fail(str(error) or "an assertion does not hold", script(backend, body, names))
    except Exception as error:
        fail(f"expected a result, got {type(error).__name__}: {error}", script(backend, body, names))


@cache
def _compiled(body: str) -> CodeType:
    return compile(body, "<script of a check>", "exec")


@cache
def _namespace() -> dict[str, Any]:
    namespace: dict[str, Any] = {"bittensor": bittensor}
    exec("\n".join(_IMPORTS.values()), namespace)
    return namespace


def _import_order(line: str) -> tuple[bool, bool, str]:
    return (_SUITE in line, "dataclasses" not in line, line)
