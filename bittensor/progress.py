"""A progress bar for work that takes a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def with_progress(names: Sequence[str], title: str, wanted: bool) -> Iterator[str]:
    """Yield `names` and show on stderr which one is worked on; silent unless `wanted`, and stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (wanted and console.is_terminal)) as progress:
        task = progress.add_task(title, total=len(names))
        for name in names:
            progress.update(task, description=f"{title} {name}")
            yield name
            progress.advance(task)
