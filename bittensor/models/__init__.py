"""Language models on packed weights. Tokenizers and chat templates need the extra "models"."""

from .caching import KeyValueCache
from .generation import Sampling, generate, generate_together
from .language_model import LanguageModel, load_language_model
from .llama import Llama, LlamaConfig

__all__ = [
    "KeyValueCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "Sampling",
    "generate",
    "generate_together",
    "load_language_model",
]
