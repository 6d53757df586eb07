"""The page in a real browser, by what a person does and sees: the strip, the lesson, the crank, branches, records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from byhand import LLM, Record, SamplingParams
from byhand.sampling.chain import run_chain, settled
from byhand.sampling.stages import History
from tests.browsing import Reader, visible
from tests.serving import Running, served, until

PROMPT = "A list of colors: red"
WEB = Path(__file__).parents[1] / "byhand" / "web"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM(), may_keep_runs=True)


# It opens on a stored run.


def test_the_page_opens_on_a_stored_run_and_goes_on_from_it(reader: Reader) -> None:
    stored = json.loads((WEB / "run.json").read_text(encoding="utf-8"))["record"]
    reader.visit()
    pieces = [visible(token["text"]) for token in stored["prompt"] + [step["token"] for step in stored["steps"]]]
    shown = reader.tokens
    assert len(stored["prompt"]) < len(shown) < len(pieces)
    assert shown == pieces[: len(shown)]
    assert "a stored run" in reader.text("#model")
    # The same dice at the same place: what the model says now is what was stored.
    reader.step()
    assert reader.tokens == pieces[: len(shown) + 1]
    assert "a stored run" not in reader.text("#model")


def test_the_stored_run_is_what_the_embedded_model_does(embedded: LLM) -> None:
    from byhand.replay import replay

    document = json.loads((WEB / "run.json").read_text(encoding="utf-8"))
    record = Record.from_json(document["record"])
    assert replay(record, embedded) == []
    reading = embedded.read(record.prompt_ids, top=5)
    assert [at["predicted"]["id"] for at in document["readings"]] == [at.predicted.token.id for at in reading]


# The strip and the lesson.


def test_a_typed_prompt_becomes_tokens_and_ids(reader: Reader, embedded: LLM) -> None:
    reader.visit().start("Two  dogs\nand a café")
    tokens = embedded.tokenize("Two  dogs\nand a café")
    assert reader.ids == [token.id for token in tokens]
    assert reader.tokens[0] == "<s>"
    assert "⏎" in "".join(reader.tokens)
    expect(reader.page.locator(".cell .id").first).to_be_hidden()
    reader.page.keyboard.press("i")
    expect(reader.page.locator(".cell .id").first).to_be_visible()
    expect(reader.page.locator(".cell.prompt")).to_have_count(len(tokens))


def test_the_lessons_line_is_that_of_byhand_read(reader: Reader, embedded: LLM) -> None:
    reader.visit().start(PROMPT)
    reading = embedded.read(PROMPT)
    assert reader.said(len(reading)) == [visible(at.predicted.token.text) for at in reading]
    reader.page.locator(".cell .said").nth(3).hover()
    expect(reader.page.locator("#read .aloud")).to_have_text("<s>A·list·of → ·colors")
    lit = reader.page.locator(".cell.lit .piece").all_inner_texts()
    assert lit == ["<s>", "A", "·list", "·of"]
    expect(reader.page.locator(".cell.unread")).to_have_count(len(reading) - 5)
    # What really comes next, with its rank and probability: after <s> it is not the best.
    reader.page.locator(".cell .said").nth(0).hover()
    actual = reading[0].actual
    assert actual is not None
    assert f"really next: A rank {actual.rank} {actual.prob * 100:.1f} %" in reader.text("#read")
    assert "Only this prediction" not in reader.text("#read")
    reader.page.locator(".cell .said").nth(len(reading) - 1).hover()
    expect(reader.page.locator("#read .moral")).to_contain_text("Only this prediction continues the whole prompt")


def test_the_phases_are_named_and_the_work_shrinks(reader: Reader) -> None:
    reader.visit().start("Once upon a time there was a little dog")
    count = len(reader.tokens)
    assert reader.text("#phase").startswith(f"prefill: {count} positions in one pass, cache 0 → {count}")
    reader.step(2)
    expect(reader.page.locator("#phase")).to_contain_text(f"decode: 1 position, cache {count} → {count + 1}")


def test_surprise_is_painted_and_confidence_is_not(reader: Reader) -> None:
    reader.visit()
    run = json.loads((WEB / "run.json").read_text(encoding="utf-8"))["record"]
    for step in run["steps"][: len(reader.tokens) - len(run["prompt"])]:
        cell = reader.page.locator(f"#token-{step['position']}")
        painted = cell.get_attribute("data-surprise") != "0"
        assert painted == (step["logprob"] < -0.3567), step["token"]["text"]  # ln 0.7
        colour = cell.locator(".piece").evaluate("node => getComputedStyle(node).backgroundColor")
        assert (colour == "rgba(0, 0, 0, 0)") == (not painted)


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror=alert(1)><script>alert(2)</script><b>x</b>",
        "one \u202egnirts\u202c two \u200f three",
        "👩\u200d👩\u200d👧 e\u0301 日本",
    ],
)
def test_a_hostile_prompt_shows_as_itself(reader: Reader, embedded: LLM, prompt: str) -> None:
    dialogs: list[str] = []
    reader.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    reader.visit().start(prompt)
    assert reader.ids == [token.id for token in embedded.tokenize(prompt)]
    assert reader.page.locator(".strip :is(img, script, b)").count() == 0
    assert dialogs == []
    shown = "".join(reader.page.locator(".cell .piece").all_text_contents())
    assert not re.search("[\u200b-\u200f\u202a-\u202e]", shown)
    if prompt.startswith("<img"):
        assert shown.removeprefix("<s>").replace("·", " ") == prompt


# The next token.


def test_candidates_show_what_the_chain_did_and_always_add_up(reader: Reader) -> None:
    reader.visit()
    stored = json.loads((WEB / "run.json").read_text(encoding="utf-8"))["record"]
    step = stored["steps"][len(reader.tokens) - len(stored["prompt"]) - 1]
    for index, candidate in enumerate(step["top"]):
        row = reader.candidate(index)
        assert row.locator(".piece").inner_text() == visible(candidate["text"])
        assert ("cut by top p" in row.inner_text()) == (candidate["removed_by"] == "top_p")
    titles = [row.get_attribute("title") or "" for row in reader.page.locator("#next .shares").all()]
    sums = [sum(float(re.findall(r"[\d.e-]+(?=$|,)", title)[place]) for title in titles) for place in (0, 1)]
    assert sums == pytest.approx([1.0, 1.0], abs=1e-6)
    assert f"entropy {step['entropy']:.2f} nats" in reader.text("#next")
    assert f"draw {step['draw']['u']:.4f} fell between {step['draw']['low']:.4f}" in reader.text("#next .draw")


def test_sliders_reshape_exactly_without_running_the_model(reader: Reader, server: Running, embedded: LLM) -> None:
    reader.visit().start(PROMPT).greedy()
    reader.step(2)
    made = server.generated
    settings = {"temperature": 1.5, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3}
    for name, value in settings.items():
        reader.page.locator(f"#set-{name}").fill(str(value))
    expect(reader.page.locator("#next .what-if")).to_contain_text("exact, from this step")
    reader.rest()
    assert server.generated == made
    ids = reader.ids[:-1]
    logits = embedded.logits(ids)[-1].numpy()
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    last = run_chain(logits, History(ids, len(ids) - 1, embedded.eos_ids), settled(params, embedded.vocab_size))[
        -1
    ].logits
    import numpy as np

    shares = np.exp(last - last.max()) / np.exp(last - last.max()).sum()
    for row in reader.page.locator("#next button.candidate").all():
        shown = float((row.locator(".shares").get_attribute("title") or "").rpartition(" ")[2])
        assert shown == pytest.approx(float(shares[int(row.get_attribute("data-id") or 0)]), abs=2e-4)
    reader.page.get_by_role("button", name="As it was").click()
    expect(reader.page.locator("#next .what-if")).to_have_count(0)


def test_in_a_record_sliders_are_approximate_and_say_so(reader: Reader) -> None:
    reader.visit()
    reader.page.locator("#set-temperature").fill("1.2")
    expect(reader.page.locator("#next .what-if")).to_contain_text("approximate")


# The crank.


def test_five_steps_are_those_of_byhand_run(reader: Reader, embedded: LLM) -> None:
    reader.visit().start(PROMPT).greedy().step(5)
    completion = embedded.generate(PROMPT, SamplingParams(max_tokens=5))
    assert reader.ids == completion.prompt_ids + completion.ids
    assert "rank 1" in reader.text("#read")


def test_a_chosen_candidate_branches_and_the_old_tail_can_be_had_back(reader: Reader) -> None:
    reader.visit().start(PROMPT).greedy().step(6)
    before = reader.tokens
    reader.page.locator("#token-8").click()
    expect(reader.page.locator("#read .figures")).to_contain_text("8 tokens")
    other = reader.candidate(1)
    name = other.locator(".piece").inner_text()
    other.click()
    expect(reader.page.locator("#branches button")).to_have_count(2)
    expect(reader.page.locator(".cell")).to_have_count(9)
    assert reader.tokens == [*before[:8], name]
    expect(reader.page.locator("#token-8")).to_have_class(re.compile("forced"))
    reader.press("u")
    assert reader.tokens == before
    expect(reader.page.locator("#branches button").nth(1)).to_have_text("B from 8")
    # Both are there, side by side: where they part, and with what probability.
    reader.page.click("#tab-tree")
    reader.page.get_by_role("button", name="compare with B").click()
    assert "A and B are the same for 8 tokens" in reader.text("#panel h3")
    assert re.search(r"\d+ pages held, \d+ of them by more than one run: \d+ KiB", reader.text("#panel"))


def test_rewind_and_undo_bring_the_tail_back(reader: Reader) -> None:
    reader.visit().start(PROMPT).greedy().step(5)
    before = reader.tokens
    reader.page.locator("#token-9").click()
    reader.page.click("#rewind-to")
    expect(reader.page.locator(".cell")).to_have_count(9)
    reader.rest()
    assert "3 let go, 9 of 9 positions stay in the cache" in reader.text("#phase")
    reader.press("u")
    assert reader.tokens == before
    # The same dice, or the same best: stepping again after a rewind gives the same token.
    reader.press("ArrowLeft")
    assert reader.tokens == before[:-1]
    assert "The next token" in reader.text("#next")
    reader.step()
    assert reader.tokens == before


def test_an_edit_computes_only_what_comes_after_it(reader: Reader) -> None:
    reader.visit().start("Once upon a time there was a little dog")
    count = len(reader.tokens)
    reader.page.locator(f"#token-{count - 1}").dblclick()
    reader.page.fill("#write-text", " cat named Tom")
    reader.page.click("#write-put")
    expect(reader.page.locator(".cell.forced")).not_to_have_count(0)
    reader.rest()
    assert "".join(reader.tokens[: count - 1]).endswith("·little")
    assert "".join(reader.tokens).endswith("·little·cat·named·Tom")
    reader.step()
    said = reader.text("#phase")
    passes = re.findall(r"(\d+) positions?(?: in one pass)?, cache (\d+)", said)
    computed, reused = map(int, passes[-1])
    assert reused >= count - 1
    assert computed < count


def test_pause_really_pauses_the_server(reader: Reader, server: Running) -> None:
    reader.visit()
    # So hot a run goes on for long, as a rule; one that came to its end before it was paused proves nothing.
    for _ in range(6):
        reader.start("Once upon a time")
        reader.page.locator("#set-temperature").fill("2")
        reader.rest()
        reader.page.locator("#strip").focus()
        reader.page.keyboard.press(" ")
        reader.page.locator(".cell.continuation").nth(3).wait_for(state="attached")
        reader.page.keyboard.press(" ")
        reader.rest()
        if reader.tokens[-1] != "</s>":
            break
    made = server.generated
    assert 3 < len(reader.tokens) < 2000
    reader.page.wait_for_timeout(300)
    assert server.generated == made
    reader.step()
    assert server.generated == made + 1


def test_breakpoints_pause_before_the_token(reader: Reader, embedded: LLM) -> None:
    reader.visit().start(PROMPT).greedy()
    reader.press("b")
    reader.page.fill("#break-token", " green")
    reader.page.locator("#strip").focus()
    reader.page.keyboard.press(" ")
    expect(reader.page.locator("#banner")).to_contain_text("the breakpoint “token” was met")
    completion = embedded.generate(PROMPT, SamplingParams(max_tokens=40))
    wanted = embedded.tokenizer.one_token(" green")
    assert reader.ids[7:] == completion.ids[: completion.ids.index(wanted)]
    assert "·green" in reader.candidate(0).inner_text()


def test_keyboard_only(reader: Reader) -> None:
    reader.visit()
    keys = reader.page.keyboard
    reader.press("/")
    keys.type("A list of colors: red")
    keys.press("Enter")
    expect(reader.page.locator("#model .badge")).to_have_count(0)
    expect(reader.page.locator("#next .candidate").first).to_be_visible()
    reader.step(2)
    reader.press("Shift+ArrowLeft", "Shift+ArrowLeft")
    expect(reader.page.locator("#strip")).to_have_attribute("aria-activedescendant", "token-6")
    reader.press("2")
    expect(reader.page.locator("#branches button")).to_have_count(2)
    expect(reader.page.locator(".cell")).to_have_count(7)
    reader.press("f")
    expect(reader.page.locator("#branches button")).to_have_count(3)
    reader.press("?")
    expect(reader.page.locator("#keys")).to_be_visible()
    keys.press("Escape")
    expect(reader.page.locator("#keys")).to_be_hidden()
    # Every control is reached by Tab, and says where it is.
    seen = set()
    for _ in range(60):
        keys.press("Tab")
        seen.add(reader.page.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert {"prompt", "strip", "step", "run", "back", "fork", "theme", "tab-settings", "speed"} <= seen


# Panels, chat, records.


def test_settings_say_where_they_come_from(reader: Reader) -> None:
    reader.visit().start(PROMPT)
    reader.press("Escape")
    assert "temperature 0.8 from the checkpoint" in reader.text("#panel")
    assert "top k off from default" in reader.text("#panel")
    reader.page.locator("#set-top_k").fill("7")
    expect(reader.page.locator("#from-top_k")).to_have_text("from you")


def test_cost_ending_and_wire_tell_the_runs_own_numbers(reader: Reader) -> None:
    reader.visit().start(PROMPT).greedy()
    reader.page.click("#run")
    reader.page.click("#tab-ending")
    expect(reader.page.locator("#why")).to_contain_text("the end-of-sequence token </s> (id 2)")
    assert reader.page.locator("#panel svg .ticks:not(.bound)").get_attribute("d")
    reader.page.click("#tab-cost")
    expect(reader.page.locator("#panel")).to_contain_text("prompt:")
    assert re.search(r"median [\d.]+ ms .* tokens/s", reader.text("#panel"))
    reader.page.click("#tab-wire")
    expect(reader.page.locator("#panel pre")).to_contain_text('"event": "step"')


def test_every_number_leads_to_its_line_of_code(reader: Reader, server: Running) -> None:
    reader.visit()
    links = {link.get_attribute("href") or "" for link in reader.page.locator("a.made").all()}
    assert len(links) >= 4
    for tab in ("tree", "cost", "ending", "wire"):
        reader.page.click(f"#tab-{tab}")
        expect(reader.page.locator("#panel")).to_have_attribute("aria-labelledby", f"tab-{tab}")
        links |= {link.get_attribute("href") or "" for link in reader.page.locator("#panel a.made").all()}
    for link in links:
        assert server.get(link.removesuffix("#here")).body.count(b'id="here"') == 1, link
    reader.page.goto(reader.url + max(links))
    expect(reader.page.locator("#here")).to_be_in_viewport()


def test_chat_streams_edits_and_opens_in_the_strip(reader: Reader) -> None:
    reader.visit()
    reader.page.click("#view-chat")
    reader.page.fill("#chat-text", "Count from one to five.")
    reader.page.keyboard.press("Enter")
    answer = reader.page.locator(".message.assistant .words")
    expect(reader.page.locator("#chat-send")).to_have_text("Send")
    expect(answer).to_contain_text("1")
    reader.page.click("#template summary")
    expect(reader.page.locator("#template pre")).to_have_text("<s><|user|>Count from one to five.<|assistant|>")
    reader.page.get_by_role("button", name="edit message 1", exact=True).click()
    reader.page.locator(".message textarea").fill("Name a color.")
    reader.page.get_by_role("button", name="Send again").click()
    expect(reader.page.locator("#chat-send")).to_have_text("Send")
    expect(reader.page.locator(".message")).to_have_count(2)
    expect(answer).not_to_be_empty()
    words = answer.inner_text()
    reader.page.get_by_role("button", name="regenerate message 2").click()
    expect(reader.page.locator("#chat-send")).to_have_text("Send")
    words = answer.inner_text()
    reader.page.get_by_role("button", name="open message 2 in the strip").click()
    expect(reader.page.locator(".cell.continuation").first).to_be_visible()
    assert "".join(reader.tokens).removesuffix("</s>").endswith(visible(words))
    expect(reader.page.locator("#next .candidate").first).to_be_visible()


def test_a_record_saved_and_opened_again_shows_the_same(
    reader: Reader, opened: Any, server: Running, tmp_path: Path
) -> None:
    reader.visit().start(PROMPT).step(4)
    with reader.page.expect_download() as download:
        reader.page.click("#save")
    file = tmp_path / "run.json"
    download.value.save_as(file)
    Record.from_json(json.loads(file.read_text(encoding="utf-8"))["record"])
    seen = reader.tokens, reader.said(40), reader.text("#next"), reader.text("#read")
    other = Reader(opened.new_context(viewport={"width": 1440, "height": 1000}).new_page(), reader.url).visit()
    other.page.set_input_files("#file", str(file))
    expect(other.page.locator(".cell")).to_have_count(len(seen[0]))
    assert (other.tokens, other.said(40), other.text("#next"), other.text("#read")) == seen
    other.page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(other.page.locator("#banner")).to_contain_text("no byhand record")
    other.page.context.close()


def test_a_link_holds_the_whole_run(reader: Reader) -> None:
    reader.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reader.visit().start(PROMPT).step(3)
    tokens = reader.tokens
    reader.page.click("#share")
    expect(reader.page.locator("#banner")).to_contain_text("in the clipboard")
    link = reader.page.evaluate("() => navigator.clipboard.readText()")
    reader.page.goto("about:blank")
    reader.page.goto(link)
    expect(reader.page.locator(".cell")).to_have_count(len(tokens))
    assert reader.tokens == tokens


def test_reload_keeps_the_state(reader: Reader, server: Running) -> None:
    reader.visit().start(PROMPT).step(3)
    reader.press("f")
    reader.step(2)
    reader.page.locator("#token-4").click()
    reader.page.click("#tab-cost")
    tokens, said = reader.tokens, reader.said(7)
    made = server.generated
    reader.page.reload()
    expect(reader.page.locator("#branches button")).to_have_count(2)
    reader.rest()
    assert (reader.tokens, reader.said(7)) == (tokens, said)
    expect(reader.page.locator("#tab-cost")).to_have_attribute("aria-selected", "true")
    expect(reader.page.locator("#token-4")).to_have_attribute("aria-selected", "true")
    assert server.generated == made
    reader.step()
    assert server.generated == made + 1


def test_nothing_is_left_in_the_engine(server: Running, reader: Reader) -> None:
    reader.visit().start(PROMPT).step(1)
    reader.page.goto("about:blank")
    assert until(lambda: server.worker.stats().running == 0)
