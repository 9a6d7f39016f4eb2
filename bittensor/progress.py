"""A progress bar for work that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .printable import printable


def with_progress(names: Sequence[str], title: str, wanted: bool) -> Iterator[str]:
    """Yield `names` and show on stderr which one is worked on; silent unless `wanted`, and stderr is a terminal."""
    with progress_bar(title, len(names), wanted) as begin:
        for name in names:
            begin(name)
            yield name


@contextmanager
def progress_bar(title: str, total: int, wanted: bool) -> Iterator[Callable[[str], None]]:
    """The same for work that goes through its names by itself: what is given is called with each name it begins."""
    if not wanted:  # without rich, whose import takes longer than most layers
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:])
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, begun = progress.add_task(title, total=total), 0

        def begin(name: str) -> None:
            nonlocal begun
            progress.update(task, description=f"{title} {printable(name)}", completed=begun)
            begun += 1

        yield begin
