"""The tables of docs/performance.md: their arithmetic on made-up results, and that the page holds what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from byhand.bench.run import CONTROL

ROOT = Path(__file__).parents[1]


def side(median: float, **more: Any) -> dict[str, Any]:
    """Figures whose spread is a tenth to both sides."""
    spread = {"median": median, "low": 0.9 * median, "high": 1.1 * median, "count": 3}
    return {"seconds": spread, "per_second": 1 / median, "share": {**spread, "median": 0.5}, **more}


def against(label: str, median: float, ratio: float) -> dict[str, Any]:
    """An opponent's figures."""
    return side(median, label=label, ratio={"median": ratio, "low": ratio - 0.02, "high": ratio + 0.03, "count": 3})


def entry(scenario: str, ours: float = 0.01, **more: Any) -> dict[str, Any]:
    """A measurement of byhand against itself and llama.cpp."""
    facts = [{"label": label, "runs": "numbers", "version": label} for label in ("byhand", CONTROL, "llama.cpp bf16")]
    facts[0]["cache_token_bytes"] = 1000  # type: ignore[assignment]
    return {
        "model": "smol-135m",
        "precision": "bf16",
        "scenario": scenario,
        "options": {},
        "contestants": facts,
        "prompt": 128,
        "new": 24,
        "pairs": [{}] * 10,
        "summary": {
            "ours": side(ours),
            "opponents": [against(CONTROL, ours, 1.01), against("llama.cpp bf16", 0.02, 0.5)],
            "best_peer": "llama.cpp bf16",
            "bandwidth": {"median": 40.0, "low": 36.0, "high": 44.0, "count": 3},
        },
        **more,
    }


def test_the_page_is_made_from_the_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    entries, measured = report.load(sorted((ROOT / "benchmarks" / "results").glob("*.json")))
    marks = [name for name in report.TABLES if f"<!-- {name}: begin -->" in page and f"<!-- {name}: end -->" in page]
    assert marks == list(report.TABLES)
    made = "run: python -m benchmarks.report docs/performance.md benchmarks/results/*.json"
    assert report.renewed(page, entries, measured) == page, made


def test_what_stands_outside_the_marks_stays() -> None:
    page = "a\n<!-- decode: begin -->\nOLD\n<!-- decode: end -->\nb <!-- cold: begin -->"
    made = report.renewed(page, [entry("decode")])
    assert made.startswith("a\n<!-- decode: begin -->\n\n| model |")
    assert "\n\n<!-- decode: end -->\nb <!-- cold: begin -->" in made
    assert "OLD" not in made


def test_a_row_of_decoding() -> None:
    row = report.decode([entry("decode"), entry("batch-4")]).splitlines()[-1]
    assert row == (
        "| smol-135m | bf16 | byhand | 10.00 | 50% | llama.cpp bf16 | 0.50 (0.48–0.53) | ≤ 0.85 | 1.01 (0.99–1.04) |"
    )
    fast = report.decode([entry("decode", options={"kernels": "reference"})])
    assert "byhand (kernels=reference)" in fast


def test_attention_reads_the_further_bytes_in_the_further_time() -> None:
    short, long = entry("context-128", 0.01), entry("context-4096", 0.012, prompt=4096)
    rate, share = report.attention_rate(short, long)
    assert rate == pytest.approx(1000 * (4096 - 128) / 0.002 / 1e9)
    assert share == pytest.approx(rate / 40)
    assert "| 10.00 |  | 12.00 | 2 GB/s, 5% |" in report.context([short, long])
    for seconds in (0.01001, 0.009):
        later = entry("context-4096", seconds, prompt=4096)
        assert f"| {1000 * seconds:.2f} | lost in the bandwidth's moves |" in report.context([short, later])


def test_memory_is_what_is_over_the_imports() -> None:
    memory = {"peak_anonymous": 250e6, "held": 60e6, "cache": 40e6}
    assert report.memory_over({"imports": {"anonymous": 150e6}}, memory) == "100 / 100 MB = 1.00"
    assert report.memory_over({"imports": {"anonymous": 150e6}}, {"peak_anonymous": 250e6}) == ""


def test_speeds_stand_side_by_side() -> None:
    exact, fast = entry("prefill-512"), entry("prefill-512", 0.005, options={"prefill": "fast"})
    lines = report.per_second("prefill-128", "prefill-512")([exact, fast]).splitlines()
    assert lines[0] == "| model | precision | engine | prefill-512 |"
    assert "| smol-135m | bf16 | byhand (prefill=fast) | **200** |" in lines
    assert "| smol-135m | bf16 | llama.cpp bf16 against byhand (prefill=fast) | 50; 0.50 (0.48–0.53) |" in lines


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    cold = {"label": "byhand", "parts": {"interpreter": 0.1, "open": 1.0, "first_token": 0.2}, **side(1.3)}
    parts = {"step": 0.01, "model": 0.008, "choice": 0.002}
    entries = [
        entry("decode"),
        entry("batch-4"),
        entry("prefill-512"),
        entry("context-128"),
        entry("cold", summary={"starts": [cold]}),
        entry("profile", summary={"step": parts, "split": parts}),
    ]
    for name in ("one", "two"):
        draw(entries, tmp_path / name)
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert pictures == ["batch.svg", "cold.svg", "context.svg", "decode.svg", "prefill.svg", "profile.svg"]
    for name in pictures:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_quality_stands_beside_speed() -> None:
    figures = {"perplexity": 11.4264, "kl": 0.019, "same_best": 0.9226}
    model = {"name": "m", "texts": {"stories": {"tokens": 12, "variants": {"int4": figures}}}}
    row = report.quality([{"models": [model]}]).splitlines()[-1]
    assert row == "| m | stories, 12 tokens | int4 | 11.426 | 0.019 | 92.3% |"
