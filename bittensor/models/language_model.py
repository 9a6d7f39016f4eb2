"""A language model with its tokenizer: text in, text out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import open_checkpoint
from .generation import Sampling, generate, generate_together
from .llama import Llama, load_llama
from .tokenization import Tokenization, from_directory, from_gguf


@dataclass(frozen=True)
class LanguageModel:
    """A model, and what turns text into tokens and back. `load_language_model` makes one."""

    model: Llama
    tokenization: Tokenization

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        *,
        chat: bool = True,
        stop: Collection[str] = (),
    ) -> Iterator[str]:
        """Yield the answer piece by piece. `load_language_model` has an example.

        Args:
            prompt: what the user says; with `chat` it is put into the chat template of the model, if it has one.
            max_new_tokens: where to stop at the latest.
            sampling: greedy if None.
            chat: use the chat template.
            stop: texts that end the answer, beside the tokens of the model that do; they do not belong to it.

        Raises:
            ValueError: as `bittensor.models.generate`; an empty stop text.
        """
        tokens = self.tokenization.encode(prompt, chat=chat)
        new = generate(self.model, tokens, max_new_tokens, sampling, self.tokenization.stop)
        yield from self.tokenization.stream(new, stop)

    def generate_together(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        *,
        chat: bool = True,
        stop: Collection[str] = (),
    ) -> list[str]:
        """The answers to several prompts, computed together; each is the one that `generate` gives. As `generate`.

        `load_language_model` has an example.
        """
        tokens = [self.tokenization.encode(prompt, chat=chat) for prompt in prompts]
        answers = [self.tokenization.answer(stop) for _ in tokens]
        ended: set[int] = set()
        new = generate_together(self.model, tokens, max_new_tokens, sampling, self.tokenization.stop, ended)
        for number, token in new:
            answers[number].add(token)
            if answers[number].ended:
                ended.add(number)
        for answer in answers:
            answer.finish()
        return [answer.text for answer in answers]


def load_language_model(path: str | Path, *, activation_mode: str = "int8", progress: bool = False) -> LanguageModel:
    """Load a Llama from a GGUF file, or a directory with ``config.json``, ``tokenizer.json`` and safetensors.

    Args:
        path: as in `bittensor.checkpoints.open_checkpoint`.
        activation_mode: of the linear layers, as in `bittensor.linear`.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        CheckpointError: a file that cannot be read, or a model or tokenizer that is not supported.
        ModuleNotFoundError: a package of the extra "models" is not installed.

    A model with random weights, and four words:

    >>> import tempfile, tokenizers, torch
    >>> from bittensor.checkpoints import save_checkpoint
    >>> sizes = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32)}
    >>> sizes |= {"self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32)}
    >>> sizes |= {"mlp.down_proj": (32, 64), "input_layernorm": (32,), "post_attention_layernorm": (32,)}
    >>> sizes = {f"model.layers.0.{name}": shape for name, shape in sizes.items()}
    >>> sizes |= {"model.embed_tokens": (4, 32), "model.norm": (32,)}
    >>> config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> words = tokenizers.models.WordLevel({"the": 0, "sky": 1, "is": 2, "blue": 3}, unk_token="the")
    >>> tokenizer = tokenizers.Tokenizer(words)
    >>> tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model")
    ...     save_checkpoint(path, {f"{name}.weight": torch.randn(shape) for name, shape in sizes.items()}, config)
    ...     tokenizer.save(str(path / "tokenizer.json"))
    ...     model = load_language_model(path)
    >>> answer = "".join(model.generate("the sky", max_new_tokens=3))
    >>> len(answer.split()), model.generate_together(["the sky", "blue"], 3)[0] == answer
    (3, True)
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.format == "gguf":
        tokenization = from_gguf(checkpoint.path, checkpoint.config)
    else:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        tokenization = from_directory(folder, checkpoint.config)
    model = load_llama(checkpoint, activation_mode=activation_mode, progress=progress)
    return LanguageModel(model, tokenization)
