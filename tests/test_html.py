"""The notebook views: what they say is what the run says, and text of a model cannot break out of them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from byhand import LLM, SamplingParams, Token
from byhand.html import run_html, surprise_color, visible

PROMPT = "the quick brown fox"


class Balanced(HTMLParser):
    """Collects text, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def text_of(html: str) -> str:
    """The visible text of well-formed HTML."""
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser.text


def test_a_reading_shows_every_prediction(llm: LLM) -> None:
    reading = llm.read(PROMPT)
    text = text_of(reading._repr_html_())
    for at in reading:
        assert f"{at.predicted.prob:.1%}" in text
    assert "only the last one continues the whole prompt" in text


def test_a_step_shows_candidates_cut_and_taken(llm: LLM) -> None:
    step = llm.start(PROMPT, SamplingParams(temperature=1.0, top_k=3, seed=1)).step()
    text = text_of(step._repr_html_())
    assert text.count("cut by top_k") == 7
    assert "taken" in text
    assert f"{step.tail_mass:.1%}" in text
    assert f"draw {step.draw.u:.4f}" in text  # type: ignore[union-attr]
    assert "prefill" in text


def test_a_run_shows_prompt_and_continuation(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(max_tokens=3))
    list(run)
    html = run._repr_html_()
    assert html.count('class="t prompt') == run.prompt_length
    assert "3 tokens after the prompt · finish_reason: length" in text_of(html)


def test_text_cannot_break_out() -> None:
    nasty = Token(5, '<script>alert("x")</script>', b"", False)
    assert "<script>" not in run_html([nasty], [])


def test_white_space_is_visible() -> None:
    assert visible(" a\n\t") == "␣a⏎⇥"
    assert visible("") == "∅"


@pytest.mark.parametrize(("prob", "painted"), [(1.0, False), (0.7, False), (0.69, True), (0.0, True)])
def test_surprise_paints(prob: float, painted: bool) -> None:
    assert bool(surprise_color(prob)) is painted
