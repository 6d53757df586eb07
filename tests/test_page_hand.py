"""The page in a real browser: cards, dragging, slow breakpoints, the address, the machine's limit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from byhand import LLM, SamplingParams
from tests.browsing import Reader, visible
from tests.serving import Running

PROMPT = "A list of colors: red"


# Cards.


def test_cards_finish_when_the_reader_does_the_thing(reader: Reader) -> None:
    page = reader.visit().page
    card = page.locator("#card")

    def asks(title: str, *, ticked: str | None = None) -> None:
        expect(card.locator("b")).to_have_text(f"{title} ")
        expect(card.locator(".ticked")).to_have_count(int(ticked is not None))
        if ticked is not None:
            expect(card.locator(".ticked")).to_have_text(f"✓ {ticked} ")

    asks("What is a token id?")
    page.click("#ids")
    asks("Point at a prediction", ticked="What is a token id?")
    page.locator(".cell .said").nth(2).hover()
    asks("Why can’t I just read all outputs?", ticked="Point at a prediction")
    expect(card).to_contain_text("“·red”")
    page.locator(".cell.prompt .said").last.hover()
    expect(page.locator("#read .moral")).to_contain_text("Only this prediction continues the whole prompt")
    asks("Where does the comma come from?", ticked="Why can’t I just read all outputs?")
    page.locator(".cell.first .piece").click()
    expect(page.locator("#read .aloud")).to_have_text("<s>A·list·of·colors:·red → ,")
    asks("Turn the crank", ticked="Where does the comma come from?")
    reader.step()
    asks("What are the two phases?", ticked="Turn the crank")
    expect(card).to_contain_text("7 positions in")
    page.click("#tab-cost")
    asks("Choose otherwise", ticked="What are the two phases?")
    page.locator("#next button.candidate:not(.is-chosen)").first.click()
    asks("Why not always the best?", ticked="Choose otherwise")
    page.click("#tab-settings")
    page.locator("#set-temperature").fill("1.3")
    asks("Take it back", ticked="Why not always the best?")
    reader.press("Escape", "ArrowLeft")
    asks("When does it stop?", ticked="Take it back")
    page.click("#tab-ending")
    asks("How does it stream?", ticked="When does it stop?")
    page.click("#tab-wire")
    expect(card).to_be_hidden()
    page.reload()
    expect(page.locator("#model meter")).to_be_visible()
    expect(card).to_be_hidden()


def test_a_card_can_be_passed_over_and_all_be_sent_away(reader: Reader) -> None:
    card = reader.visit().page.locator("#card")
    card.get_by_role("button", name="Next").click()
    expect(card.locator("b")).to_have_text("Point at a prediction ")
    expect(card.locator(".ticked")).to_have_count(0)
    card.get_by_role("button", name="No more cards").click()
    expect(card).to_be_hidden()
    reader.visit()
    expect(card).to_be_hidden()


# The hand.


def test_dragging_the_caret_rewinds(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).greedy().step(5).page
    before = reader.tokens
    caret, goal = page.locator(".caret").bounding_box(), page.locator("#token-9").bounding_box()
    assert caret is not None
    assert goal is not None
    page.mouse.move(caret["x"] + 4, caret["y"] + 8)
    page.mouse.down()
    page.mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + 8, steps=6)
    # What will be let go of is dimmed before it is.
    expect(page.locator(".cell.unread")).to_have_count(len(before) - 10)
    assert reader.tokens == before
    page.mouse.up()
    expect(page.locator(".cell")).to_have_count(9)
    reader.rest()
    assert reader.tokens == before[:9]
    assert "3 let go, 9 of 9 positions stay in the cache" in reader.text("#phase")
    reader.press("u")
    assert reader.tokens == before


def test_text_is_put_in_between_and_the_rest_stays(reader: Reader, embedded: LLM) -> None:
    page = reader.visit().start(PROMPT).greedy().step(4).page
    before, ids = reader.tokens, reader.ids
    page.locator("#token-4").dblclick()  # " colors", in the prompt
    page.fill("#write-text", " the best colors")
    page.get_by_label("keep the 6 that follow").check()
    page.click("#write-put")
    expect(page.locator("#branches button")).to_have_count(2)
    new = embedded.encode("A list of the best colors")
    expect(page.locator(".cell")).to_have_count(len(new) + 6)
    reader.rest()
    assert reader.ids == new + ids[5:]
    page.get_by_role("button", name="run A").first.click()
    expect(page.locator(".cell")).to_have_count(len(before))
    assert reader.tokens == before


def test_breakpoints_hold_while_the_page_takes_single_steps(reader: Reader, embedded: LLM) -> None:
    page = reader.visit().start(PROMPT).greedy().page
    page.select_option("#speed", "brisk")  # at full speed the server watches for them
    reader.press("b")
    page.fill("#break-token", " green")
    page.locator("#strip").focus()
    page.keyboard.press(" ")
    expect(page.locator("#run")).to_have_text("⏸ Pause")
    expect(page.locator("#banner")).to_contain_text("before the next token: the breakpoint “token” was met")
    reader.rest()
    completion = embedded.generate(PROMPT, SamplingParams(max_tokens=40))
    assert not isinstance(completion, list)
    wanted = completion.ids.index(embedded.tokenizer.one_token(" green"))
    assert reader.ids[7:] == completion.ids[:wanted]
    assert "·green" in reader.candidate(0).inner_text()
    # The next run passes the place; words that were looked for stop it after they came.
    page.fill("#break-token", "")
    page.fill("#break-text", "yellow")
    page.locator("#strip").focus()
    page.keyboard.press(" ")
    expect(page.locator("#banner")).to_contain_text("after these words: the breakpoint “text” was met")
    reader.rest()
    assert reader.tokens[-1] == "·yellow"


def test_chat_stops_when_it_is_told_to(reader: Reader, server: Running) -> None:
    page = reader.visit().page
    page.locator("#set-temperature").fill("2")  # so hot that it goes on for long, as a rule
    page.click("#view-chat")
    words = page.locator(".message.assistant .words").last
    for _ in range(6):
        page.fill("#chat-text", "Tell me a long story about a dog.")
        page.keyboard.press("Enter")
        expect(page.locator("#chat-send")).to_have_text("Stop")
        expect(words).not_to_be_empty()
        page.click("#chat-send")
        expect(page.locator("#chat-send")).to_have_text("Send")
        page.wait_for_function("() => document.body.dataset.busy !== 'true'")
        page.get_by_role("button", name="in the strip").last.click()
        if reader.tokens[-1] != "</s>":
            break
        page.click("#view-chat")
    made = server.generated
    page.wait_for_timeout(300)
    assert server.generated == made
    # What was written stays, can be looked into, and goes on from there.
    expect(page.locator(".cell.continuation").nth(1)).to_be_attached()
    reader.step()
    assert server.generated == made + 1


# What the page knows, and from where.


def test_the_phase_line_tells_what_was_reused(reader: Reader, embedded: LLM) -> None:
    page = reader.visit().page
    page.click("#view-chat")
    for question in ("Count from one to five, and then name two colors.", "Name a color."):
        page.fill("#chat-text", question)
        page.keyboard.press("Enter")
        expect(page.locator("#chat-send")).to_have_text("Send")
    page.get_by_role("button", name="open message 4 in the strip").click()
    expect(page.locator(".cell.continuation").first).to_be_visible()
    length = page.locator(".cell.prompt").count()
    said = re.search(
        r"prefill: (\d+) positions in one pass, cache (\d+) → (\d+), (\d+) positions reused", reader.text("#phase")
    )
    assert said is not None
    computed, before, after, reused = map(int, said.groups())
    assert (before, after, computed) == (reused, length, length - reused)
    assert reused >= 16
    # A chat's prompt is not read aloud while it is answered; in the strip it is.
    ids = reader.ids[:length]
    reading = embedded.read(ids)
    expect(page.locator(".cell.prompt .said").nth(length - 2)).not_to_be_empty()
    assert reader.said(length) == [visible(at.predicted.token.text) for at in reading]


def test_a_long_prompt_takes_several_passes_and_says_so(reader: Reader, embedded: LLM) -> None:
    prompt = "The dog ran to the cat. " * 170
    count = len(embedded.encode(prompt))
    assert 1024 < count < 1536
    reader.visit().start(prompt)
    expect(reader.page.locator(".cell.prompt")).to_have_count(count)
    expect(reader.page.locator("#phase")).to_contain_text(f"prefill: {count} positions in 3 passes, cache 0 → {count}")


def test_the_cost_is_told_beside_the_machines_own_limit(reader: Reader, embedded: LLM) -> None:
    from byhand.bench.wall import read_bytes

    page = reader.visit().page
    page.click("#tab-cost")
    expect(page.locator("#limit")).to_contain_text("a record’s, perhaps another machine’s")
    page.click("#tab-settings")
    reader.start(PROMPT).greedy().step(1)
    page.click("#tab-cost")
    expect(page.locator("#limit")).to_contain_text("One token more")
    reader.step(3)
    expect(page.locator("#limit")).to_contain_text("of what this machine’s memory allows")
    share = float(page.locator("#limit b").get_attribute("title") or 0)
    titles = {float(node.get_attribute("title") or 0) for node in page.locator("#panel .figures span[title]").all()}
    numbers = sorted(titles)
    assert read_bytes(embedded) in titles
    rate = max(numbers)
    limit = rate / read_bytes(embedded)
    assert any(one == pytest.approx(limit) for one in numbers)
    own = share * limit
    assert any(one == pytest.approx(own) for one in numbers)
    assert 1e9 < rate < 1e13


# The address.


def test_the_address_holds_the_view_and_the_place(reader: Reader, opened: Any) -> None:
    page = reader.visit().page
    assert "#" not in page.url
    page.locator("#token-5").click()
    page.click("#tab-ending")
    page.keyboard.press("i")
    expect(page).to_have_url(re.compile(r"#panel=ending&ids=1&at=5$"))
    seen = reader.text("#read")
    other = Reader(opened.new_context(viewport={"width": 1440, "height": 1000}).new_page(), page.url)
    for one in (other, reader):  # somebody else who is sent the address, and the same one after a reload
        if one is other:
            one.visit("")
        else:
            one.page.reload()
        expect(one.page.locator("#token-5")).to_have_attribute("aria-selected", "true")
        expect(one.page.locator("#tab-ending")).to_have_attribute("aria-selected", "true")
        expect(one.page.locator(".cell .id").first).to_be_visible()
        assert one.text("#read") == seen
    other.page.context.close()
    page.keyboard.press("Escape")
    page.keyboard.press("i")
    page.click("#tab-settings")
    expect(page).not_to_have_url(re.compile("#"))
    page.click("#view-chat")
    expect(page).to_have_url(re.compile("#view=chat$"))
    page.reload()
    expect(page.locator("#chat-text")).to_be_visible()


def test_a_shared_link_shows_the_same_place_and_lesson(reader: Reader) -> None:
    reader.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = reader.visit().start(PROMPT).step(3).page
    page.locator("#token-8").click()
    page.click("#tab-cost")
    page.click("#share")
    expect(page.locator("#banner")).to_contain_text("in the clipboard")
    link = page.evaluate("() => navigator.clipboard.readText()")
    seen = reader.tokens, reader.said(7), reader.text("#read")
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#token-8")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tab-cost")).to_have_attribute("aria-selected", "true")
    assert (reader.tokens, reader.said(7), reader.text("#read")) == seen
    # Who goes on from it has a run of their own, which a reload keeps.
    expect(page.locator("#model meter")).to_be_visible()
    page.keyboard.press("Escape")
    reader.step(1)
    expect(page).not_to_have_url(re.compile("run="))
    page.reload()
    expect(page.locator(".cell")).to_have_count(len(seen[0]) + 1)
