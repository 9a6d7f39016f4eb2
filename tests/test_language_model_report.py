"""Tokens per second beside llama.cpp: how they are taken and tabulated, and that the page is what the record says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from benchmarks.report import generated, language_model, perplexity, record
from bittensor.models import load_language_model

LLAMA_BENCH = """#!{python}
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert (given["-p"], given["-n"], given["-o"]) == ("512", "64", "json"), given
about = dict(build_commit="c0ffee", build_number=7, backends="CPU", model_type=given["-m"], flash_attn=-1)
threads = int(given["-t"])
rows = [dict(n_prompt=512, n_gen=0, samples_ts=[100.0 * threads, 1.0, 900.0])]
rows.append(dict(n_prompt=0, n_gen=64, samples_ts=[10.0 * threads, 1.0, 90.0]))
print(json.dumps([about | row for row in rows]))
"""


@pytest.fixture
def llama_bench(tmp_path: Path) -> Path:
    path = tmp_path / "llama-bench"
    path.write_text(LLAMA_BENCH.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_the_program_of_llama_cpp(llama_bench: Path) -> None:
    program = language_model.LlamaBench(llama_bench, Path("some.gguf"), 3)
    assert program.speeds() == {"prompt": 300.0, "generation": 30.0}
    assert program.about()["build_commit"] == "c0ffee"
    assert program.about()["model_type"] == "some.gguf"


def test_our_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "PROMPT", 40)
    monkeypatch.setattr(language_model, "NEW", 8)
    speeds = language_model.our_speeds(load_language_model(write_tiny_llama(tmp_path / "tiny")).model)
    assert set(speeds) == set(language_model.PARTS)
    assert min(speeds.values()) > 1, "tokens per second; which is faster depends on what else runs"


def test_programs_take_turns_and_are_compared_within_rounds() -> None:
    calls = []

    def program(name: str, factor: float) -> dict[str, float]:
        calls.append(name)
        slow = len(calls) > 2  # the second round, for both
        return {"prompt": factor * (50 if slow else 100), "generation": factor * (5 if slow else 10)}

    ours, peer = language_model.OURS, language_model.PEER
    samples = language_model.measure({ours: lambda: program(ours, 3), peer: lambda: program(peer, 1)}, rounds=3)
    assert calls == [ours, peer, peer, ours, ours, peer]
    rows = language_model.rows(samples)
    assert [row["program"] for row in rows] == [ours, peer]
    assert rows[0]["prompt_tokens_per_second"] == 150
    assert rows[0]["prompt_times_peer"] == rows[0]["generation_times_peer"] == 3
    about = {"cpu": "abacus", "cpus": 4, "isa": "beads", "threads": 2}
    expected = "| abacus, 4 CPUs, beads, 2 threads | BitTensor | 150 | 150 to 225 | 15 | 15 to 22 | 3.00, 3.00 |\n"
    assert expected in language_model.table([{"machine": about, "rows": rows}])
    alone = language_model.rows(language_model.measure({ours: lambda: program(ours, 3)}, rounds=2))
    assert "prompt_times_peer" not in alone[0]


def test_the_page_shows_the_result_files() -> None:
    text = language_model.PAGE.read_text(encoding="utf-8")
    results = language_model.committed()
    assert results
    assert generated.replaced(text, "speed", language_model.table(results)) == text
    result = record.read("perplexity-intel-xeon-2threads")
    assert result is not None
    assert generated.replaced(text, "perplexity", perplexity.table(result["rows"])) == text


def test_a_page_without_marks() -> None:
    with pytest.raises(ValueError, match="the page has no marks <!-- t: begin --> and <!-- t: end -->"):
        generated.replaced("<!-- t: end -->\n<!-- t: begin -->\n", "t", "")
