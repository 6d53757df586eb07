"""Plain measures over text: does it loop, is it copied, is a list a good list."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from training.facts import LISTS

LOOP_WORDS: Final = 6
LOOP_TIMES: Final = 3
COPY_WORDS: Final = 8

Gram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text: str, size: int) -> Iterator[Gram]:
    """Every run of `size` words."""
    words = words_of(text)
    return zip(*(words[start:] for start in range(size)), strict=False)


def loops(text: str) -> bool:
    """Whether some run of six words comes three times."""
    counts = Counter(grams(text, LOOP_WORDS))
    return max(counts.values(), default=0) >= LOOP_TIMES


def all_grams(texts: Iterable[str]) -> set[int]:
    """Hashes of every run of eight words of the training text."""
    return {hash(gram) for text in texts for gram in grams(text, COPY_WORDS)}


def copied(text: str, known: set[int]) -> list[bool]:
    """For each run of eight words, whether the training text has it word for word."""
    return [hash(gram) in known for gram in grams(text, COPY_WORDS)]


def share(marks: Iterable[bool]) -> float:
    """How many of the marks are true, 0 to 1."""
    marks = list(marks)
    return sum(marks) / max(1, len(marks))


def longest_copy(text: str, known: set[int]) -> int:
    """Words in the longest passage that the training text has word for word."""
    run = longest = 0
    for mark in copied(text, known):
        run = run + 1 if mark else 0
        longest = max(longest, run)
    return longest + COPY_WORDS - 1 if longest else 0


def is_color_list(text: str) -> bool:
    """Whether `red, blue, …` holds known colors only, three at least, and none twice."""
    items = [item.strip() for item in text.strip().rstrip(".").split(",")]
    known = set(LISTS["colors"].split(", "))
    return len(items) >= 3 and len(set(items)) == len(items) and set(items) <= known
