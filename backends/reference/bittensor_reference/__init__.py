"""The contract of docs/numerics.md in plain PyTorch: slow, obvious, exact."""

from .backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
