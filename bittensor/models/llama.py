"""The Llama architecture: RMSNorm, rotary embedding, grouped-query attention over a cache, SwiGLU.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023. Activations are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoints import Checkpoint, ReorderedWeight, Stored
from ..errors import CheckpointError
from ..fused import DecoderLayers, FusedOperations, composed_linear
from ..nn import QuantizedLinear
from ..prepared_weight import PreparedWeight
from ..progress import progress_bar
from ..registry import current_backend
from .caching import CachedAttention, KeyValueCache
from .stored_layers import embedding_layer, fused_layer, linear_layer

ARCHITECTURE = "llama"

Forward = Callable[[Sequence[torch.Tensor], Sequence[KeyValueCache], bool], torch.Tensor]
"""Tokens and cache of each sequence, and whether the last rows suffice, to logits: `Llama.forward_together`."""


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a model. `head_size` is that of one head, `context` the largest number of tokens."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_size: int
    norm_epsilon: float
    rope_base: float
    context: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LlamaConfig:
        """The configuration that a checkpoint declares, in GGUF metadata or in ``config.json``.

        Raises:
            CheckpointError: another architecture, a missing or impossible number, or a variant that is not supported.
                The epsilon of the norms and the base of the rotary embedding must be finite and above 0.
        """
        config = checkpoint.config
        made = _from_gguf(checkpoint, config) if checkpoint.format == "gguf" else _from_json(checkpoint, config)
        counts = (made.layers, made.width, made.heads, made.key_value_heads, made.head_size, made.context)
        if min(counts) < 1 or made.heads % made.key_value_heads or made.head_size % 2 or made.layers > 10_000:
            raise checkpoint.refuse(f"the configuration cannot be that of a model: {made}")
        return made


class Llama(torch.nn.Module):
    """A model for inference.

    Args:
        config: its sizes.
        read: gives a tensor by the name that `transformers` uses: ``model.layers.0.mlp.up_proj.weight``.
        tied: the head is the table of the embedding.
        activation_mode: of the linear layers, as in `bittensor.linear`.
    """

    def __init__(
        self, config: LlamaConfig, read: Callable[[str], Stored], *, tied: bool, activation_mode: str = "int8"
    ) -> None:
        super().__init__()
        self.config = config
        table = read("model.embed_tokens.weight")
        self.vocabulary = int(table.shape[0])
        self.embedding = embedding_layer(table)
        self.layers = torch.nn.ModuleList(
            Block(config, _below(read, f"model.layers.{index}."), activation_mode) for index in range(config.layers)
        )
        self.norm = RMSNorm(_vector(read("model.norm.weight")), config.norm_epsilon)
        self.head = linear_layer(table if tied else read("lm_head.weight"), activation_mode)
        self.eval()

    def forward(self, tokens: torch.Tensor, cache: KeyValueCache, *, last: bool = False) -> torch.Tensor:
        """Logits of the tokens that follow.

        Args:
            tokens: int64 ``[T]``; they follow those of `cache`, which takes them in.
            cache: with room for T more tokens.
            last: compute the logits after the last token only.

        Returns:
            float32 ``[T, vocabulary]``, or ``[1, vocabulary]`` if `last`.

        Raises:
            ValueError: no tokens, or more than the cache has room for.
        """
        return self.forward_together([tokens], [cache], last=last)

    def forward_together(
        self, tokens: Sequence[torch.Tensor], caches: Sequence[KeyValueCache], *, last: bool = False
    ) -> torch.Tensor:
        """The same for several sequences of any lengths, each with its own cache; rows one sequence after the other.

        On packed weights the rows of a sequence have the same bits as alone.
        """
        return self.bound()(tokens, caches, last)

    def bound(self) -> Forward:
        """`forward_together` on the current backend and the weights as they are now, for many calls in a row.

        What a call would look up in modules, is looked up once: for one token that takes as long as a tenth of the
        kernels.
        """
        fused = current_backend().fused()
        embedding = self.embedding
        all_layers = self._bound_together(fused)
        each_layer = [block.bound(fused) for block in self.blocks()]
        head = bound_linear(fused, self.head, norm=self.norm)

        @torch.inference_mode()
        def forward(tokens: Sequence[torch.Tensor], caches: Sequence[KeyValueCache], last: bool) -> torch.Tensor:
            counts = [len(each) for each in tokens]
            for count, cache in zip(counts, caches, strict=True):
                if not 0 < count <= cache.capacity - cache.length:
                    raise ValueError(
                        f"tokens: expected 1 to {cache.capacity - cache.length} for the cache, got {count}"
                    )
            x = embedding(tokens[0] if len(counts) == 1 else torch.cat(list(tokens)))
            if all_layers is not None and len(caches) == 1:
                x = all_layers(x, caches[0])
            else:
                attention = CachedAttention(fused, caches, counts)
                for index, layer in enumerate(each_layer):
                    x = layer(x, attention, index)
            for count, cache in zip(counts, caches, strict=True):
                cache.length += count
            if last:
                x = x[-1:] if len(counts) == 1 else x[torch.tensor(counts, device="cpu").cumsum(0) - 1]
            return head(x, None)

        return forward

    def _bound_together(self, fused: FusedOperations) -> Callable[[torch.Tensor, KeyValueCache], torch.Tensor] | None:
        """All layers as a function of the input and the cache of one sequence; None if they are not of one form."""
        blocks, heads = self.blocks(), self.config.heads
        weights = [block.packed() for block in blocks]
        packed = tuple(each for each in weights if each is not None)
        modes = {layer.activation_mode for layer in self.modules() if isinstance(layer, QuantizedLinear)}
        if not blocks or len(packed) < len(blocks) or len(modes) > 1:
            return None
        norms = torch.stack([torch.stack([block.attention_norm.weight, block.mlp_norm.weight]) for block in blocks])
        layers = DecoderLayers(norms, self.config.norm_epsilon, packed, modes.pop())

        def together(x: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
            return fused.decode(x, layers, cache.rotation(len(x)), cache.keys, cache.values, cache.length, heads)

        return together

    def blocks(self) -> list[Block]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Block)]


class Block(torch.nn.Module):
    """A layer of the model: attention, then SwiGLU, each on normalized input and added to it."""

    def __init__(self, config: LlamaConfig, read: Callable[[str], Stored], activation_mode: str) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = RMSNorm(_vector(read("input_layernorm.weight")), config.norm_epsilon)
        projections = [read(f"self_attn.{name}_proj.weight") for name in ("q", "k", "v")]
        self.query_key_value = fused_layer(projections, activation_mode)
        self.output = linear_layer(read("self_attn.o_proj.weight"), activation_mode)
        self.mlp_norm = RMSNorm(_vector(read("post_attention_layernorm.weight")), config.norm_epsilon)
        self.gate_up = fused_layer([read(f"mlp.{name}_proj.weight") for name in ("gate", "up")], activation_mode)
        self.down = linear_layer(read("mlp.down_proj.weight"), activation_mode)

    def packed(self) -> tuple[PreparedWeight, PreparedWeight, PreparedWeight, PreparedWeight] | None:
        """The weights of `DecoderLayers`, as the current backend holds them; None unless all are packed."""
        backend = current_backend()
        layers = (self.query_key_value, self.output, self.gate_up, self.down)
        weights = [layer.weight.prepared_for(backend) for layer in layers if isinstance(layer, QuantizedLinear)]
        return (weights[0], weights[1], weights[2], weights[3]) if len(weights) == len(layers) else None

    def bound(self, fused: FusedOperations) -> Callable[[torch.Tensor, CachedAttention, int], torch.Tensor]:
        """The layer as a function of its input, the attention, and the number of the layer."""
        heads = self.heads
        query_key_value = bound_linear(fused, self.query_key_value, norm=self.attention_norm)
        output = bound_linear(fused, self.output)
        gate_up = bound_linear(fused, self.gate_up, norm=self.mlp_norm)
        down = bound_linear(fused, self.down, gated=True)

        def block(x: torch.Tensor, attention: CachedAttention, index: int) -> torch.Tensor:
            x = output(attention.attend(query_key_value(x, None), index, heads), x)
            return down(gate_up(x, None), x)

        return block


class RMSNorm(torch.nn.Module):
    """``x / sqrt(mean(x**2) + epsilon) * weight``."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.epsilon = epsilon


def bound_linear(
    fused: FusedOperations, layer: torch.nn.Module, *, norm: RMSNorm | None = None, gated: bool = False
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """`FusedOperations.linear` for any layer, as a function of x and residual; one step where its weight is packed."""
    normalization = None if norm is None else (norm.weight, norm.epsilon)
    if isinstance(layer, QuantizedLinear):
        linear, mode = fused.linear, layer.activation_mode
        weight = layer.weight.prepared_for(current_backend())
        return lambda x, residual: linear(x, weight, mode, normalization, gated, residual)
    return lambda x, residual: composed_linear(layer, x, normalization, gated, residual)


def _below(read: Callable[[str], Stored], prefix: str) -> Callable[[str], Stored]:
    return lambda name: read(prefix + name)


def load_llama(checkpoint: Checkpoint, *, activation_mode: str = "int8", progress: bool = False) -> Llama:
    """The model of a checkpoint, read one tensor at a time; `progress` shows a bar on stderr if that is a terminal.

    Raises:
        CheckpointError: not a Llama, or a tensor is missing, has another shape, or cannot be read; or there is a tensor
            that the model has no place for, such as a bias.
    """
    config = LlamaConfig.of(checkpoint)
    gguf = checkpoint.format == "gguf"
    used: set[str] = set()
    shapes: dict[str, tuple[int, ...]] = {}

    def stored_name(name: str) -> str:
        return _gguf_name(name) if gguf else name

    def read(name: str) -> Stored:
        stored = stored_name(name)
        if stored not in checkpoint:
            raise checkpoint.refuse("missing", stored)
        begin(stored)
        used.add(stored)
        tensor = checkpoint.read(stored)
        if gguf and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.heads if name.endswith("q_proj.weight") else config.key_value_heads
            tensor = _in_halves(tensor, heads)
        shape = tuple(tensor.shape)
        expected = _expected_shape(name, config, shapes)
        if len(shape) != len(expected) or any(
            size != wanted if wanted is not None else size < 1 for size, wanted in zip(shape, expected, strict=True)
        ):
            listed = ", ".join("any" if wanted is None else str(wanted) for wanted in expected)
            raise checkpoint.refuse(f"expected shape [{listed}], got {list(shape)}", stored)
        shapes[name] = shape
        return tensor

    head = stored_name("lm_head.weight")
    tied = head not in checkpoint
    if tied and not gguf and checkpoint.config.get("tie_word_embeddings") is False:
        raise checkpoint.refuse("missing, though config.json says that it is not the embedding's", head)
    try:
        with progress_bar("reading", len(checkpoint.entries), progress) as begin:
            model = Llama(config, read, tied=tied, activation_mode=activation_mode)
    except (TypeError, ValueError) as error:
        raise checkpoint.refuse(str(error)) from None
    _check_unused(checkpoint, [name for name in checkpoint.entries if name not in used])
    return model


def _check_unused(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Refuse tensors that the model does not use: without them, its results would not be those of the checkpoint.

    Two kinds change nothing: the frequencies of the rotary embedding that older versions of `transformers` saved, which
    follow from ``rope_theta``, and biases of zeros, which tools for GPTQ write for layers that have none.
    """

    def changes_nothing(name: str) -> bool:
        if name.endswith(".rotary_emb.inv_freq"):
            return True
        stored = checkpoint.read(name) if name.endswith(".bias") else None
        return isinstance(stored, torch.Tensor) and not stored.any()

    unused = [name for name in names if not changes_nothing(name)]
    if unused:
        more = f" and {len(unused) - 4} more" if len(unused) > 4 else ""
        raise checkpoint.refuse(
            f"expected the tensors of a {ARCHITECTURE} only, got others too, which would be ignored: "
            f"{', '.join(unused[:4])}{more}; such a variant of the model is not supported"
        )


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def _gguf_name(name: str) -> str:
    """A name of GGUF for one of `transformers`.

    >>> _gguf_name("model.layers.3.mlp.up_proj.weight"), _gguf_name("lm_head.weight")
    ('blk.3.ffn_up.weight', 'output.weight')
    """
    name = name.removesuffix(".weight")
    if name in _GGUF_NAMES:
        return f"{_GGUF_NAMES[name]}.weight"
    index, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_GGUF_NAMES[part]}.weight"


def _in_halves(stored: Stored, heads: int) -> Stored:
    """Rows as `rotate` wants them: GGUF turns values 2 i and 2 i + 1 of a head together, not i and i + size/2."""
    rows = stored.shape[0]
    if rows % (2 * heads):
        return stored  # its shape is refused by the caller
    order = torch.arange(rows, device="cpu").view(heads, -1, 2).transpose(1, 2).reshape(-1)
    if isinstance(stored, torch.Tensor):
        return stored[order]
    if isinstance(stored, ReorderedWeight):
        return ReorderedWeight(stored.weight.rows(order), stored.order)
    return stored.rows(order)


def _expected_shape(name: str, config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, ...]:
    """The shape of a tensor, by the configuration and the shapes of those before it; None for a size of any number.

    The gate has the size of the feed-forward network, the embedding that of the vocabulary.
    """
    if "norm" in name:
        return (config.width,)
    queries, keys = config.heads * config.head_size, config.key_value_heads * config.head_size
    layer, _, part = name.removesuffix(".weight").rpartition(".")
    hidden = shapes.get(f"{layer}.gate_proj.weight", (None,))[0]
    vocabulary = shapes.get("model.embed_tokens.weight", (None,))[0]
    expected: dict[str, tuple[int | None, ...]] = {
        "q_proj": (queries, config.width),
        "k_proj": (keys, config.width),
        "v_proj": (keys, config.width),
        "o_proj": (config.width, queries),
        "gate_proj": (hidden, config.width),
        "up_proj": (hidden, config.width),
        "down_proj": (config.width, hidden),
        "embed_tokens": (vocabulary, config.width),
        "lm_head": (vocabulary, config.width),
    }
    return expected[part]


def _vector(stored: Stored) -> torch.Tensor:
    if not isinstance(stored, torch.Tensor):
        raise TypeError(f"norm: expected floats, got {type(stored).__name__}")
    return stored.to(torch.float32)


def _from_gguf(checkpoint: Checkpoint, config: Mapping[str, Any]) -> LlamaConfig:
    architecture = config.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise checkpoint.refuse(f"architecture {architecture!r} is not supported; can run {ARCHITECTURE}")
    factors = [config.get(f"llama.rope.{key}", 1.0) for key in ("scaling.factor", "scale_linear")]
    kind = config.get("llama.rope.scaling.type", "none")  # a factor without a type is a linear one
    if kind != "none" or any(factor not in (0, 1) for factor in factors) or "rope_freqs.weight" in checkpoint:
        raise checkpoint.refuse("scaled rotary embeddings are not supported")
    width = _number(checkpoint, config, "llama.embedding_length", int)
    heads = _number(checkpoint, config, "llama.attention.head_count", int)
    return LlamaConfig(
        layers=_number(checkpoint, config, "llama.block_count", int),
        width=width,
        heads=heads,
        key_value_heads=_number(checkpoint, config, "llama.attention.head_count_kv", int, heads),
        head_size=_number(checkpoint, config, "llama.rope.dimension_count", int, width // max(heads, 1)),
        norm_epsilon=_number(checkpoint, config, "llama.attention.layer_norm_rms_epsilon", float),
        rope_base=_number(checkpoint, config, "llama.rope.freq_base", float, 10000.0),
        context=_number(checkpoint, config, "llama.context_length", int),
    )


def _from_json(checkpoint: Checkpoint, config: Mapping[str, Any]) -> LlamaConfig:
    architecture = config.get("model_type")
    if architecture != ARCHITECTURE:
        raise checkpoint.refuse(f"model_type {architecture!r} is not supported; can run {ARCHITECTURE}")
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the older one wins, as in transformers
        rope = config.get(key) or rope
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise checkpoint.refuse("scaled rotary embeddings are not supported")
    for key, only in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if config.get(key, only) != only:
            raise checkpoint.refuse(f"{key}={config[key]!r} is not supported; can run {only!r}")
    width = _number(checkpoint, config, "hidden_size", int)
    heads = _number(checkpoint, config, "num_attention_heads", int)
    base = _number(checkpoint, config, "rope_theta", float, 10000.0)
    return LlamaConfig(
        layers=_number(checkpoint, config, "num_hidden_layers", int),
        width=width,
        heads=heads,
        key_value_heads=_number(checkpoint, config, "num_key_value_heads", int, heads),
        head_size=_number(checkpoint, config, "head_dim", int, width // max(heads, 1)),
        norm_epsilon=_number(checkpoint, config, "rms_norm_eps", float, 1e-6),
        rope_base=_number(checkpoint, rope, "rope_theta", float, base),
        context=_number(checkpoint, config, "max_position_embeddings", int, 2048),
    )


def _number(checkpoint: Checkpoint, config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is int and kind is float and abs(value) < 2**1023:  # larger ones may not be floats
        value = float(value)
    if type(value) is not kind:
        raise CheckpointError(checkpoint.path, f"{key}: expected a number, {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not 0 < value < math.inf:
        raise CheckpointError(checkpoint.path, f"{key}: expected a finite number above 0, got {value!r}")
    return value
