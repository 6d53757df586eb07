"""Pages of the KV cache as plain numbers: allocate, share, release, find again. Knows nothing of tensors.

A page is in one of three states: free (its content means nothing), in use (one or more runs count on it), or unused
but known (no run holds it, its content can still be found by hash; taken back, oldest first, when free pages run out).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from byhand.errors import OutOfPages


def page_hash(parent: bytes, ids: Sequence[int]) -> bytes:
    """The name of a full page: all ids up to its end, through the parent's hash, and whatever the root covers."""
    digest = blake2b(parent, digest_size=16)
    digest.update(b"".join(token.to_bytes(8, "little") for token in ids))
    return digest.digest()


class PagePool:
    """Counts who holds which page, and remembers full pages by hash for prefix reuse."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Pages that at least one run holds."""
        return self.num_pages - self.available

    @property
    def available(self) -> int:
        """Pages that can be allocated now, the unused but known ones included."""
        return len(self._free) + len(self._unused)

    @property
    def unused(self) -> int:
        """Pages that nobody holds and that can still be found."""
        return len(self._unused)

    def holders(self, page: int) -> int:
        """How many runs hold this page."""
        return self._holders[page]

    def allocate(self) -> int:
        """Hand out a page of unknown content, held once."""
        if self._free:
            page = self._free.pop()
        elif self._unused:
            page, _ = self._unused.popitem(last=False)
            self.forget(page)
        else:
            raise OutOfPages(
                f"the KV cache is full: all {self.num_pages} pages of {self.page_size} tokens are in use",
                hint="open the model with a larger cache_tokens (--cache-tokens), or let go of some runs",
            )
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """Count one more holder."""
        self._unused.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Count one holder less; the last one out leaves it unused (if known) or free."""
        assert self._holders[page] > 0
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._hash_of:
            self._unused[page] = None
        else:
            self._free.append(page)

    def publish(self, page: int, name: bytes) -> None:
        """Make a full page findable. The first page of a name stays; later twins are not indexed."""
        if name not in self._page_of and page not in self._hash_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def forget(self, page: int) -> None:
        """Take a page out of the index, because it is about to be written."""
        name = self._hash_of.pop(page, None)
        if name is not None:
            del self._page_of[name]

    def find(self, name: bytes) -> int | None:
        """The page of this name, if its content is still there."""
        return self._page_of.get(name)

    def clear(self) -> None:
        """Forget every unused page."""
        for page in list(self._unused):
            self.forget(page)
        self._free.extend(self._unused)
        self._unused.clear()
