"""Pages as numbers: nothing is lost, nothing is held twice, what is known is found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byhand.cache.pages import PagePool, page_hash
from byhand.errors import OutOfPages


def test_a_page_is_free_again_when_its_last_holder_goes() -> None:
    pool = PagePool(2, 16)
    page = pool.allocate()
    pool.share(page)
    assert (pool.in_use, pool.holders(page)) == (1, 2)
    pool.release(page)
    assert pool.in_use == 1
    pool.release(page)
    assert (pool.in_use, pool.available) == (0, 2)


def test_a_full_pool_says_so() -> None:
    pool = PagePool(1, 16)
    pool.allocate()
    with pytest.raises(OutOfPages, match="all 1 pages of 16 tokens are in use"):
        pool.allocate()


def test_a_published_page_is_found_after_its_holder_is_gone() -> None:
    pool = PagePool(2, 16)
    page = pool.allocate()
    pool.publish(page, b"name")
    pool.release(page)
    assert pool.find(b"name") == page
    pool.share(page)
    assert pool.in_use == 1


def test_the_oldest_unused_page_is_taken_back_first() -> None:
    pool = PagePool(2, 16)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, b"first")
    pool.publish(second, b"second")
    pool.release(first)
    pool.release(second)
    assert pool.allocate() == first
    assert pool.find(b"first") is None
    assert pool.find(b"second") == second


def test_a_twin_of_a_known_page_is_not_indexed() -> None:
    pool = PagePool(2, 16)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, b"same")
    pool.publish(second, b"same")
    pool.release(second)
    assert pool.find(b"same") == first
    assert pool.available == 1


def test_a_hash_covers_everything_before_the_page() -> None:
    one = page_hash(page_hash(b"model", [1, 2]), [3, 4])
    assert one == page_hash(page_hash(b"model", [1, 2]), [3, 4])
    assert one != page_hash(page_hash(b"model", [2, 1]), [3, 4])
    assert one != page_hash(page_hash(b"other", [1, 2]), [3, 4])
    assert page_hash(b"", [1]) != page_hash(b"", [256])


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release", "publish", "forget"]), st.integers(0, 7))))
def test_counts_stay_true_whatever_happens(operations: list[tuple[str, int]]) -> None:
    pool = PagePool(4, 16)
    held: list[int] = []
    for number, (name, pick) in enumerate(operations):
        if name == "allocate" and pool.available:
            held.append(pool.allocate())
        elif held:
            page = held[pick % len(held)]
            if name == "share":
                pool.share(page)
                held.append(page)
            elif name == "release":
                pool.release(held.pop(pick % len(held)))
            elif name == "publish":
                pool.publish(page, number.to_bytes(2, "little"))
            elif name == "forget":
                pool.forget(page)
        assert pool.in_use == len(set(held))
        assert pool.in_use + pool.available == 4
        assert all(pool.holders(page) == held.count(page) for page in range(4))
    pool.clear()
    assert pool.available == 4 - len(set(held))
