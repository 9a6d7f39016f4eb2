"""A low-rank update beside a packed weight."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..checks import check_int
from ..ops import linear
from ..quantization import METHODS, quantize
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_choice
from .quantized_linear import QuantizedLinear

_EPILOGUES = {None: None, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class LoRALinear(torch.nn.Module):
    """A frozen `QuantizedLinear` with a trainable update of low rank: ``base(x) + alpha / rank * x @ A.T @ B.T``.

    LoRA: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; over a packed base as in T. Dettmers
    et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023. The base stays packed: the gradient that passes
    through it is computed on its codes (`linear_input_grad`, docs/numerics.md, section 6), and no float copy of it is
    kept. The update is computed in the dtype of A, in float, whatever the activation mode of the base, and is added
    before the epilogue of the base.

    A starts as that of ``torch.nn.Linear``, B as 0, so that the layer starts as its base.

    Args:
        base: kept, not copied; its bias gets no gradient.
        rank: columns of B, at least 1.
        alpha: the update is scaled by ``alpha / rank``. Kept as a buffer, which is saved with A and B.
        dropout: share of the update's input that is dropped in training.

    Raises:
        TypeError: `base` is not a QuantizedLinear, or `rank` not an int.
        ValueError: `rank` below 1, or `dropout` out of 0..1.

    >>> import torch, bittensor
    >>> base = bittensor.QuantizedLinear.from_linear(torch.nn.Linear(64, 32), group_size=32)
    >>> layer = bittensor.nn.LoRALinear(base, rank=4, alpha=8)
    >>> x = torch.randn(3, 64)
    >>> torch.equal(layer(x), base(x))
    True
    >>> [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    ['lora_a', 'lora_b']
    """

    alpha: torch.Tensor

    def __init__(self, base: QuantizedLinear, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(base, QuantizedLinear):
            raise TypeError(f"base: expected a QuantizedLinear, got {type(base).__name__}; quantize it first")
        if check_int("rank", rank) < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.base = base.requires_grad_(False)
        self.dropout = torch.nn.Dropout(dropout)
        device = base.weight.device
        self.lora_a = torch.nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_b = torch.nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.register_buffer("alpha", torch.tensor(float(alpha), device=device))
        torch.nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.train(base.training)

    @property
    def rank(self) -> int:
        """Rows of A and columns of B."""
        return self.lora_a.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_features]`` to ``[..., out_features]`` of the same dtype."""
        base = self.base
        y = linear(x, base.weight, base.bias, base.activation_mode)
        inner = F.linear(self.dropout(x.to(self.lora_a.dtype)), self.lora_a) * (self.alpha / self.rank)
        y = y + F.linear(inner, self.lora_b).to(y.dtype)
        epilogue = _EPILOGUES[base.epilogue]
        return y if epilogue is None else epilogue(y)

    @torch.no_grad()
    def update(self) -> torch.Tensor:
        """What the layer adds to the weight: float32 ``[out_features, in_features]``, ``alpha / rank * B @ A``."""
        with torch.autocast("cpu", enabled=False):
            return (self.lora_b.float() @ self.lora_a.float()) * (self.alpha.float() / self.rank)

    def merged(self, method: str = "mse") -> QuantizedLinear:
        """A layer of one weight, base and update in one: their float sum, quantized again in the form of the base.

        This rounds: what it costs is `bittensor.MergedLayer.error`. An update of 0 leaves the weight as it is, and the
        layers share it then. The base is left as it is.

        Args:
            method: as in `bittensor.quantize`.

        Raises:
            TypeError, ValueError: an unknown method, a sum that is not finite, or one that the scale dtype of the base
                cannot hold.
        """
        check_choice("method", method, METHODS)
        update = self.update()
        if not bool(update.any()):
            return self.on_weight(self.base.weight)
        return self.requantized(self.base.weight.dequantize() + update, method)

    def requantized(self, values: torch.Tensor, method: str = "mse") -> QuantizedLinear:
        """The base on other values, float32 ``[out_features, in_features]``, quantized in the form of its weight.

        Raises:
            TypeError, ValueError: as `bittensor.quantize`.
        """
        form = self.base.weight.form
        return self.on_weight(quantize(values, form.bits, form.group_size, form.zero, method, form.scale_dtype))

    def on_weight(self, weight: QuantizedWeight) -> QuantizedLinear:
        """The base on another weight, which is not copied.

        Raises:
            TypeError, ValueError: as `QuantizedLinear`.
        """
        base = self.base
        bias = None if base.bias is None else base.bias.detach().clone()
        layer = QuantizedLinear(weight, bias, activation_mode=base.activation_mode, epilogue=base.epilogue)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        alpha = "on meta" if self.alpha.is_meta else f"{self.alpha.item():g}"
        return f"rank={self.rank}, alpha={alpha}"
