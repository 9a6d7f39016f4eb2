"""Coverage-guided fuzzing of what takes foreign arguments and foreign files.

``python -m conformance.fuzzing operators`` calls the operations with hostile arguments, ``... checkpoints`` reads
hostile files. Both are functions of bytes: a fuzzer changes the bytes, and `seeds/` has some to begin with, which
``conformance/meta_tests`` runs as well.
"""
