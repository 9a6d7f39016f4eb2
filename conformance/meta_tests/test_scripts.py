"""What a failure prints can be pasted: the scripts of the checks are run as text, and hold for a sound backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from bittensor_conformance import scripts
from bittensor_conformance.session import Request, run_session


def test_scripts_run_as_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def run_text(backend: str, body: str, names: Mapping[str, Any]) -> None:
        texts.append(scripts.script(backend, body, names))
        exec(compile(texts[-1], "<script>", "exec"), {})

    monkeypatch.setattr(scripts, "run_body", run_text)
    # Every chapter that states its checks as scripts, at one width.
    chosen = "protocol or refuse or undeclared_kind or (4-bit and (relations or modules or packed_words or gradient))"
    slow = "threads or concurrent or matches or every or layout or length"
    report = run_session(Request("SoundLinear", "dev", f"({chosen}) and not ({slow})", {}))
    assert report["errors"] == []
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    assert len(texts) > 400


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, 5, dtype=torch.uint8),
        torch.tensor([1.5, float("nan"), -0.0, float("-inf")]),
        torch.tensor([[1, 2, 3], [4, 5, 6]]).t(),
        torch.full((3, 257), 15, dtype=torch.uint8).index_put(
            (torch.tensor([2]), torch.tensor([7])), torch.tensor(16).byte()
        ),
        torch.arange(24, dtype=torch.int32).reshape(2, 3, 4).permute(0, 2, 1),
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.eye(3).to_sparse(),
    ],
)
def test_tensors_are_built_again_from_their_source(value: torch.Tensor) -> None:
    built = eval(scripts.source(value), {"torch": torch})
    assert (built.dtype, built.shape, built.layout) == (value.dtype, value.shape, value.layout)
    if not value.is_sparse:
        assert built.stride() == value.stride()
    assert torch.equal(built.to_dense().nan_to_num(7.0), value.to_dense().nan_to_num(7.0))


def test_a_failing_script_is_printed_with_what_went_wrong() -> None:
    with pytest.raises(AssertionError, match=r"at \[0\] expected 2, got 1(.|\n)*To reproduce:\n    import bittensor"):
        scripts.run_body("Sound", "same(torch.tensor([a]), torch.tensor([b]))", {"a": 1, "b": 2})
