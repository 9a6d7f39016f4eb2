"""Quantization of a float checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ..errors import CheckpointError
from ..prepared_weight import GROUP_SIZE_MULTIPLE, SCALE_DTYPES
from ..progress import with_progress
from ..quantize_config import QuantizeConfig
from .checkpoint import Checkpoint, Stored

EMBEDDINGS = ("*embed*", "*wte*", "*wpe*", "*shared.weight", "*relative_attention_bias*", "transformer.w.weight")
"""Names of tables that are looked up, not multiplied: as good as every model names them so."""

_ROUTERS = ("*.gate.weight", "*router*")
"""Matrices that choose among experts: small, and what all else hangs on."""

_TRANSPOSED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TRANSPOSED_NAMES = ("*.c_attn.weight", "*.q_attn.weight", "*.c_proj.weight", "*.c_fc.weight")
"""Weights that these models of transformers store as ``[in, out]``: those of their layers ``Conv1D``."""


@dataclass(frozen=True)
class QuantizedTensors:
    """What became of a checkpoint: all tensors by name, and why the matrices among them that stayed floats did."""

    tensors: dict[str, Stored]
    kept: dict[str, str]


def quantize_checkpoint(
    checkpoint: Checkpoint, config: QuantizeConfig, skip: Sequence[str] = EMBEDDINGS, *, progress: bool = False
) -> QuantizedTensors:
    """Quantize every matrix ``*.weight`` of a float checkpoint; the rest is kept as it is.

    One tensor is read at a time: the peak of memory is one float tensor above the result. Matrices that GPT-2 stores
    as ``[in, out]`` become ``[out, in]``, as packed weights are. Routers stay floats where there are experts.

    Args:
        checkpoint: safetensors with float tensors only.
        config: how; `activation_mode` has no meaning here.
        skip: patterns, as of a shell, for names of matrices to keep.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        CheckpointError: the checkpoint is GGUF, is quantized already, or cannot be read.
        ValueError: a group size that is no multiple of 8, nor the columns of a matrix.

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
    _check_group_size(checkpoint, config.group_size)
    if any(".experts." in name for name in checkpoint.entries):
        skip = (*skip, *_ROUTERS)
    tensors: dict[str, Stored] = {}
    kept: dict[str, str] = {}
    for name in with_progress(list(checkpoint.entries), "quantizing", wanted=progress):
        tensor = checkpoint.read(name)
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(checkpoint.path, "is quantized already; expected floats", name)
        tensors[name] = tensor
        if tensor.dim() < 2 or tensor.dtype not in SCALE_DTYPES:
            continue
        if tensor.dim() != 2 or not name.endswith(".weight"):
            kept[name] = f"expected a matrix *.weight, got {list(tensor.shape)}"
            continue
        pattern = next((pattern for pattern in skip if fnmatchcase(name, pattern)), None)
        if pattern is not None:
            kept[name] = f"matches {pattern!r}"
            continue
        try:
            tensors[name] = config.quantize(tensor.t().contiguous() if is_transposed(checkpoint, name) else tensor)
        except ValueError as error:
            kept[name] = str(error)
    return QuantizedTensors(tensors, kept)


def _check_group_size(checkpoint: Checkpoint, group_size: int | None) -> None:
    """Refuse a group size that fits no matrix, however wide."""
    if group_size is None or group_size % GROUP_SIZE_MULTIPLE == 0:
        return
    matrices = {name: entry.shape for name, entry in checkpoint.entries.items() if len(entry.shape) == 2}
    if group_size not in {shape[0 if is_transposed(checkpoint, name) else 1] for name, shape in matrices.items()}:
        raise ValueError(
            f"group_size: expected a multiple of {GROUP_SIZE_MULTIPLE}, or None for one group a row, got {group_size}"
        )


def is_transposed(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a matrix is of a layer ``Conv1D`` of transformers, which stores ``[in, out]``."""
    if checkpoint.config.get("model_type") not in _TRANSPOSED_MODELS:
        return False
    return any(fnmatchcase(name, pattern) for pattern in _TRANSPOSED_NAMES)
