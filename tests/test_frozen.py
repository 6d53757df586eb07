"""What was stays as it was: bits, records and what a server said (tests/frozen, and CHANGES.md there)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from byhand import LLM, Record
from tests.frozen import hashes, records, transcripts
from tests.serving import Running, served
from tests.test_processors import HAS_AVX512


@pytest.fixture(scope="module")
def embedded() -> LLM:
    return LLM()


@pytest.fixture(scope="module")
def server(embedded: LLM) -> Iterator[Running]:
    yield from served(embedded, may_keep_runs=True)


@pytest.mark.parametrize("name", records.MAKERS)
def test_a_record_replays_for_good(embedded: LLM, name: str) -> None:
    assert records.differences(embedded, name) == []
    record = Record.load(records.FOLDER / f"{name}.json")
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("name", ["answers", *transcripts.SESSIONS])
def test_a_server_says_what_it_said(server: Running, name: str) -> None:
    assert transcripts.differences(server, name) == []


@pytest.mark.parametrize("kind", hashes.KINDS)
def test_the_bits_are_the_same(kind: str) -> None:
    compare(kind, ["llama tiny"])


@pytest.mark.full
@pytest.mark.parametrize("kind", hashes.KINDS)
def test_the_bits_of_every_family_are_the_same(kind: str) -> None:
    compare(kind, [])


def compare(kind: str, models: list[str]) -> None:
    if kind == "avx512" and not HAS_AVX512:
        pytest.skip("this processor has no AVX-512")
    if other := hashes.other_machine(kind):
        pytest.skip(other)
    assert hashes.differences(kind, models) == []
