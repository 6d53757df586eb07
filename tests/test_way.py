"""How far a token's way is: the files of byhand that it goes through, and the Python calls that it takes."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import byhand
from byhand import LLM, SamplingParams
from tests.serving import Running, served

PACKAGE = str(Path(byhand.__file__).parent)
PROMPT = "Once upon a time"
# Files and calls a token. A rise of a tenth fails the test; who makes a way shorter writes the new figure here.
RUN = (27, 131)
STREAM = (35, 164)
ROOM = 1.10
# Python 3.12 has no frames for these.
INSIDE = {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"}


def calls_of(work: Callable[[], object]) -> Counter[str]:
    """How many calls went to each file of byhand, in all threads that the profiler was set in."""
    CALLS.clear()
    work()
    return Counter(CALLS)


CALLS: Counter[str] = Counter()


def profile(frame: FrameType, event: str, _: Any) -> None:
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in INSIDE:
        CALLS[code.co_filename] += 1


def way_of_a_token(take: Callable[[int], object]) -> tuple[int, float]:
    """Files and calls of tokens 11 to 50: those of 50 tokens without those of 10."""
    take(50)
    ten, fifty = calls_of(lambda: take(10)), calls_of(lambda: take(50))
    more = {file: (count - ten[file]) / 40 for file, count in fifty.items()}
    by_file = {Path(file).relative_to(PACKAGE).as_posix(): calls for file, calls in more.items() if calls >= 0.5}
    print(by_file)  # what a failure shows
    return len(by_file), sum(by_file.values())


def check(way: tuple[int, float], counted: tuple[int, int]) -> None:
    assert way[0] <= counted[0] * ROOM
    assert way[1] <= counted[1] * ROOM
    assert way[1] > counted[1] / 2, "the way is much shorter, or is not counted any more: write the new figure"


def test_a_token_of_a_plain_run() -> None:
    llm = LLM()

    def take(tokens: int) -> None:
        run = llm.start(PROMPT, SamplingParams(ignore_eos=True))
        for _ in range(tokens):
            run.step()

    sys.setprofile(profile)
    try:
        check(way_of_a_token(take), RUN)
    finally:
        sys.setprofile(None)


def test_a_token_of_a_chat_stream() -> None:
    threading.setprofile(profile)
    try:
        serving = served(LLM())
        server: Running = next(serving)
    finally:
        threading.setprofile(None)

    def take(tokens: int) -> None:
        asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "ignore_eos": True}
        answer = server.post("/v1/chat/completions", **asked, stream=True)
        assert answer.status == 200

    try:
        check(way_of_a_token(take), STREAM)
    finally:
        next(serving, None)
