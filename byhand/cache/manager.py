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
    page_tables: list[list[int]]  # of each group of layers
    page_names: list[bytes]  # hashes of the full pages, in order

    @property
    def next_needed(self) -> int | None:
        """The first position whose logits are still wanted."""


class KVCacheManager:
    """Keeps each run's page tables true to its `computed`. `root` names the model and the cache's dtype."""

    def __init__(self, cache: KVCache, root: bytes) -> None:
        self.cache = cache
        self.pools = [group.pool for group in cache.groups]
        self.root = root

    def adopt_prefix(self, sequence: PageHolder) -> int:
        """Take the longest chain of known full pages that goes on where the run's own pages end.

        Positions whose logits are wanted stay uncomputed, the last token at least, so that a pass gives them. A page
        that the run has begun it fills itself. Gives the number of tokens that were found.
        """
        begun = len(sequence.page_tables[0])
        if sequence.computed != begun * PAGE_SIZE:
            return 0
        needed = sequence.next_needed
        for index in range(begun, (len(sequence.ids) - 1 if needed is None else needed) // PAGE_SIZE):
            name = self._name(sequence, index)
            pages = [pool.find(name) for pool in self.pools]
            if None in pages:
                break
            for table, pool, page in zip(sequence.page_tables, self.pools, pages, strict=True):
                assert page is not None
                pool.share(page)
                table.append(page)
            sequence.page_names.append(name)
        adopted = len(sequence.page_tables[0]) * PAGE_SIZE - sequence.computed
        sequence.computed += adopted
        return adopted

    def reserve(self, sequence: PageHolder, end: int) -> bool:
        """Make the pages of tokens `computed` to `end` the sequence's own to write.

        Without room for all of them it holds what it held, and the answer is no.
        """
        try:
            for group, table in enumerate(sequence.page_tables):
                for index in range(sequence.computed // PAGE_SIZE, -(-end // PAGE_SIZE)):
                    if index == len(table):
                        table.append(self.pools[group].allocate())
                    else:
                        table[index] = self._writable(group, table[index])
        except OutOfPages:
            self.truncate(sequence, sequence.computed)
            return False
        return True

    def out_of_pages(self) -> OutOfPages:
        """What to say when not even the oldest run finds room."""
        return OutOfPages(
            f"the KV cache of {self.cache.num_pages * PAGE_SIZE} tokens has no room for the next one",
            hint="open the model with a larger cache_tokens (--cache-tokens), or let go of some runs",
        )

    def _writable(self, group: int, page: int) -> int:
        pool = self.pools[group]
        if pool.holders(page) == 1:
            pool.forget(page)
            return page
        own = pool.allocate()
        self.cache.copy_page(group, page, own)
        pool.release(page)
        return own

    def publish(self, sequence: PageHolder) -> None:
        """Enter the run's newly filled pages into the prefix index."""
        for index in range(len(sequence.page_names), sequence.computed // PAGE_SIZE):
            name = self._name(sequence, index)
            sequence.page_names.append(name)
            for table, pool in zip(sequence.page_tables, self.pools, strict=True):
                pool.publish(table[index], name)

    def _name(self, sequence: PageHolder, index: int) -> bytes:
        parent = sequence.page_names[index - 1] if index else self.root
        return page_hash(parent, sequence.ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    def truncate(self, sequence: PageHolder, computed: int) -> None:
        """Say that only the first `computed` tokens are in the cache, and let go of the pages past them."""
        sequence.computed = min(sequence.computed, computed)
        needed = -(-sequence.computed // PAGE_SIZE)
        for table, pool in zip(sequence.page_tables, self.pools, strict=True):
            for page in table[needed:]:
                pool.release(page)
            del table[needed:]
        del sequence.page_names[sequence.computed // PAGE_SIZE :]

    def release(self, sequence: PageHolder) -> None:
        """Let go of every page: the run can be recomputed from its ids."""
        self.truncate(sequence, 0)

    def share(self, sequence: PageHolder, fork: PageHolder) -> None:
        """Give a fork its parent's pages, counted once more."""
        for table, pool in zip(sequence.page_tables, self.pools, strict=True):
            for page in table:
                pool.share(page)
        fork.page_tables = [list(table) for table in sequence.page_tables]
        fork.page_names = list(sequence.page_names)
        fork.computed = sequence.computed
