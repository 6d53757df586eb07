"""What byhand did when it was frozen, it does: ids, bits, records, what the server says. See tests/frozen/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.frozen import hashes, records, transcripts
from tests.frozen.comparing import HERE, Report, differences, other_versions, read_lines, versions
from tests.frozen.plain import plain, without_bits

MANY = 12  # differences are shown; more say nothing new


def agree(report: Report) -> None:
    """Nothing differs; what could not be compared is skipped by name."""
    assert report.differences == [], "\n".join(["see tests/frozen/CHANGES.md", *report.differences[:MANY]])
    if report.left_out:
        pytest.skip("; ".join(report.left_out[:MANY]))


# What is quick.


@pytest.mark.parametrize("kind", ["reference", "host"])
def test_a_sample_of_ids_and_bits_is_what_it_was(kind: str) -> None:
    agree(hashes.check(kind, hashes.SAMPLE))


def test_the_records_of_then_load_save_replay_and_are_made_again(tmp_path: Path) -> None:
    assert {path.stem for path in records.FOLDER.glob("*.json")} == set(records.SCRIPTS)
    agree(Report([line for name in records.SCRIPTS for line in records.check(name, tmp_path).differences]))


@pytest.mark.parametrize("part", transcripts.PARTS)
def test_the_server_says_what_it_said(part: str) -> None:
    agree(transcripts.check(part))


def test_every_family_format_and_kind_is_frozen() -> None:
    kinds = {path.stem: [line.get("case") for line in read_lines(path)] for path in hashes.FOLDER.glob("*.jsonl")}
    assert kinds.keys() == {"ids", *hashes.KINDS}
    assert kinds.pop("ids") == hashes.CASES
    assert all(cases == [None, *hashes.CASES] for cases in kinds.values())
    sampled = [case.split("/") for case in hashes.SAMPLE]
    assert {family for family, _, _ in sampled} == {case.split("/")[0] for case in hashes.CASES}
    assert {form for _, _, form in sampled} == set(hashes.FORMATS)


def test_most_ids_are_firm() -> None:
    lines = [line for line in read_lines(hashes.FOLDER / "ids.jsonl") if not line["case"].endswith(hashes.BITS_ALONE)]
    counts = {scene: sum(len(ids.split()) for line in lines for ids in line[scene]) for scene in hashes.SCENES}
    assert counts["greedy"] > 0.9 * 3 * 8 * len(lines)
    assert counts["sampled"] > 0.7 * 6 * 5 * len(lines)
    assert min(counts["reused"] / 3, counts["steered"] / 22) > 0.6 * len(lines)


def test_what_is_frozen_is_small() -> None:
    assert sum(path.stat().st_size for path in HERE.rglob("*.json*")) < 1_500_000


# What compares.


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ({"a": [1, 2.0, "x"]}, {"a": [1, 2.0 + 1e-4, "x"]}, []),
        ({"a": [1, 2.0]}, {"a": [1, 2.1]}, ["x.a[1]: was 2.0, is 2.1"]),
        ({"a": 1}, {"a": 2}, ["x.a: was 1, is 2"]),
        ({"a": 1}, {"a": True}, ["x.a: was 1, is true"]),
        ({"a": None}, {}, ["x.a: was null, is not there"]),
        ([1], [1, {"b": 2}], ['x[1]: was not there, is {"b": 2}']),
        ({"a": "é"}, {"a": "e"}, ['x.a: was "é", is "e"']),
    ],
)
def test_each_difference_is_one_line(then: Any, now: Any, lines: list[str]) -> None:
    assert list(differences(then, now, "x")) == lines


def test_another_bit_another_id_another_shape_and_other_weights_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = hashes.SAMPLE[0]
    [head, now] = hashes.measured("reference", [case])

    def found(**changes: Any) -> list[str]:
        monkeypatch.setattr(hashes, "measured", lambda kind, cases: [head, {**now, **changes}])
        return [line.split(": ", 1)[1][:30] for line in hashes.check("reference", [case]).differences]

    assert found() == []
    assert found(weights="0") == ["these are other weights (0, no"]
    other = {**now["ids"], "greedy": [[1, *now["ids"]["greedy"][0][1:]], *now["ids"]["greedy"][1:]]}
    assert [line[:21] for line in found(ids=other)] == ["the ids of greedy[0] "]
    assert found(shape={**now["shape"], "reused": "0"}) == ["other positions were computed,"]
    same_versions = not other_versions(read_lines(hashes.FOLDER / "reference.jsonl")[0], versions())
    assert found(bits={**now["bits"], "logits": "0"}) == ["the bits of logits were " + _bits(case)] * same_versions


def _bits(case: str) -> str:
    line = next(line for line in read_lines(hashes.FOLDER / "reference.jsonl") if line.get("case") == case)
    return str(line["logits"])[:6]


def test_bits_of_other_versions_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    case = hashes.SAMPLE[0]
    head, now = hashes.measured("reference", [case])
    other = {**now, "bits": dict.fromkeys(now["bits"], "0")}
    monkeypatch.setattr(hashes, "measured", lambda kind, cases: [{**head, "torch": "0.1"}, other])
    report = hashes.check("reference", [case])
    assert report.differences == []
    assert "torch was" in report.left_out[0]
    assert "is 0.1" in report.left_out[0]


def test_a_kind_that_this_processor_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes.binding, "get_host_cpu_features", lambda: {"avx2": True})
    assert hashes.cannot_run("reference") == hashes.cannot_run("host") == ""
    assert "cannot run avx512: it has no " in hashes.check("avx512", []).left_out[0]


def test_what_is_another_every_time_is_put_into_words() -> None:
    said = {"id": "cmpl-1f", "created": 5, "choices": [{"id": 7, "seconds": 0.25, "logprob": -0.123456789}]}
    kept = {"id": "<id>", "created": "<created>", "choices": [{"id": 7, "seconds": "<seconds>", "logprob": -0.123457}]}
    assert plain(said) == kept
    assert without_bits({"a": [{"bits": "1", "b": 2}]}) == {"a": [{"b": 2}]}


def test_transcripts_hold_nothing_that_is_made_up() -> None:
    for path in transcripts.FOLDER.glob("*.jsonl"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("cmpl-", '"created":1', '"seconds":0') if word in text], path.name
        runs = {line["got"].get("run") for line in read_lines(path) if isinstance(line.get("got"), dict)}
        assert all(run is None or run.startswith("<run ") for run in runs), path.name
    assert json.loads((records.FOLDER / "forked.json").read_text())["byhand"] == "frozen"


# The whole.


@pytest.mark.full
@pytest.mark.parametrize("kind", hashes.KINDS)
def test_all_ids_and_bits_are_what_they_were(kind: str) -> None:
    agree(hashes.check(kind))
