"""The command ``bittensor``. Not imported by ``import bittensor``: typer and rich load only here."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._distribution import __version__
from .errors import BackendError, CheckpointError
from .info import Info, InstalledBackend, collect
from .registry import DEFAULT_BACKEND, ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    from .models.answer_text import AnswerText

CONFORMANCE_EXTRA = "packed-bittensor[conformance]"
CONFORMANCE_REQUIREMENTS = frozenset({"hypothesis", "numpy", "pytest"})

app = typer.Typer(
    name="bittensor",
    help="Packed low-bit tensors for PyTorch on CPUs: the installation, checkpoints, language models, backends.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class Profile(str, Enum):
    """How much the conformance suite tries."""

    DEV = "dev"
    CI = "ci"
    NIGHTLY = "nightly"


def main() -> None:
    """Entry point of the script ``bittensor`` and of ``python -m bittensor``."""
    try:
        app(prog_name="bittensor")
    except OSError as error:
        if error.filename is not None:
            raise
        typer.echo(f"bittensor: the output cannot be written: {error.strerror}", err=True)
        sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bittensor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show which backend and kernels a call would use, and why.

    Loads every installed backend. One that fails is shown with its error, and the exit status is 1. One that only
    lacks the packages of its extra is shown with the extra.

    Environment: BITTENSOR_BACKEND selects a backend ("cpp", "cpp:avx2", "reference", ...); BITTENSOR_ISA caps the
    kernels of the C++ backend ("scalar", "avx2", "avx512vnni").
    """
    facts = collect()
    if as_json:
        typer.echo(json.dumps(asdict(facts), indent=2))
    else:
        Console().print(_info_table(facts))
    raise typer.Exit(1 if facts.errors else 0)


@app.command()
def conformance(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Backend to test, with its variants, or one variant (cpp:avx2); may be repeated. "
            f"Without it: {ENVIRONMENT_VARIABLE}, else {DEFAULT_BACKEND}.",
        ),
    ] = None,
    profile: Annotated[
        Profile,
        typer.Option(help="dev: quick. ci: the same examples in every run. nightly: random, many examples."),
    ] = Profile.DEV,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the results to FILE, as JSON.")
    ] = None,
    badge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a badge to FILE, .svg or .json. Not with -k."),
    ] = None,
    keyword: Annotated[
        str | None,
        typer.Option("--keyword", "-k", metavar="EXPR", help="Run only checks whose name matches EXPR, as pytest -k."),
    ] = None,
    expected_failures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Known failures as JSON {check: reason}. One that passes, or names no check, is an error.",
        ),
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Examples of each property, instead of the profile's number.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="With nightly: search for so long, with any number of examples.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Targets tested at the same time; by default the processors.")
    ] = None,
) -> None:
    """Hold installed backends against docs/numerics.md.

    Exit status: 0 if all that the backends declare was tested and holds, or all that -k selects of it; 1 if a check
    failed; 2 if the arguments are wrong or something was not run.
    """
    names = backend or [os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_BACKEND)]
    try:
        from bittensor_conformance.runner import run  # an optional part: needs the packages of its extra

        status = run(
            names,
            profile=profile.value,
            report=report,
            badge=badge,
            keyword=keyword,
            expected_failures=expected_failures,
            max_examples=max_examples,
            minutes=minutes,
            jobs=jobs,
        )
    except ModuleNotFoundError as error:
        if error.name not in CONFORMANCE_REQUIREMENTS:
            raise
        _fail(f"the conformance suite needs {error.name}, which is not installed: pip install '{CONFORMANCE_EXTRA}'")
    except BackendError as error:
        _fail(str(error))
    raise typer.Exit(status)


class Method(str, Enum):
    """How codes are chosen, as `bittensor.quantize` says."""

    RTN = "rtn"
    MSE = "mse"
    HQQ = "hqq"


class Zero(str, Enum):
    """What a group holds beside its scale, as `bittensor.quantize` says."""

    SYMMETRIC = "symmetric"
    INTEGER = "integer"
    FLOAT = "float"


class ScaleType(str, Enum):
    """Dtype of scales and offsets."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class OutputFormat(str, Enum):
    """Formats that checkpoints are written in."""

    BITTENSOR = "bittensor"
    COMPRESSED_TENSORS = "compressed-tensors"


class ActivationMode(str, Enum):
    """Modes of `bittensor.linear`."""

    INT8 = "int8"
    FLOAT = "float"


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF or safetensors file, or a directory with one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the tensors of a checkpoint: type, shape, bits per weight, bytes. Reads its headers only.

    Exit status: 0, or 2 if the file cannot be read.
    """
    with _refusals():
        from .checkpoints import open_checkpoint

        checkpoint = open_checkpoint(file)
    entries = checkpoint.entries.values()
    values, nbytes = sum(entry.values for entry in entries), sum(entry.nbytes for entry in entries)
    bits = 8 * nbytes / values if values else 0.0
    if as_json:
        listed = [asdict(entry) | {"bits_per_weight": entry.bits_per_weight} for entry in entries]
        facts = {"path": str(checkpoint.path), "format": checkpoint.format, "tensors": listed}
        total = {"tensors": len(listed), "weights": values, "bytes": nbytes, "bits_per_weight": bits}
        typer.echo(json.dumps(facts | {"total": total}, indent=2))
        return
    table = Table(title=f"{checkpoint.format}, {len(entries)} tensors", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("type", no_wrap=True)
    for heading in ("shape", "bits per weight", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        shape = " x ".join(map(str, entry.shape))
        name = entry.name if entry.name.isprintable() else ascii(entry.name)
        table.add_row(Text(name), entry.type, shape, f"{entry.bits_per_weight:.4g}", f"{entry.nbytes:,}")
    table.add_section()
    table.add_row("all", "", f"{values:,} weights", f"{bits:.4g}", f"{nbytes:,}")
    Console().print(table)


@app.command()
def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Float safetensors: a file, or the directory of a model.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to make; it must not exist, or be empty.")],
    bits: Annotated[int, typer.Option(help="Bits of a code: 2, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Columns that share a scale; 0 for one group a row.")] = 128,
    method: Annotated[Method, typer.Option(help="Round to nearest, least squares, or half-quadratic.")] = Method.RTN,
    zero: Annotated[Zero, typer.Option(help="Kind of zero point.")] = Zero.SYMMETRIC,
    scales: Annotated[ScaleType | None, typer.Option(help="Dtype of scales; by default that of the weights.")] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Keep matrices whose name matches, beside those of embeddings; repeatable."
        ),
    ] = None,
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Format of OUT.")] = OutputFormat.BITTENSOR,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")] = False,
) -> None:
    """Quantize the matrices of a float checkpoint.

    Matrices named *.weight are quantized; embeddings (*embed*, *wte*, *wpe*), vectors and what --skip names stay
    floats. The tokenizer and other JSON files of IN are copied. OUT appears when it is complete, or not at all.

    Exit status: 0, or 2 if the arguments are wrong, IN cannot be read, or OUT cannot be written.
    """
    with _refusals():
        import torch

        from .checkpoints import open_checkpoint, quantize_checkpoint, save_checkpoint, save_compressed_tensors
        from .checkpoints.new_directory import check_free
        from .checkpoints.quantizing import EMBEDDINGS
        from .quantize_config import QuantizeConfig

        check_free(target)
        dtype = None if scales is None else getattr(torch, scales.value)
        config = QuantizeConfig(bits, group_size or None, zero.value, method.value, dtype)
        checkpoint = open_checkpoint(source)
        result = quantize_checkpoint(checkpoint, config, (*EMBEDDINGS, *(skip or ())), progress=True)
        save = save_checkpoint if output_format is OutputFormat.BITTENSOR else save_compressed_tensors
        save(target, result.tensors, checkpoint.config, files=_companions(source))
    before = sum(entry.nbytes for entry in checkpoint.entries.values())
    after = sum(tensor.nbytes for tensor in result.tensors.values())
    quantized = [name for name, tensor in result.tensors.items() if not isinstance(tensor, torch.Tensor)]
    if as_json:
        facts = {"path": str(target), "quantized": quantized, "kept": result.kept}
        typer.echo(json.dumps(facts | {"bytes_before": before, "bytes_after": after}, indent=2))
        return
    for name, reason in result.kept.items():
        typer.echo(f"kept {name}: {reason}")
    typer.echo(f"{target}: {len(quantized)} of {len(result.tensors)} tensors quantized, {before:,} -> {after:,} bytes")


def _companions(source: Path) -> list[Path]:
    """Files of a model that are neither weights nor its configuration."""
    if not source.is_dir():
        return []
    own = {"config.json", "model.safetensors.index.json"}
    names = [file for file in sorted(source.iterdir()) if file.suffix in {".json", ".jinja", ".txt", ".model"}]
    return [file for file in names if file.is_file() and file.name not in own]


@app.command()
def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NxK", help="Outputs x inputs of the weight; repeatable. Without it: 4096x4096."),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows of the input; repeatable. Without it: 1, 8 and 128.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Backend, or one instruction set of it (cpp:avx2); repeatable. "
            f"Without it: {ENVIRONMENT_VARIABLE}, else {DEFAULT_BACKEND}.",
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a code: 2, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Columns that share a scale; 0 for one group a row.")] = 128,
    zero: Annotated[Zero, typer.Option(help="Kind of zero point.")] = Zero.SYMMETRIC,
    activation_mode: Annotated[
        ActivationMode, typer.Option(help="int8: round activations, fast. float: quantized weights only.")
    ] = ActivationMode.INT8,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for torch's default.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.001, help="Time for each figure.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Time the linear layer on this machine, beside torch's linear in float32.

    Weights have float16 scales. The same weight is used in every call: one that fits stays in the caches.

    Exit status: 0, or 2 if the arguments are wrong or a backend cannot run them.
    """
    with _refusals():
        import torch

        from .bench import time_linear
        from .quantize_config import QuantizeConfig

        config = QuantizeConfig(bits, group_size or None, zero.value, "rtn", torch.float16, activation_mode.value)
        timings = list(
            time_linear(
                [_parse_shape(each) for each in shape or ["4096x4096"]],
                rows or [1, 8, 128],
                backend or [os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_BACKEND)],
                config,
                threads=threads or torch.get_num_threads(),
                seconds=seconds,
            )
        )
    if as_json:
        listed = [asdict(timing) | {"times_float32": timing.times_float32} for timing in timings]
        settings = {
            "bits": bits,
            "group_size": group_size,
            "zero": zero.value,
            "activation_mode": activation_mode.value,
        }
        typer.echo(json.dumps(settings | {"threads": threads or torch.get_num_threads(), "timings": listed}, indent=2))
        return
    title = f"linear, {bits} bits, group size {group_size or 'K'}, {zero.value}, {activation_mode.value} activations"
    table = Table(title=title, title_justify="left")
    for heading in ("backend", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "us", "GOP/s", "GB/s of weight", "float32, us", "times float32"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in timings:
        table.add_row(
            timing.backend,
            f"{timing.out_features} x {timing.in_features}",
            str(timing.rows),
            f"{timing.microseconds:.4g}",
            f"{timing.gops:.4g}",
            f"{timing.gigabytes_per_second:.3g}",
            f"{timing.float32_microseconds:.4g}",
            f"{timing.times_float32:.2f}",
        )
    Console().print(table)


def _parse_shape(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--shape: expected NxK, two counts of at least 1, got {text!r}")
    return int(parts[0]), int(parts[1])


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="A GGUF file, or a directory with safetensors and tokenizer.json.")],
    prompt: Annotated[
        list[str],
        typer.Option(
            help="What to say to the model; - reads it from standard input. Repeatable: answered together, then shown."
        ),
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens at the latest.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token. Above: draw.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0 means all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End an answer before this text; the model may end it earlier. Repeatable."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Put the prompt into the model's chat template.")
    ] = True,
    activation_mode: Annotated[
        ActivationMode, typer.Option(help="int8: round activations, fast. float: quantized weights only.")
    ] = ActivationMode.INT8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Let a language model answer. Text goes to standard output, a last line with speeds to standard error.

    Exit status: 0, 2 if the arguments are wrong or the model cannot be read, 130 if interrupted.
    """
    try:
        with _refusals():
            from .models import Sampling, load_language_model
            from .models import generate_together as generate_tokens

            sampling = Sampling(temperature, top_k, top_p, seed)
            texts = [sys.stdin.read() if each == "-" else each for each in prompt]
            language_model = load_language_model(model, activation_mode=activation_mode.value, progress=True)
            tokenization = language_model.tokenization
            tokens = [tokenization.encode(text, chat=chat) for text in texts]
            clock = GenerationClock(sum(map(len, tokens)))
            answers = Answers([tokenization.answer(stop or ()) for _ in texts], not as_json and len(texts) == 1)
            new = generate_tokens(
                language_model.model, tokens, max_new_tokens, sampling, tokenization.stop, answers.ended
            )
            interrupted = False
            try:
                answers.take(clock.timed(new))
            except KeyboardInterrupt:
                interrupted = True
        if as_json:
            facts = {"prompts": texts, "answers": answers.texts(), "tokens": answers.tokens}
            typer.echo(json.dumps(facts | clock.facts() | {"interrupted": interrupted}, indent=2))
        elif len(texts) > 1:
            for text in answers.texts():
                _show(text)
                typer.echo()
        else:
            typer.echo()
        typer.echo(clock.summary(), err=True)
    except KeyboardInterrupt:  # while the model is loaded
        typer.echo(err=True)
        interrupted = True
    raise typer.Exit(130 if interrupted else 0)


class Answers:
    """Several answers as their tokens come; each piece of text is shown at once if `streaming`.

    Attributes:
        tokens: of each answer, so far.
        ended: numbers of the answers that a stop text has ended.
    """

    def __init__(self, answers: Sequence[AnswerText], streaming: bool) -> None:
        self.tokens: list[list[int]] = [[] for _ in answers]
        self.ended: set[int] = set()
        self._answers, self._streaming = answers, streaming

    def take(self, new: Iterator[tuple[int, int]]) -> None:
        """Go through all of `new`; what an interrupt leaves of an answer is complete up to there."""
        try:
            for number, token in new:
                self.tokens[number].append(token)
                answer = self._answers[number]
                self._show(answer.add(token))
                if answer.ended:
                    self.ended.add(number)
        finally:
            for answer in self._answers:
                self._show(answer.finish())

    def texts(self) -> list[str]:
        """What there is of each answer."""
        return [answer.text for answer in self._answers]

    def _show(self, piece: str) -> None:
        if self._streaming and piece:
            _show(piece)


class GenerationClock:
    """Times tokens as they pass: the first one ends the prompt."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.new_tokens = prompt_tokens, 0
        self.start = self.first = self.last = time.perf_counter()

    def timed(self, tokens: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The same tokens."""
        self.start = self.first = self.last = time.perf_counter()
        for token in tokens:
            self.last = time.perf_counter()
            self.first = self.last if self.new_tokens == 0 else self.first
            self.new_tokens += 1
            yield token

    def facts(self) -> dict[str, float | int | None]:
        """What `summary` says, by name; a speed is None where nothing was timed."""
        prompt, generation = self.first - self.start, self.last - self.first
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prompt_tokens_per_second": self.prompt_tokens / prompt if prompt > 0 else None,
            "new_tokens_per_second": (self.new_tokens - 1) / generation if generation > 0 else None,
        }

    def summary(self) -> str:
        """One line. The first new token belongs to the prompt, whose work makes it."""
        parts = [f"prompt: {self.prompt_tokens} tokens", f"generation: {self.new_tokens} tokens"]
        if self.first > self.start:
            parts[0] += f", {self.prompt_tokens / (self.first - self.start):.1f} tokens/s"
        if self.last > self.first:
            parts[1] += f", {(self.new_tokens - 1) / (self.last - self.first):.1f} tokens/s"
        return "; ".join(parts)


def _show(text: str) -> None:
    """Print a piece of an answer; to a terminal without control characters, which could change its state."""
    if sys.stdout.isatty():
        text = "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _refusals() -> Iterator[None]:
    """What the user can put right ends the program with one line and status 2."""
    try:
        yield
    except (CheckpointError, BackendError, ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"bittensor: {message}", err=True)
    raise typer.Exit(2)


def _info_table(facts: Info) -> Table:
    table = Table(title=f"bittensor {facts.version}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    selected = facts.backend
    table.add_row("backend", Text(selected.name))
    table.add_row("backend reason", Text(selected.reason))
    for key, value in selected.details.items():
        table.add_row(Text(key), Text(value))
    if selected.error is not None:
        table.add_row("error", Text(selected.error, style="red"))
    table.add_section()
    for backend in facts.installed_backends:
        table.add_row(Text(f"installed: {backend.name}"), _describe_installed(backend))
    table.add_section()
    table.add_row("cpu", Text(facts.cpu))
    table.add_row("torch threads", str(facts.torch_threads))
    table.add_row("torch", facts.torch)
    table.add_row("python", facts.python)
    return table


def _describe_installed(backend: InstalledBackend) -> Text:
    if backend.error is not None:
        return Text(backend.error, style="red")
    if backend.missing is not None:
        return Text(backend.missing, style="dim")
    lines = [
        ", ".join(backend.operations),
        f"bits {', '.join(map(str, backend.bits))}; {backend.numerics} numerics",
        *backend.variants,
    ]
    return Text("\n".join(lines))
