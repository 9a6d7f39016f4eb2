"""The attention implementation "bittensor" of transformers, for encoders."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from ..checks import dtype_name
from ..registry import current_backend

_ATTENTION = "bittensor"
"""The name of `attend` as an attention implementation of transformers."""

_OTHER_ATTENTION = (
    *("position_bias", "s_aux", "sliding_window", "softcap", "output_attentions"),
    *("cu_seq_lens_q", "cu_seq_lens_k"),  # sequences without padding, one behind the other
)
"""Arguments for attention that ask for something else than `attend` computes."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention implementation "bittensor", for encoders: `FusedOperations.attend_bidirectional` of the backend.

    Chosen by ``attn_implementation="bittensor"`` or `model.set_attn_implementation("bittensor")`. Padding is left out
    and not only hidden: it costs nothing, and what a sentence gets does not depend on the batch that it is in.

    Args:
        module: of which `is_causal` counts unless it is given.
        query: float ``[B, heads, T, size]``; other dtypes than float32 are computed in it.
        key, value: ``[B, key_value_heads, S, size]``.
        attention_mask: bool ``[B, S]``, False at padding, or None.
        scaling: of the scores; None: ``size ** -0.5``.
        dropout: 0.
        is_causal: False.
        others: what else transformers passes; None of `_OTHER_ATTENTION`.

    Returns:
        ``[B, T, heads, size]`` of the dtype of the query, and None in place of the attention's weights.

    Raises:
        ValueError: causal attention, dropout, another mask than one of padding, or something else that the
            model asks of its attention and this does not have.
        RuntimeError: a gradient is to be recorded.
    """
    advice = f"attn_implementation {_ATTENTION!r} is for encoders; use 'sdpa' or 'eager' for this model"
    if is_causal if is_causal is not None else getattr(module, "is_causal", False):
        raise ValueError(f"is_causal: expected False, got True: {advice}")
    if dropout != 0.0:
        raise ValueError(f"dropout: expected 0, got {dropout}: call model.eval(), or use 'sdpa' to train")
    for name in _OTHER_ATTENTION:
        asked = others.get(name)
        if asked is not None and asked is not False:
            got = f"a tensor {list(asked.shape)}" if isinstance(asked, torch.Tensor) else asked
            raise ValueError(f"{name}: expected none, got {got}: {advice}")
    if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.dtype != torch.bool):
        got = f"{dtype_name(attention_mask.dtype)} {list(attention_mask.shape)}"
        raise ValueError(f"attention_mask: expected one of padding, [B, S], got {got}: {advice}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        raise RuntimeError(
            f"attn_implementation {_ATTENTION!r} has no gradient: call the model under torch.inference_mode(), or use "
            "'sdpa' to train"
        )
    batch, heads, tokens, size = query.shape
    mixed = (
        current_backend()
        .fused()
        .attend_bidirectional(
            query.float(), key.float(), value.float(), attention_mask, size**-0.5 if scaling is None else scaling
        )
    )
    return mixed.view(batch, tokens, heads, size).to(query.dtype), None


def padding_mask(
    *, kv_length: int, mask_function: Any, attention_mask: torch.Tensor | None = None, **_: Any
) -> torch.Tensor | None:
    """The mask that `attend` takes, of what transformers makes masks of.

    Args:
        kv_length: S.
        mask_function: which keys a query may see beside padding: all.
        attention_mask: bool ``[B, S]`` or None.

    Raises:
        ValueError: another mask function.
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            f"attn_implementation {_ATTENTION!r}: expected a model in which every token sees every other, an encoder; "
            "use 'sdpa' or 'eager' for this one"
        )
    if attention_mask is not None and attention_mask.shape[-1] != kv_length:
        raise ValueError(f"attention_mask: expected {kv_length} tokens, got {attention_mask.shape[-1]}")
    return attention_mask


AttentionInterface.register(_ATTENTION, attend)
AttentionMaskInterface.register(_ATTENTION, padding_mask)
