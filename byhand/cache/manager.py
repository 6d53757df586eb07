"""Gives a run its pages: adopted from the prefix index, reserved before a pass, copied on write, let go on rewind."""

from __future__ import annotations

from typing import Protocol

from byhand.cache.kv_cache import PAGE_SIZE, KVCache
from byhand.cache.pages import page_hash
from byhand.errors import OutOfPages


class PageHolder(Protocol):
    """What the cache sees of a sequence: its ids, how many of them are computed, and the pages that hold them."""

    ids: list[int]
    computed: int
    pages: list[int]
    page_names: list[bytes]  # hashes of the full pages, in order

    @property
    def next_needed(self) -> int | None:
        """The first position whose logits are still wanted."""


class KVCacheManager:
    """Keeps each run's page list true to its `computed`. `root` names the model and the cache's dtype."""

    def __init__(self, cache: KVCache, root: bytes) -> None:
        self.cache = cache
        self.pool = cache.pool
        self.root = root

    def adopt_prefix(self, sequence: PageHolder) -> int:
        """Take the longest chain of known full pages that goes on where the run's own pages end.

        Positions whose logits are wanted stay uncomputed, the last token at least, so that a pass gives them. A page
        that the run has begun it fills itself. Gives the number of tokens that were found.
        """
        if sequence.computed != len(sequence.pages) * PAGE_SIZE:
            return 0
        needed = sequence.next_needed
        for index in range(len(sequence.pages), (len(sequence.ids) - 1 if needed is None else needed) // PAGE_SIZE):
            name = self._name(sequence, index)
            page = self.pool.find(name)
            if page is None:
                break
            self.pool.share(page)
            sequence.pages.append(page)
            sequence.page_names.append(name)
        adopted = len(sequence.pages) * PAGE_SIZE - sequence.computed
        sequence.computed += adopted
        return adopted

    def reserve(self, sequence: PageHolder, end: int) -> bool:
        """Make the pages of tokens `computed` to `end` the sequence's own to write.

        Without room for all of them it holds what it held, and the answer is no.
        """
        pages = sequence.pages
        try:
            for index in range(sequence.computed // PAGE_SIZE, -(-end // PAGE_SIZE)):
                if index == len(pages):
                    pages.append(self.pool.allocate())
                else:
                    pages[index] = self._writable(pages[index])
        except OutOfPages:
            self.truncate(sequence, sequence.computed)
            return False
        return True

    def out_of_pages(self) -> OutOfPages:
        """What to say when not even the oldest run finds room."""
        return OutOfPages(
            f"the KV cache of {self.pool.num_pages * PAGE_SIZE} tokens has no room for the next one",
            hint="open the model with a larger cache_tokens (--cache-tokens), or let go of some runs",
        )

    def _writable(self, page: int) -> int:
        if self.pool.holders(page) == 1:
            self.pool.forget(page)
            return page
        own = self.pool.allocate()
        self.cache.copy_page(page, own)
        self.pool.release(page)
        return own

    def publish(self, sequence: PageHolder) -> None:
        """Enter the run's newly filled pages into the prefix index."""
        for index in range(len(sequence.page_names), sequence.computed // PAGE_SIZE):
            name = self._name(sequence, index)
            sequence.page_names.append(name)
            self.pool.publish(sequence.pages[index], name)

    def _name(self, sequence: PageHolder, index: int) -> bytes:
        parent = sequence.page_names[index - 1] if index else self.root
        return page_hash(parent, sequence.ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    def truncate(self, sequence: PageHolder, computed: int) -> None:
        """Say that only the first `computed` tokens are in the cache, and let go of the pages past them."""
        sequence.computed = min(sequence.computed, computed)
        needed = -(-sequence.computed // PAGE_SIZE)
        for page in sequence.pages[needed:]:
            self.pool.release(page)
        del sequence.pages[needed:]
        del sequence.page_names[sequence.computed // PAGE_SIZE :]

    def release(self, sequence: PageHolder) -> None:
        """Let go of every page: the run can be recomputed from its ids."""
        self.truncate(sequence, 0)

    def share(self, sequence: PageHolder, fork: PageHolder) -> None:
        """Give a fork its parent's pages, counted once more."""
        for page in sequence.pages:
            self.pool.share(page)
        fork.pages = list(sequence.pages)
        fork.page_names = list(sequence.page_names)
        fork.computed = sequence.computed
