"""One live line in the server's terminal: what runs, how fast, and how full the cache is."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Self

from byhand.engine.meter import Stats
from byhand.engine.worker import Worker

EVERY = 0.25


def describe(stats: Stats) -> str:
    """The line's text."""
    if stats.state != "ready":
        return f"{stats.state}: {stats.running} running"
    used = stats.pages_used + stats.pages_unused
    known = f", {stats.pages_unused} of them known prefixes" if stats.pages_unused else ""
    return (
        f"{stats.running} running, {stats.waiting} waiting"
        f" · prefill {stats.prefill_rate:,.0f} tokens/s, decode {stats.decode_rate:,.0f} tokens/s"
        f" · {used} of {stats.pages_total} pages{known}"
    )


class LiveLine:
    """Shows the line on stderr until it is left; where stderr is no terminal it shows nothing."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, name="live line", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(file=sys.stderr)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not self._over.wait(EVERY):
                text = Text(describe(self._worker.stats()), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)
