"""A connection's bounded queue of events: filled on any thread, emptied by one sender. A slow reader waits alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Item = Json | Callable[[], Json | None]


class Outbox:
    """Frames in order. When `limit` wait, `hold` is called, and `release` when half of them are gone: none is lost."""

    def __init__(self, limit: int, hold: Callable[[], None], release: Callable[[], None]) -> None:
        self._limit = limit
        self._hold = hold
        self._release = release
        self._items: deque[Item] = deque()
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._is_full = False
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether it has called `hold`, and not `release` yet."""
        return self._is_full

    def put(self, item: Item) -> None:
        """Queue a frame, or a function that makes it when its turn has come. From any thread."""
        if self._is_closed:
            return
        self._items.append(item)
        if len(self._items) >= self._limit and not self._is_full:
            self._is_full = True
            self._hold()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> Json | None:
        """The next frame, in the order of `put`; None after `close`, when the last is out."""
        while True:
            while self._items:
                item = self._items.popleft()
                if self._is_full and len(self._items) <= self._limit // 2:
                    self._is_full = False
                    self._release()
                frame = item if isinstance(item, dict) else item()
                if frame is not None:
                    return frame
            if self._is_closed:
                return None
            self._filled.clear()
            if not self._items:
                await self._filled.wait()

    def close(self) -> None:
        """Take nothing more; what waits is still handed out."""
        self._is_closed = True
        self._filled.set()
