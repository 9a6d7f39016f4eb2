"""Speed and size over the history of the repository, for ``asv run``. pytest-benchmark's files live in ../micro."""
