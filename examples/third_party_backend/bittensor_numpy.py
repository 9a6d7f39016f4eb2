"""A BitTensor backend in NumPy: every operation but embedding, codes of 4 and 8 bits. docs/backends.md explains it."""

from __future__ import annotations

import numpy as np
import torch

from bittensor import Backend, Capabilities, PreparedWeight, QuantizedWeight
from bittensor.backend import CODE_OPERATIONS, GRADIENT_OPERATIONS, WEIGHT_OPERATIONS


class NumpyBackend(Backend):
    """Whole matrices at once, in int64 and float64."""

    name = "numpy"
    protocol_version = 1  # the version that this class was written for, as a number
    capabilities = Capabilities(
        operations=frozenset((*CODE_OPERATIONS, *WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS)),
        bits=frozenset({4, 8}),
        numerics="bounded",
        linear_bits=frozenset({4, 8}),
        activation_modes=frozenset({"float"}),
        epilogues=frozenset({None, "relu"}),
    )

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        *leading, columns = codes.shape
        words = -(-columns * bits // 64)
        lanes = np.zeros((*leading, words * 64 // bits), dtype=np.uint64)
        lanes[..., :columns] = codes.numpy()
        shifted = lanes.reshape(*leading, words, 64 // bits) << np.arange(0, 64, bits, dtype=np.uint64)
        return torch.from_numpy(np.bitwise_or.reduce(shifted, axis=-1).view(np.int64))

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        *leading, count = words.shape
        lanes = words.numpy().view(np.uint64)[..., np.newaxis] >> np.arange(0, 64, bits, dtype=np.uint64)
        codes = (lanes & np.uint64(2**bits - 1)).astype(np.uint8).reshape(*leading, count * 64 // bits)
        return torch.from_numpy(np.ascontiguousarray(codes[..., :columns]))

    def packed_matmul(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        in_features: int | None,
        x_zero: int,
        weight_zero: int,
        scale: torch.Tensor | None,
        out_zero: int,
        out_dtype: torch.dtype | None,
    ) -> torch.Tensor:
        if x.dtype is torch.int64:
            assert in_features is not None  # the protocol promises it for packed words
            x = self.unpack(x, in_features, bits)
        codes = self.unpack(weight, x.shape[-1], bits)
        acc = (x.numpy().astype(np.int64) - x_zero) @ (codes.numpy().astype(np.int64) - weight_zero).T
        if bias is not None:
            acc = acc + bias.numpy()
        if out_dtype is torch.int32:
            return torch.from_numpy(acc.astype(np.int32))
        if scale is not None:
            with np.errstate(over="ignore"):  # infinity saturates, as it should
                acc = np.rint(acc.astype(np.float32) * scale.numpy(force=True)) + out_zero
        return self.pack(torch.from_numpy(acc.clip(0, 2**bits - 1).astype(np.uint8)), bits)

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        return weight.canonical()

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        return QuantizedWeight.from_canonical(weight)

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        y = x.detach().double().numpy() @ self._values(weight).T
        if bias is not None:
            y = y + bias.detach().double().numpy()
        if epilogue == "relu":
            y = np.where(y < 0, 0, y)  # NaN stays NaN
        return torch.from_numpy(np.ascontiguousarray(y)).to(x.dtype)

    def linear_input_grad(self, dy: torch.Tensor, weight: PreparedWeight) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(dy.double().numpy() @ self._values(weight))).to(dy.dtype)

    def _values(self, weight: PreparedWeight) -> np.ndarray:
        """The dequantized weight, float64 [N, K]."""
        form, tensors = weight.form, self.restore(weight).tensors()
        group = np.arange(form.shape[1]) // form.group_size
        parameters = {name: each.double().numpy()[:, group] for name, each in tensors.items() if name != "words"}
        codes = self.unpack(tensors["words"], form.shape[1], form.bits).double().numpy()
        zero = 0 if form.zero == "float" else parameters.get("zeros", 2 ** (form.bits - 1))
        return (codes - zero) * parameters["scales"] + parameters.get("offsets", 0)
