"""A progress bar on stderr, shown in a terminal only."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each layer; it shows them if rich is installed and stderr is a terminal."""
    try:
        state = random.getstate()  # the import of rich draws from it
        from rich.console import Console
        from rich.progress import Progress

        random.setstate(state)
    except ModuleNotFoundError:
        yield lambda name: None
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("layers", total=total)
        yield lambda name: bar.update(task, advance=1, description=name)
