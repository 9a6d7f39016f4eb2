"""An embedding model, quantized in one line: how close its embeddings stay, its file, and how fast it is.

    python -m benchmarks.report.embedding_model quality [--name NAME]
    python -m benchmarks.report.embedding_model speed [--name NAME] [--rounds N] [--threads N]

"quality" embeds sentences of real speeches with all-MiniLM-L6-v2 in each setting and compares the embeddings with those
of the float32 model. "speed" times texts to embeddings, tokenization included, at batch 32; settings that differ only
in how codes are chosen run the same program and are timed once. In our settings GELU is part of the linear layer before
it (`bittensor.fuse_activations_`), both layers of a feed-forward network are one step
(`bittensor.transformers.fuse_feed_forward_`), and attention is that of the backend. Calibrated layers
(`bittensor.calibrate`) saw other sentences of the same speeches, with grids of "mse", or random tokens, with grids of
"hqq". Each part goes into benchmarks/results/NAME.json, and the table of docs/embedding_model.md is written from that
file.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.ao.quantization import quantize_dynamic

import bittensor
from bittensor.transformers import fuse_feed_forward_, random_tokens  # which registers the attention "bittensor" too

from . import generated, machine, program, record
from .measure import Rounds, Sample, interleaved, timed, with_threads
from .sentence_model import BATCH, Agreement, Embedder, load_float
from .speeches import sentences

PAGE = machine.ROOT / "docs" / "embedding_model.md"
SENTENCES = 512
CALIBRATION = 128  # other sentences, that layers are calibrated with
BATCHES = 2  # that one sample of the speed embeds
FLOAT = "float32"
SPEED = ("sentences_per_second", "times_float32", "times_float32_quartiles")
"""What a row has of `speed`."""
BITS, GROUP_SIZES, METHODS = (8, 4, 2), (32, 64, 128), ("rtn", "mse", "hqq")
ZEROS = ("float", "integer", "symmetric")


@dataclass(frozen=True)
class Setting:
    """One row of the table: how a model is made of the float32 model, and which settings are equally fast.

    A `program` of None is not timed.
    """

    name: str
    program: str | None
    make: Callable[[torch.nn.Module], torch.nn.Module]


def settings() -> list[Setting]:
    """The float model, what torch has, and every way to quantize."""
    found = [
        Setting(FLOAT, FLOAT, lambda model: model),
        Setting("float32, our attention", "float32, our attention", with_attention),
        Setting("bfloat16", "bfloat16", lambda model: model.to(torch.bfloat16)),
        Setting("torch dynamic int8", "torch dynamic int8", dynamic_int8),
    ]
    for bits in BITS:
        for zero in ZEROS if bits == 4 else ZEROS[:1]:
            for group_size in GROUP_SIZES:
                name = f"int{bits} g{group_size} {zero}"
                for method in METHODS:
                    config = bittensor.QuantizeConfig(
                        bits, group_size, zero=zero, method=method, scale_dtype=torch.float16
                    )
                    found.append(Setting(f"{name} {method}", name, quantizer(config)))
                if bits == 4 and zero != "symmetric":
                    config = bittensor.QuantizeConfig(bits, group_size, zero, "hqq", torch.float16)
                    found.append(Setting(f"{name} hqq, random tokens", name, without_data(config)))
                if zero == "float" and bits != 8:
                    config = bittensor.QuantizeConfig(bits, group_size, zero, "mse", torch.float16)
                    found.append(Setting(f"{name} gptq", name, calibrator(config, "gptq")))
                    if bits == 4:
                        found.append(Setting(f"{name} awq-scale", None, calibrator(config, "awq-scale")))
    return found


def quantizer(config: bittensor.QuantizeConfig) -> Callable[[torch.nn.Module], torch.nn.Module]:
    def make(model: torch.nn.Module) -> torch.nn.Module:
        bittensor.quantize_(model, config, fuse_activations=True, progress=False)
        return in_one_step(model)

    return make


def calibrator(config: bittensor.QuantizeConfig, method: str) -> Callable[[torch.nn.Module], torch.nn.Module]:
    def make(model: torch.nn.Module) -> torch.nn.Module:
        texts, embedder = chosen_sentences(SENTENCES + CALIBRATION, seed=0)[SENTENCES:], Embedder(model)
        batches = [embedder.tokens(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        bittensor.calibrate(model, batches, config, method=method, progress=False)
        bittensor.fuse_activations_(model)
        return in_one_step(model)

    return make


def without_data(config: bittensor.QuantizeConfig) -> Callable[[torch.nn.Module], torch.nn.Module]:
    def make(model: torch.nn.Module) -> torch.nn.Module:
        tokens = random_tokens(model)
        bittensor.quantize_(model, config, batches=tokens, damping=0.1, fuse_activations=True, progress=False)
        return in_one_step(model)

    return make


def in_one_step(model: torch.nn.Module) -> torch.nn.Module:
    fuse_feed_forward_(model)
    return with_attention(model)


def with_attention(model: torch.nn.Module) -> torch.nn.Module:
    model.set_attn_implementation("bittensor")  # type: ignore[operator]  # a model of transformers
    return model


def dynamic_int8(model: torch.nn.Module) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch says to use torchao instead
        made: torch.nn.Module = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return made


def chosen_sentences(count: int, seed: int) -> list[str]:
    """Some sentences of the speeches, in random order."""
    found = sentences()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return [found[index] for index in order[:count].tolist()]


def file_bytes(model: torch.nn.Module) -> int:
    """Bytes of the state_dict as safetensors; as torch.save writes it where that holds objects."""
    state = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        if all(isinstance(each, torch.Tensor) and not each.is_quantized for each in state.values()):
            save_file(state, path)
        else:
            torch.save(state, path)
        return path.stat().st_size


def quality(given: Sequence[Setting], count: int = SENTENCES) -> Iterator[dict[str, Any]]:
    """What each setting keeps: agreement with the float model, and bytes of the file."""
    texts, float_model = chosen_sentences(count, seed=0), load_float()
    reference = Embedder(float_model).embed(texts)
    for setting in given:
        model = setting.make(copy.deepcopy(float_model))
        agreement = Agreement.of(Embedder(model).embed(texts), reference)
        yield {"setting": setting.name, **asdict(agreement), "file_bytes": file_bytes(model)}


def speed(given: Sequence[Setting], threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Sentences per second of each program, and how many times as fast as float32 it is in the same rounds."""
    texts, float_model = chosen_sentences(BATCHES * BATCH, seed=1), load_float()
    programs = {setting.program: setting for setting in reversed(given) if setting.program is not None}
    samples: dict[str, Sample] = {}
    for name, setting in reversed(programs.items()):
        embedder = Embedder(setting.make(copy.deepcopy(float_model)))
        embedder.embed(texts[:BATCH])

        def sample(embedder: Embedder = embedder) -> float:
            return len(texts) / timed(lambda: embedder.embed(texts), 1)

        samples[name] = with_threads(threads, sample)
    taken = interleaved(samples, Rounds(rounds))
    return {
        name: {
            "sentences_per_second": round(taken.median(name), 1),
            "times_float32": round(taken.ratio(name, FLOAT), 3),
            "times_float32_quartiles": [round(each, 3) for each in taken.ratio_range(name, FLOAT)],
        }
        for name in samples
    }


def speed_in(rows: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The speed of a setting, of a row that has it and runs the same program."""
    programs = {setting.name: setting.program for setting in settings()}
    for other, row in rows.items():
        if "times_float32" in row and programs[other] == programs[name]:
            return {part: row[part] for part in SPEED}
    return {}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| setting | cosine, mean | cosine, least | rank correlation | file, MB | sentences/s | times float32 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        figures = [
            f"{row['cosine']:.4f}",
            f"{row['least_cosine']:.4f}",
            f"{row['rank_correlation']:.4f}",
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['sentences_per_second']:.0f}" if "sentences_per_second" in row else "",
            f"{row['times_float32']:.2f}" if "times_float32" in row else "",
        ]
        lines.append(f"| {' | '.join([row['setting'], *figures])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = program.arguments("An embedding model, quantized.", name="embedding-model", rounds=5)
    parser.add_argument("part", choices=["quality", "speed"])
    parser.add_argument("--only", default="", help="settings whose names contain this; the others stay in the file")
    given: argparse.Namespace = parser.parse_args()
    chosen = [setting for setting in settings() if given.only in setting.name]
    old = record.read(given.name) or {"machine": {}, "rows": []}
    rows = {row["setting"]: row for row in old["rows"]}
    with program.set_up(given.threads, given.rounds) as about:
        torch.set_num_threads(given.threads)
        kept = old["machine"] | {f"{given.part} of {given.only}" if given.only else given.part: about}
        if given.part == "quality":
            for row in quality(chosen):
                rows[row["setting"]] = rows.get(row["setting"], {}) | row | speed_in(rows, row["setting"])
                record.write(given.name, kept, {}, in_order(rows))
        else:
            figures = speed(settings(), given.threads, given.rounds)
            for setting in settings():
                figures_of = {} if setting.program is None else figures[setting.program]
                rows[setting.name] = rows.get(setting.name, {"setting": setting.name}) | figures_of
            record.write(given.name, kept, {}, in_order(rows))
    complete = [row for row in in_order(rows) if "cosine" in row]
    generated.put(PAGE, "table", table(complete))
    print(table(complete))


def in_order(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows in the order of the settings."""
    return [rows[setting.name] for setting in settings() if setting.name in rows]


if __name__ == "__main__":
    main()
