"""Language models on packed weights. Tokenizers and chat templates need the extra "models"."""

from .generation import Sampling, generate
from .language_model import LanguageModel, load_language_model
from .llama import KeyValueCache, Llama, LlamaConfig

__all__ = [
    "KeyValueCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "Sampling",
    "generate",
    "load_language_model",
]
