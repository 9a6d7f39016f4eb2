"""Quantization of a float checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ..errors import CheckpointError
from ..prepared_weight import SCALE_DTYPES
from ..progress import with_progress
from ..quantize_config import QuantizeConfig
from .checkpoint import Checkpoint, Stored

EMBEDDINGS = ("*embed*", "*wte*", "*wpe*")
"""Names of tables that are looked up, not multiplied: as good as every model names them so."""


@dataclass(frozen=True)
class QuantizedTensors:
    """What became of a checkpoint: all tensors by name, and why the matrices among them that stayed floats did."""

    tensors: dict[str, Stored]
    kept: dict[str, str]


def quantize_checkpoint(
    checkpoint: Checkpoint, config: QuantizeConfig, skip: Sequence[str] = EMBEDDINGS, *, progress: bool = False
) -> QuantizedTensors:
    """Quantize every matrix ``*.weight`` of a float checkpoint; the rest is kept as it is.

    One tensor is read at a time: the peak of memory is one float tensor above the result.

    Args:
        checkpoint: safetensors with float tensors only.
        config: how; `activation_mode` has no meaning here.
        skip: patterns, as of a shell, for names of matrices to keep.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        CheckpointError: the checkpoint is GGUF, is quantized already, or cannot be read.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from bittensor.checkpoints import open_checkpoint, save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "model"), {"embed.weight": torch.ones(9, 64), "up.weight": torch.ones(8, 64)})
    ...     result = quantize_checkpoint(open_checkpoint(Path(folder, "model")), QuantizeConfig(group_size=32))
    >>> result.kept
    {'embed.weight': "matches '*embed*'"}
    >>> result.tensors["up.weight"].shape, result.tensors["up.weight"].bits
    ((8, 64), 4)
    """
    if checkpoint.format == "gguf":
        raise checkpoint.refuse(
            "is a GGUF file; expected safetensors. A quantized checkpoint is run by the names and the configuration of "
            "safetensors; take the float model in that format"
        )
    tensors: dict[str, Stored] = {}
    kept: dict[str, str] = {}
    for name in with_progress(list(checkpoint.entries), "quantizing", wanted=progress):
        tensor = checkpoint.read(name)
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(checkpoint.path, "is quantized already; expected floats", name)
        tensors[name] = tensor
        if tensor.dim() != 2 or not name.endswith(".weight") or tensor.dtype not in SCALE_DTYPES:
            continue
        pattern = next((pattern for pattern in skip if fnmatchcase(name, pattern)), None)
        if pattern is not None:
            kept[name] = f"matches {pattern!r}"
            continue
        try:
            tensors[name] = config.quantize(tensor)
        except ValueError as error:
            kept[name] = str(error)
    return QuantizedTensors(tensors, kept)
