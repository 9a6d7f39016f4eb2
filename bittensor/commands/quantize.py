"""``bittensor quantize``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckpointError
from ..printable import printable
from .choices import Method, ScaleType, Zero
from .refusals import refusals
from .signals import ending_signals

_NOT_COPIED = ("config.json", "adapter_config.json")
"""The configuration is written anew; that of an adapter needs its weights, as an index of shards needs them."""


class OutputFormat(str, Enum):
    """Formats that checkpoints are written in."""

    BITTENSOR = "bittensor"
    COMPRESSED_TENSORS = "compressed-tensors"


def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Float safetensors, not GGUF: a file, or the directory of a model.")
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

    Matrices named *.weight are quantized; embeddings (*embed*, *wte*, *shared.weight and the like), routers, vectors
    and what --skip names stay floats. The tokenizer, licenses, other JSON files of IN, and the other parts of a model
    of sentence-transformers are copied. OUT appears when it is complete, or not at all.

    Exit status: 0, or 2 if the arguments are wrong, IN cannot be read, nothing in it can be quantized, or OUT cannot be
    written; 130, 143 or 129 if interrupted, terminated or hung up.
    """
    with refusals(), ending_signals():
        import torch

        from ..checkpoints import open_checkpoint, quantize_checkpoint, save_checkpoint, save_compressed_tensors
        from ..checkpoints.new_directory import check_free
        from ..checkpoints.quantizing import EMBEDDINGS, is_transposed
        from ..quantize_config import QuantizeConfig

        check_free(target)
        dtype = None if scales is None else getattr(torch, scales.value)
        config = QuantizeConfig(bits, group_size or None, zero.value, method.value, dtype)
        checkpoint = open_checkpoint(source)
        transposed = [name for name in checkpoint.entries if is_transposed(checkpoint, name)]
        if transposed and output_format is OutputFormat.COMPRESSED_TENSORS:
            reason = "is of a layer Conv1D, which compressed-tensors does not know; choose --format bittensor"
            raise CheckpointError(source, reason, transposed[0])
        companions = _companions(source)
        result = quantize_checkpoint(checkpoint, config, (*EMBEDDINGS, *(skip or ())), progress=True)
        quantized = [name for name, tensor in result.tensors.items() if not isinstance(tensor, torch.Tensor)]
        if not quantized:
            raise CheckpointError(source, f"nothing to quantize: {_why(result.kept)}")
        save = save_checkpoint if output_format is OutputFormat.BITTENSOR else save_compressed_tensors
        save(target, result.tensors, checkpoint.config, files=companions)
    before = sum(entry.nbytes for entry in checkpoint.entries.values())
    after = sum(tensor.nbytes for tensor in result.tensors.values())
    if as_json:
        facts = {"path": str(target), "quantized": quantized, "kept": result.kept}
        typer.echo(json.dumps(facts | {"bytes_before": before, "bytes_after": after}, indent=2))
        return
    for name, reason in result.kept.items():
        typer.echo(printable(f"kept {name}: {reason}"))
    counts = f"{len(quantized)} of {len(result.tensors)} tensors quantized, {before:,} -> {after:,} bytes"
    typer.echo(printable(f"{target}: {counts}"))


def _why(kept: Mapping[str, str]) -> str:
    """Why all matrices stay floats, for the first of them."""
    if not kept:
        return "there is no matrix in it"
    more = f"; and {len(kept) - 3} more" if len(kept) > 3 else ""
    return "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3]) + more


def _companions(source: Path) -> dict[str, Path]:
    """Files of a model that are neither weights nor its configuration, by the names that they keep below OUT.

    Raises:
        CheckpointError: one of them is a link to what is not there.
    """
    if not source.is_dir():
        return {}
    kinds = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
    files = [each for each in source.iterdir() if each.suffix in kinds or each.name.startswith(("LICENSE", "NOTICE"))]
    files = [each for each in files if each.name not in _NOT_COPIED and not each.name.endswith(".index.json")]
    for folder in ["additional_chat_templates", *_modules(source / "modules.json")]:
        files += [source / folder, *(source / folder).rglob("*")]
    for file in files:
        if file.is_symlink() and not file.exists():
            raise CheckpointError(file, "is a link to what is not there; download it, or remove the link")
    return {str(file.relative_to(source)): file for file in sorted(files) if file.is_file()}


def _modules(path: Path) -> list[str]:
    """Folders of the parts of a model of sentence-transformers beside the one at the top."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        folders = [Path(part["path"]) for part in parts]
    except (OSError, ValueError, TypeError, KeyError):  # there is none, or it is of something else
        return []
    return [folder.name for folder in folders if folder == Path(folder.name) and folder.name not in ("", "..")]
