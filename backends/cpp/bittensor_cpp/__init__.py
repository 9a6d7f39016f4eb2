"""The C++ backend: kernels for several instruction sets behind BitTensor's backend protocol."""

from .backend import CppBackend, include_directory

__all__ = ["CppBackend", "include_directory"]
