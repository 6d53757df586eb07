"""Gives a run its pages: adopted from the prefix index, reserved before a pass, copied on write, let go on rewind."""

from __future__ import annotations

from byhand.engine.state import RunState
from byhand.errors import OutOfPages
from byhand.kv_cache import PAGE_SIZE, KVCache
from byhand.pages import page_hash


class Pager:
    """Keeps each run's page list true to its `computed`. `root` names the model and the cache's dtype."""

    def __init__(self, cache: KVCache, root: bytes) -> None:
        self.cache = cache
        self.pool = cache.pool
        self.root = root

    def adopt_prefix(self, run: RunState) -> None:
        """Take the longest chain of known full pages that goes on where the run's own pages end.

        Positions whose logits are wanted stay uncomputed, the last token at least, so that a pass gives them. A page
        that the run has begun it fills itself.
        """
        if run.computed != len(run.pages) * PAGE_SIZE:
            return
        needed = run.next_needed
        for index in range(len(run.pages), (len(run.ids) - 1 if needed is None else needed) // PAGE_SIZE):
            name = self._name(run, index)
            page = self.pool.find(name)
            if page is None:
                break
            self.pool.share(page)
            run.pages.append(page)
            run.page_names.append(name)
        adopted = len(run.pages) * PAGE_SIZE - run.computed
        run.computed += adopted
        if not run.generated and not run.work.computed:
            run.cached = min(run.computed, run.cached + adopted)

    def reserve(self, run: RunState, end: int) -> None:
        """Make the pages of tokens `computed` to `end` the run's own to write; OutOfPages leaves the list true."""
        for index in range(run.computed // PAGE_SIZE, -(-end // PAGE_SIZE)):
            if index == len(run.pages):
                run.pages.append(self.pool.allocate())
            else:
                run.pages[index] = self._writable(run.pages[index])

    def try_reserve(self, run: RunState, end: int) -> bool:
        """The same; without room the run holds what it held, and the answer is no."""
        try:
            self.reserve(run, end)
        except OutOfPages:
            self.truncate(run, run.computed)
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

    def publish(self, run: RunState) -> None:
        """Enter the run's newly filled pages into the prefix index."""
        for index in range(len(run.page_names), run.computed // PAGE_SIZE):
            name = self._name(run, index)
            run.page_names.append(name)
            self.pool.publish(run.pages[index], name)

    def _name(self, run: RunState, index: int) -> bytes:
        parent = run.page_names[index - 1] if index else self.root
        return page_hash(parent, run.ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    def truncate(self, run: RunState, computed: int) -> None:
        """Say that only the first `computed` tokens are in the cache, and let go of the pages past them."""
        run.computed = min(run.computed, computed)
        needed = -(-run.computed // PAGE_SIZE)
        for page in run.pages[needed:]:
            self.pool.release(page)
        del run.pages[needed:]
        del run.page_names[run.computed // PAGE_SIZE :]

    def release(self, run: RunState) -> None:
        """Let go of every page: the run can be recomputed from its ids."""
        self.truncate(run, 0)

    def share(self, run: RunState, fork: RunState) -> None:
        """Give a fork its parent's pages, counted once more."""
        for page in run.pages:
            self.pool.share(page)
        fork.pages = list(run.pages)
        fork.page_names = list(run.page_names)
        fork.computed = run.computed
