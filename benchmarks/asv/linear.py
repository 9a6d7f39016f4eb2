"""The group-quantized linear: both modes, group sizes, from one row to many, large and small layers."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, FAST_BACKENDS, Timing, use
from .weights import random_weight


class Linear(Timing):
    """One layer; parameters of what a call computes."""

    params = (FAST_BACKENDS, ["int8", "float"], ["384x384", "4096x4096"], [32, 128], [1, 8, 128])
    param_names = ("backend", "mode", "n_x_k", "group_size", "m")
    bits = 4

    def setup(self, backend: str, mode: str, n_x_k: str, group_size: int, m: int) -> None:
        n, k = map(int, n_x_k.split("x"))
        use(backend, "linear", self.bits, steps=m * n * k)
        torch.manual_seed(0)
        self.weight = random_weight(n, k, group_size, self.bits)
        self.x = torch.randn(m, k)
        bittensor.linear(self.x, self.weight, activation_mode=mode)  # brings the weight into the backend's layout

    def time_linear(self, backend: str, mode: str, n_x_k: str, group_size: int, m: int) -> None:
        bittensor.linear(self.x, self.weight, activation_mode=mode)


class LinearLarge(Linear):
    params = (["cpp"], ["int8", "float"], ["11008x4096"], [128], [1, 128])


class LinearRows(Linear):
    params = (FAST_BACKENDS, ["int8", "float"], ["1536x384"], [128], [4, 32, 512])


class LinearBackends(Linear):
    params = (BACKENDS, ["int8", "float"], ["384x384"], [128], [8])


class LinearWidths(Linear):
    params = (FAST_BACKENDS, ["int8", "float"], ["1024x1024"], [128], [8], [2, 8])
    param_names = (*Linear.param_names, "bits")

    def setup(self, backend: str, mode: str, n_x_k: str, group_size: int, m: int, bits: int) -> None:
        self.bits = bits
        super().setup(backend, mode, n_x_k, group_size, m)

    def time_linear(self, backend: str, mode: str, n_x_k: str, group_size: int, m: int, bits: int) -> None:
        super().time_linear(backend, mode, n_x_k, group_size, m)


class ActivationQuantization(Linear):
    """Rows so long beside the outputs that turning activations into codes is most of a call."""

    params = (BACKENDS, ["float32", "float16", "bfloat16"], [128])
    param_names = ("backend", "dtype", "group_size")

    def setup(self, backend: str, dtype: str, group_size: int) -> None:
        super().setup(backend, "int8", "16x4096", group_size, 64)
        self.x = self.x.to(getattr(torch, dtype))

    def time_linear(self, backend: str, dtype: str, group_size: int) -> None:
        super().time_linear(backend, "int8", "16x4096", group_size, 64)


class PeakMemory:
    """Memory of a process that computes a linear: a weight that is kept twice, or unpacked, shows here."""

    params = (["cpp", "reference"], ["int8", "float"])
    param_names = ("backend", "mode")

    def setup(self, backend: str, mode: str) -> None:
        use(backend, "linear", 4)
        self.weight = random_weight(4096, 4096, 128)
        self.x = torch.zeros(2, 4096)

    def peakmem_linear(self, backend: str, mode: str) -> None:
        bittensor.linear(self.x, self.weight, activation_mode=mode)
