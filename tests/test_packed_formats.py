"""GPTQ, AWQ and compressed-tensors: packed here as their documents say, read back to the values they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bittensor
from bittensor.checkpoints import ReorderedWeight, open_checkpoint, save_compressed_tensors

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_int32(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``[rows, columns]`` to int32 along the columns, lowest bits first; one code at a time."""
    per_word = 32 // bits
    packed = torch.zeros((codes.shape[0], -(-codes.shape[1] // per_word)), dtype=torch.int64)
    for column in range(codes.shape[1]):
        packed[:, column // per_word] |= codes[:, column].to(torch.int64) << bits * (column % per_word)
    return packed.to(torch.int32)  # wraps: the highest code sets the sign


class Layer:
    """Random codes ``[N, K]``, zero points and scales ``[N, G]``, and the group of each column."""

    def __init__(
        self, bits: int = 4, outputs: int = 16, columns: int = 64, group_size: int = 32, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        groups = -(-columns // group_size)
        self.bits, self.group_size, self.shape = bits, group_size, (outputs, columns)
        self.codes = torch.randint(0, 2**bits, self.shape, generator=generator)
        self.zeros = torch.randint(0, 2**bits, (outputs, groups), generator=generator)
        self.scales = torch.randn(outputs, groups, generator=generator).to(torch.float16)
        self.g_idx = torch.arange(columns) // group_size
        self.scattered = self.g_idx[torch.randperm(columns, generator=generator)]

    def values(self, g_idx: torch.Tensor | None = None) -> torch.Tensor:
        """``scale * (code - zero)`` in float32, by a gather for each column."""
        g_idx = self.g_idx if g_idx is None else g_idx
        return self.scales.float()[:, g_idx] * (self.codes - self.zeros[:, g_idx]).float()

    def gptq(self, version: int) -> dict[str, torch.Tensor]:
        qzeros = pack_int32(self.zeros.t(), self.bits)
        if version == 1:  # as GPTQModel does it: a zero point of 0 borrows from the next
            qzeros -= {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}[self.bits]
        return {
            "m.qweight": pack_int32(self.codes, self.bits).t().contiguous(),
            "m.qzeros": qzeros,
            "m.scales": self.scales.t().contiguous(),
            "m.g_idx": self.g_idx.to(torch.int32),
        }

    def awq(self) -> dict[str, torch.Tensor]:
        def pack(codes: torch.Tensor) -> torch.Tensor:
            return pack_int32(codes.reshape(len(codes), -1, 8)[..., list(AWQ_ORDER)].reshape(codes.shape), 4)

        return {
            "m.qweight": pack(self.codes.t()),
            "m.qzeros": pack(self.zeros.t()),
            "m.scales": self.scales.t().contiguous(),
        }

    def compressed(self, symmetric: bool = False) -> dict[str, torch.Tensor]:
        tensors = {
            "m.weight_packed": pack_int32(self.codes, self.bits),
            "m.weight_scale": self.scales,
            "m.weight_shape": torch.tensor(self.shape),
        }
        if symmetric:
            self.zeros = torch.full_like(self.zeros, 2 ** (self.bits - 1))
        else:
            tensors["m.weight_zero_point"] = pack_int32(self.zeros.t(), self.bits).t().contiguous()
        return tensors


def write(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors | {"m.bias": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": quantization}))
    return folder


def gptq_config(layer: Layer, version: int = 1, **more: Any) -> dict[str, Any]:
    stored = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    return {"quant_method": "gptq", "bits": layer.bits, "group_size": layer.group_size} | stored | more


def compressed_config(layer: Layer, strategy: str = "group", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": layer.bits, "type": "int", "strategy": strategy, "group_size": layer.group_size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups} | more


def read(folder: Path) -> bittensor.QuantizedWeight | ReorderedWeight:
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.entries) == ["m.bias", "m.weight"] or list(checkpoint.entries) == ["m.weight", "m.bias"]
    weight = checkpoint.read("m.weight")
    assert not isinstance(weight, torch.Tensor)
    assert checkpoint.entries["m.weight"].shape == weight.shape
    assert torch.equal(checkpoint.read("m.bias"), torch.ones(3))  # type: ignore[arg-type]
    return weight


@pytest.mark.parametrize("columns", [64, 96])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(version: int, bits: int, columns: int, tmp_path: Path) -> None:
    layer = Layer(bits, columns=columns)
    layer.zeros[::5] = 0
    weight = read(write(tmp_path, layer.gptq(version), gptq_config(layer, version)))
    assert isinstance(weight, bittensor.QuantizedWeight)
    assert torch.equal(weight.codes(), layer.codes.to(torch.uint8))
    assert torch.equal(weight.dequantize(), layer.values())


def test_gptq_with_a_row_narrower_than_a_group(tmp_path: Path) -> None:
    layer = Layer(columns=32, group_size=32)
    weight = read(write(tmp_path, layer.gptq(1), gptq_config(layer, group_size=128)))
    assert torch.equal(weight.dequantize(), layer.values())


@pytest.mark.parametrize("columns", [64, 80])
def test_gptq_with_act_order(columns: int, tmp_path: Path) -> None:
    layer = Layer(columns=columns)
    tensors = layer.gptq(1) | {"m.g_idx": layer.scattered.to(torch.int32)}
    weight = read(write(tmp_path, tensors, gptq_config(layer, desc_act=True)))
    assert isinstance(weight, ReorderedWeight)
    assert torch.equal(weight.dequantize(), layer.values(layer.scattered))
    x = torch.randn(2, columns)
    y = bittensor.linear(x[:, weight.order], weight.weight, activation_mode="float")
    assert torch.allclose(y, x @ layer.values(layer.scattered).t(), atol=1e-3)


def test_gptq_symmetric_needs_no_zeros(tmp_path: Path) -> None:
    layer = Layer()
    layer.zeros = torch.full_like(layer.zeros, 8)
    weight = read(write(tmp_path, layer.gptq(1), gptq_config(layer)))
    assert isinstance(weight, bittensor.QuantizedWeight)
    assert weight.zero == "symmetric"
    assert torch.equal(weight.dequantize(), layer.values())


def test_gptq_with_one_group_and_the_older_config(tmp_path: Path) -> None:
    layer = Layer(group_size=64)
    save_file(layer.gptq(1) | {"m.bias": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": -1, "desc_act": False}))
    assert torch.equal(read(tmp_path).dequantize(), layer.values())


@pytest.mark.parametrize("columns", [64, 80])
def test_awq(columns: int, tmp_path: Path) -> None:
    layer = Layer(columns=columns)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    weight = read(write(tmp_path, layer.awq(), config))
    assert torch.equal(weight.dequantize(), layer.values())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [64, 72, 40])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_compressed_tensors(bits: int, columns: int, symmetric: bool, tmp_path: Path) -> None:
    layer = Layer(bits, outputs=9, columns=columns, group_size=8)
    weight = read(write(tmp_path, layer.compressed(symmetric), compressed_config(layer)))
    assert isinstance(weight, bittensor.QuantizedWeight)
    assert weight.zero == ("symmetric" if symmetric else "integer")
    assert torch.equal(weight.dequantize(), layer.values())


def test_compressed_tensors_with_zero_points_that_are_not_packed(tmp_path: Path) -> None:
    layer = Layer()
    tensors = layer.compressed() | {"m.weight_zero_point": (layer.zeros - 8).to(torch.int8)}
    weight = read(write(tmp_path, tensors, compressed_config(layer)))
    assert torch.equal(weight.dequantize(), layer.values())


def test_compressed_tensors_with_act_order(tmp_path: Path) -> None:
    layer = Layer()
    tensors = layer.compressed() | {"m.weight_g_idx": layer.scattered.to(torch.int32)}
    weight = read(write(tmp_path, tensors, compressed_config(layer)))
    assert isinstance(weight, ReorderedWeight)
    assert torch.equal(weight.dequantize(), layer.values(layer.scattered))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors_with_one_scale_a_row_or_for_all(strategy: str, symmetric: bool, tmp_path: Path) -> None:
    layer = Layer(group_size=64)
    tensors = layer.compressed(symmetric)
    if strategy == "tensor":
        tensors["m.weight_scale"] = layer.scales[:1, 0].clone()
        layer.scales = layer.scales[:1].expand(16, 1)
    if strategy == "tensor" and not symmetric:  # one zero point is not packed
        tensors["m.weight_zero_point"] = (layer.zeros[:1, 0] - 8).to(torch.int8)
        layer.zeros = layer.zeros[:1].expand(16, 1)
    weight = read(write(tmp_path, tensors, compressed_config(layer, strategy)))
    assert torch.equal(weight.dequantize(), layer.values())


def test_compressed_tensors_with_a_group_of_any_name(tmp_path: Path) -> None:
    layer = Layer()
    config = compressed_config(layer)
    config["config_groups"] = {"model/layers": config["config_groups"]["group_0"]}
    assert read(write(tmp_path, layer.compressed(), config)).dequantize().equal(layer.values())


def test_compressed_tensors_chooses_the_scheme_by_shape(tmp_path: Path) -> None:
    layer = Layer(bits=8)
    config = compressed_config(layer)
    other = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    config["config_groups"]["group_1"] = {"targets": ["x"], "weights": other}
    assert read(write(tmp_path, layer.compressed(), config)).dequantize().equal(layer.values())
    config["config_groups"]["group_1"]["weights"] = other | {"group_size": 64}
    config["config_groups"]["group_0"]["weights"] = other | {"group_size": 16}
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'm\.weight': .* fit none of the schemes"):
        read(write(tmp_path, layer.compressed(), config))


@pytest.mark.parametrize("key", ["transform_config", "sparsity_config"])
def test_compressed_tensors_that_are_not_the_weights_themselves(key: str, tmp_path: Path) -> None:
    layer = Layer()
    path = write(tmp_path, layer.compressed(), compressed_config(layer) | {key: {"config_groups": {"R4": {}}}})
    with pytest.raises(bittensor.CheckpointError, match=f"{key} is not supported"):
        open_checkpoint(path)
    assert read(write(tmp_path, layer.compressed(), compressed_config(layer) | {key: {}})).shape == (16, 64)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["symmetric", "integer"])
@pytest.mark.parametrize("group_size", [16, None])
def test_compressed_tensors_is_written(bits: int, zero: str, group_size: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = bittensor.quantize(torch.randn(5, 48), bits, group_size, zero, scale_dtype=torch.float16)
    path = tmp_path / "out"
    save_compressed_tensors(path, {"m.weight": weight, "head.weight": torch.ones(2, 2), "n.weight": torch.ones(2)})
    quantization = json.loads((path / "config.json").read_text())["quantization_config"]
    assert quantization["config_groups"]["group_0"]["targets"] == ["m"]  # a tied head would be another Linear
    back = open_checkpoint(path).read("m.weight")
    assert isinstance(back, bittensor.QuantizedWeight)
    if weight.zeros is None or not bool((weight.zeros == 1 << (bits - 1)).all()):
        assert back.equal(weight)
    tensors = load_file(path / "model.safetensors")
    assert torch.equal(tensors["m.weight_packed"], pack_int32(weight.codes(), bits))
    assert tensors["m.weight_shape"].tolist() == [5, 48]
    if weight.zeros is not None:
        assert torch.equal(tensors["m.weight_zero_point"], pack_int32(weight.zeros.t(), bits).t())
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["head"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == bits


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (lambda: bittensor.quantize(torch.randn(4, 32), group_size=16, zero="float"), "m.weight: .* float offsets"),
        (lambda: bittensor.quantize(torch.randn(4, 40), group_size=16), "m.weight: .* whole groups"),
    ],
)
def test_compressed_tensors_refuses_what_it_cannot_hold(weight: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        save_compressed_tensors(tmp_path / "out", {"m.weight": weight()})
    assert list(tmp_path.iterdir()) == []


LAYER = Layer()
WRONG_PARTS: dict[str, dict[str, Any]] = {
    "scales: missing": {"m.scales": None},
    r"scales: expected .* \[2, 16\], got float16 \[3, 16\]": {"m.scales": torch.ones(3, 16).half()},
    r"scales: expected float16, .*, got int32": {"m.scales": torch.ones(2, 16).int()},
    "scales: expected finite values, got nan": {"m.scales": torch.full((2, 16), torch.nan).half()},
    r"qzeros: expected int32 \[2, 2\], got int32 \[2, 9\]": {"m.qzeros": torch.zeros(2, 9).int()},
    r"qweight: expected int32 \[8, 16\], got float32": {"m.qweight": torch.zeros(8, 16)},
    r"qweight: expected two dimensions": {"m.qweight": torch.zeros(8).int()},
    r"qweight: expected two dimensions of at least 1, got \[0, 16\]": {"m.qweight": torch.zeros(0, 16).int()},
    r"g_idx: expected groups 0..1, got 0..7": {"m.g_idx": torch.arange(64).int() // 8},
    r"g_idx: expected groups 0..1, got -1..0": {"m.g_idx": -(torch.arange(64).int() // 32)},
    r"g_idx: expected 32 columns in group 0, got 64": {"m.g_idx": torch.zeros(64).int()},
    r"g_idx: expected int32 or int64 \[64\]": {"m.g_idx": torch.zeros(65).int()},
}


@pytest.mark.parametrize("reason", WRONG_PARTS)
def test_gptq_with_parts_that_do_not_fit(reason: str, tmp_path: Path) -> None:
    tensors = {k: v for k, v in (LAYER.gptq(1) | WRONG_PARTS[reason]).items() if v is not None}
    folder = write(tmp_path, tensors, gptq_config(LAYER))
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'm\.weight': " + reason):
        read(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (gptq_config(LAYER, bits=3), "bits: 3 bits are not supported; can read 2, 4, 8"),
        (gptq_config(LAYER, bits="4"), "'bits': expected an integer, got str '4'"),
        (gptq_config(LAYER, bits=True), "'bits': expected an integer, got bool"),
        (gptq_config(LAYER, group_size=0), "group_size: expected a number of columns, or -1"),
        (gptq_config(LAYER, group_size=7), "tensor 'm.weight'"),
        (gptq_config(LAYER, checkpoint_format="marlin"), "checkpoint_format 'marlin' is not supported"),
        ({"quant_method": "fp8"}, "quant_method 'fp8' is not supported; can read awq, bittensor"),
        ({"quant_method": ["gptq"]}, "'quant_method': expected a string, got list"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ version 'gemv' is not supported"),
        ({"quant_method": "awq", "bits": 8}, "bits: expected 4 for AWQ, got 8"),
        (compressed_config(LAYER), "says compressed-tensors, but there is no tensor"),
        (compressed_config(LAYER, format="float-quantized"), "format 'float-quantized' is not supported"),
        (compressed_config(LAYER, config_groups=[]), "'config_groups': expected an object, got list"),
        (compressed_config(LAYER, config_groups={"a": 1}), "config_groups 'a': expected an object"),
        (compressed_config(LAYER, config_groups={"a/b/..": 1}), r"config\.json: config_groups 'a/b/\.\.': expected"),
        (compressed_config(LAYER, strategy="block"), "by 'block' are not supported"),
        ({}, "has tensors .*qweight, quantized as gptq or awq does"),
    ],
)
def test_configurations_that_cannot_be_read(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write(tmp_path, LAYER.gptq(1), config)
    with pytest.raises(bittensor.CheckpointError, match=reason):
        read(folder)


def test_a_weight_that_is_stored_twice(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYER.gptq(1) | {"m.weight": torch.ones(2, 2)}, gptq_config(LAYER))
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'm\.weight': stored twice"):
        open_checkpoint(folder)
