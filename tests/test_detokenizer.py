"""Text as it grows: whatever the tokens' borders, what is pushed and flushed is what decoding everything gives."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byhand.text import Detokenizer, Tokenizer
from tests.tokenizers_for_tests import REAL, SHARED, byte_fallback, every_sort

SORTS = tuple(every_sort())
REAL_ONES = ("opt", "gpt2", "gpt-neox-20b", "phi-3", "stories260K")


@cache
def named(name: str) -> Tokenizer:
    if name in SORTS:
        return every_sort()[name]
    folder = SHARED / "models" / name if name == "stories260K" else REAL / name
    if not folder.is_dir():
        pytest.skip("the real vocabularies lie outside the repository")
    return Tokenizer.open(folder)


def random_text(dice: random.Random) -> str:
    """Letters, spaces and line ends, accents, scripts of two, three and four bytes, joined emoji."""
    ranges = [(32, 127), (32, 127), (9, 11), (0xA1, 0x250), (0x370, 0x5FF), (0x900, 0xD7FF), (0xE000, 0xFFFD)]
    ranges += [(0x1F300, 0x1F650), (0x10000, 0x10FFFF), (0x200B, 0x200F)]
    return "".join(chr(dice.randrange(*dice.choice(ranges))) for _ in range(dice.randrange(1, 17)))


def random_texts(count: int) -> list[str]:
    dice = random.Random(20)
    return [random_text(dice) for _ in range(count)]


def grown(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> tuple[list[str], str]:
    """What each id gave, and the flush."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [detokenizer.push(token) for token in ids], detokenizer.flush()


def held_whole(tokenizer: Tokenizer, ids: list[int], skip: bool) -> int:
    """Characters that a context of these ids ends with and holds back, though nothing is missing of them."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    for token in ids:
        detokenizer.push(token)
    return len(detokenizer.held.rstrip("\ufffd"))


def check_every_split(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> str:
    """Push the ids one by one from every place on; the text must be the same wherever the context ends."""
    pushed, rest = grown(tokenizer, ids, skip)
    whole = "".join(pushed) + rest
    assert whole == tokenizer.decode(ids, skip)
    for cut in range(1, len(ids) + 1):
        detokenizer = Detokenizer(tokenizer, ids[:cut], skip_special_tokens=skip)
        before = len("".join(pushed[:cut])) + held_whole(tokenizer, ids[:cut], skip)
        after = "".join(detokenizer.push(token) for token in ids[cut:]) + detokenizer.flush()
        assert after == whole[before:]
    return whole


@pytest.mark.parametrize("name", REAL_ONES)
def test_every_split_of_two_thousand_texts(name: str):
    tokenizer = named(name)
    for text in random_texts(2000):
        whole = check_every_split(tokenizer, tokenizer.encode(text))
        # GPT-NeoX writes characters in their composed form before it does anything else.
        assert whole == (unicodedata.normalize("NFC", text) if name == "gpt-neox-20b" else text)


@pytest.mark.parametrize("name", SORTS)
def test_every_split_of_two_thousand_texts_in_every_sort(name: str):
    tokenizer = named(name)
    for text in random_texts(2000):
        check_every_split(tokenizer, tokenizer.encode(text))


@pytest.mark.parametrize("name", [*SORTS, *REAL_ONES])
def test_any_ids_at_all(name: str):
    """Ids in no sensible order: broken characters, rows of bytes, specials in between, ids that do not exist."""
    tokenizer = named(name)
    dice = random.Random(4)
    spelled = [token for token in range(min(tokenizer.vocab_size, 600)) if len(tokenizer.token(token).bytes) == 1]
    for _ in range(400):
        ids = [
            dice.choice(spelled) if spelled and dice.random() < 0.7 else dice.randrange(tokenizer.vocab_size + 3)
            for _ in range(dice.randrange(12))
        ]
        for skip in (True, False):
            check_every_split(tokenizer, ids, skip)


@given(st.lists(st.integers(0, 255), max_size=12))
@settings(max_examples=300)
def test_any_bytes_at_all(data: list[int]):
    for name in ("byte level", "byte fallback"):
        tokenizer = named(name)
        spelled = {tokenizer.token(token).bytes: token for token in range(tokenizer.vocab_size)}
        check_every_split(tokenizer, [spelled[bytes([byte])] for byte in data])


@pytest.mark.parametrize("name", [*SORTS, "phi-3", "opt"])
def test_decoding_is_the_library_s_own(name: str):
    tokenizer = named(name)
    dice = random.Random(7)
    for _ in range(300):
        ids = [dice.randrange(tokenizer.vocab_size) for _ in range(dice.randrange(10))]
        for skip in (True, False):
            assert tokenizer.decode(ids, skip) == tokenizer._backend.decode(ids, skip_special_tokens=skip)


def test_never_half_a_character():
    for name in ("byte level", "byte fallback"):
        tokenizer = named(name)
        pushed, rest = grown(tokenizer, tokenizer.encode("naïve 🙂🙃 日本語 👩‍👩‍👧 end"))
        assert "\ufffd" not in "".join(pushed) + rest
        assert "".join(pushed) + rest == "naïve 🙂🙃 日本語 👩‍👩‍👧 end"


def test_text_is_shown_as_soon_as_it_is_certain():
    tokenizer = named("byte level")
    ids = tokenizer.encode("red, 🙂 blue", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    shown = b""
    for place, token in enumerate(ids, start=1):
        shown += detokenizer.push(token).encode()
        behind = b"".join(tokenizer.token(each).bytes for each in ids[:place])[len(shown) :]
        assert len(behind) <= 3
        assert not behind or behind[0] >= 0xC2  # the first bytes of a character, and of no more than one


def test_a_row_of_bytes_stands_or_falls_as_a_whole():
    tokenizer = named("byte fallback")
    euro = [tokenizer._backend.token_to_id(f"<0x{each:02X}>") for each in "€".encode()]
    broken = tokenizer._backend.token_to_id("<0xFF>")
    red = tokenizer.one_token(" red")
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("red"))
    assert [detokenizer.push(token) for token in euro] == ["", "", ""]
    assert detokenizer.held == "€"
    other = detokenizer.copy()
    assert other.push(broken) == "\ufffd" * 4
    assert [other.push(token) for token in (*euro, red)] == ["\ufffd"] * 3 + [" red"]
    assert detokenizer.push(red) == "€ red"
    assert (detokenizer.held, detokenizer.flush()) == ("", "")


@pytest.mark.parametrize("end", ["\n", "\n\n", "€", "🙂\n"])
@pytest.mark.parametrize("name", SORTS[:5])
def test_what_the_context_ends_with_is_not_said_again(name: str, end: str):
    """Its last line end may be a byte piece, whose row could go on: it was read, and is no part of what follows."""
    tokenizer = named(name)
    for text in ("the red", "\nred", "€", ""):
        context = tokenizer.encode(f"the{end}")
        detokenizer = Detokenizer(tokenizer, context)
        after = "".join(detokenizer.push(token) for token in tokenizer.encode_continuation(text))
        assert after + detokenizer.flush() == text


def test_the_space_in_front_is_lost_once_only():
    tokenizer = named("byte fallback")
    the, red = tokenizer.one_token(" the"), tokenizer.one_token(" red")
    space = tokenizer._backend.token_to_id("▁")
    assert grown(tokenizer, [1, the, red])[0] == ["", "the", " red"]
    assert grown(tokenizer, [1, space, the])[0] == ["", "", " the"]
    after = Detokenizer(tokenizer, [1, the])
    assert after.push(red) == " red"
    assert Detokenizer(tokenizer, [1]).push(red) == "red"


def test_looking_at_what_is_held_changes_nothing():
    tokenizer = named("byte fallback")
    space, letter = (tokenizer._backend.token_to_id(piece) for piece in ("<0x20>", "<0x41>"))
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(space) == detokenizer.held == ""
    assert detokenizer.push(space) == ""
    assert (detokenizer.held, detokenizer.held) == (" ", " ")
    assert detokenizer.push(letter) == ""
    assert detokenizer.flush() == " A"


def test_special_tokens_have_no_text_unless_asked_for():
    tokenizer = named("byte level")
    ids = tokenizer.encode("red</s>")
    assert "".join(grown(tokenizer, ids)[0]) == "red"
    assert "".join(grown(tokenizer, ids, skip=False)[0]) == "<s>red</s>"


def test_unfinished_bytes_are_flushed_as_replacement_characters():
    tokenizer = named("byte level")
    start = tokenizer._backend.token_to_id("ð")  # 0xF0, the first of four bytes
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(start) == ""
    assert detokenizer.held == "\ufffd"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_context_may_end_within_a_character():
    tokenizer = named("byte level")
    ids = [tokenizer._backend.token_to_id(piece) for piece in "ðŁĻĤ"]
    detokenizer = Detokenizer(tokenizer, ids[:2])
    assert [detokenizer.push(token) for token in ids[2:]] == ["", "🙂"]


@pytest.mark.parametrize("name", SORTS)
def test_a_copy_goes_its_own_way(name: str):
    tokenizer = named(name)
    ids = tokenizer.encode("red 🙂é the") if name not in ("metaspace", "word pieces") else tokenizer.encode("red blue")
    for cut in range(len(ids)):
        first = Detokenizer(tokenizer, ids[:cut])
        second = first.copy()
        for token in reversed(ids):
            second.push(token)
        expected = Detokenizer(tokenizer, ids[:cut])
        assert [first.push(token) for token in ids[cut:]] == [expected.push(token) for token in ids[cut:]]
        assert first.flush() == expected.flush()


def test_llama_decoders_are_known_by_what_they_do():
    assert Tokenizer(byte_fallback()).spelling.stripped == 1
    assert Tokenizer(byte_fallback(strip=False)).spelling.stripped == 0
