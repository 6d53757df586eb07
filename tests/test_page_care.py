"""The page in a real browser: numbers agree, what is shown says whose it is, no key destroys, nothing goes unsaid."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from byhand import LLM
from byhand.engine.limits import Limits
from tests.browsing import Reader, reader_of, visible
from tests.conftest import tiny_llama
from tests.serving import Running, serve, served

PROMPT = "A list of colors: red"
STORED = json.loads((Path(__file__).parents[1] / "byhand" / "web" / "run.json").read_text(encoding="utf-8"))
SHARES = re.compile(r"before the chain ([\d.e-]+), after it ([\d.e-]+)")


def file_of(document: object) -> dict[str, Any]:
    """A file that the reader opens."""
    return {"name": "run.json", "mimeType": "application/json", "buffer": json.dumps(document).encode()}


def opened_file(reader: Reader, document: object) -> None:
    """Open a record, and see it."""
    reader.page.set_input_files("#file", file_of(document))
    expect(reader.page.locator("#model .badge")).to_contain_text("a record")


# Numbers that agree.


def check_numbers(reader: Reader) -> None:
    """Every row is a token's, shares add up to one, and as many tokens are left as the chain says."""
    expect(reader.page.locator("#next .tail")).to_be_visible()
    reader.rest()
    rows = reader.page.locator("#next .candidate")
    titles = rows.locator(".shares").evaluate_all("all => all.map((one) => one.title)")
    shares = [SHARES.fullmatch(title) for title in titles]
    for place in (1, 2):
        assert sum(float(one[place]) for one in shares if one) == pytest.approx(1.0, abs=2e-3), titles
    assert None not in shares, titles
    stages = reader.page.locator("#next .chain li small").all_inner_texts()
    if not stages:
        return
    left = int(stages[-1].strip().removesuffix(" left").replace(",", ""))
    named = reader.page.locator("#next button.candidate:not(.is-cut)").count()
    others = int(re.sub(r"\D", "", rows.last.locator("span").first.inner_text()))
    said = rows.last.locator(".verdict").inner_text()
    if left == named:
        assert (said, rows.last.locator(".shares b").inner_text()) == ("all of them cut", "0 %")
    else:
        assert said == ("" if left == named + others else f"{left - named:,} left")


def test_shares_and_counts_agree_wherever_one_looks(reader: Reader) -> None:
    page = reader.visit().page
    check_numbers(reader)  # a step of a record
    page.locator("#set-top_k").fill("3")
    expect(page.locator("#next .what-if")).to_contain_text("approximate")
    check_numbers(reader)  # another chain over what a record keeps
    reader.start(PROMPT)
    check_numbers(reader)  # the token to come
    for name, value in (("top_k", "20"), ("top_p", "0.5"), ("min_p", "0.3"), ("top_p", "1"), ("min_p", "0")):
        page.locator(f"#set-{name}").fill(value)
        check_numbers(reader)
    page.locator("#strip").focus()
    reader.step(2)
    check_numbers(reader)  # a step
    page.locator("#set-temperature").fill("1.7")
    expect(page.locator("#next .what-if")).to_contain_text("exact")
    check_numbers(reader)  # another chain over its logits
    page.locator("#token-3").click()
    check_numbers(reader)  # the prompt's reading
    reader.press("Escape").greedy()
    check_numbers(reader)


def test_an_early_record_says_nothing_about_the_servers_vocabulary(reader: Reader) -> None:
    """A record without steps does not know how many tokens there are."""
    record = {**STORED["record"], "steps": [], "ids": [token["id"] for token in STORED["record"]["prompt"]]}
    reader.visit()
    opened_file(
        reader,
        {"record": {**record, "model": {**record["model"], "digest": "another"}}, "readings": STORED["readings"]},
    )
    reader.page.locator("#token-3").click()
    expect(reader.page.locator("#next .tail")).to_contain_text("all others")
    check_numbers(reader)


def test_only_what_was_read_is_said_to_be(reader: Reader) -> None:
    moral = reader.visit().start(PROMPT).step(2).page.locator("#read .moral")
    expect(moral).to_contain_text("The next pass reads it, too")
    reader.press("Shift+ArrowLeft")
    expect(moral).to_contain_text("It is the one that is kept")
    reader.press("Escape")
    reader.step()
    reader.press("Shift+ArrowLeft")
    expect(moral).to_contain_text("the model read it, too")
    reader.press("Escape", "ArrowLeft")
    expect(moral).to_contain_text("The prediction after the last token")
    reader.greedy().press(" ")
    expect(moral).to_contain_text("the run ended with it: no pass reads it")


# Whose it is.


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model of somebody's, whose tokenizer puts nothing before a text."""
    folder = tiny_llama(tmp_path_factory.mktemp("page") / "somebodys")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    return LLM(folder)


@pytest.fixture(scope="module")
def others(other: LLM) -> Iterator[Running]:
    """It is served, to pages of three runs each."""
    yield from served(other, may_keep_runs=True, limits=Limits(live_runs=3))


@pytest.fixture
def guest(others: Running, opened: Any) -> Iterator[Reader]:
    """Somebody before that server's page."""
    with reader_of(others, opened, viewport={"width": 1440, "height": 1000}) as one:
        yield one.visit()


def test_under_another_model_the_stored_run_says_whose_it_is(guest: Reader) -> None:
    said = guest.text("#model")
    assert said.startswith("somebodys float32 0 of 256 a stored run of byhand-tiny")
    assert said.endswith("press → to start one of somebodys")
    # What is known of the served model is not told of this run.
    expect(guest.page.locator("#next .tail")).to_contain_text("the other 4,086")
    guest.page.click("#tab-ending")
    expect(guest.page.locator("#panel")).to_contain_text("this record’s model is not served")


@pytest.mark.parametrize("key", ["ArrowRight", " "])
def test_the_first_key_under_another_model_starts_one_of_its_runs(guest: Reader, other: LLM, key: str) -> None:
    guest.page.locator("#break-text").evaluate("(node) => { document.querySelector('#breaks').open = true; }")
    guest.page.fill("#break-entropy", "0.01")  # a run of it halts before its first token
    guest.page.keyboard.press("Escape")
    guest.page.locator("#strip").focus()
    guest.press(key)
    expect(guest.page.locator("#model .badge")).to_have_count(0)
    ids = other.encode(PROMPT)
    assert guest.ids[: len(ids)] == ids
    assert len(guest.ids) == len(ids) + (key == "ArrowRight")
    expect(guest.page.locator("#banner .error")).to_have_count(0)


def test_another_models_run_is_not_changed_and_the_way_is_told(guest: Reader) -> None:
    before, banner = guest.tokens, guest.page.locator("#banner .error")
    for key in ("ArrowLeft", "3", "f", "u"):
        guest.press(key)
        expect(banner).to_contain_text(
            "made by byhand-tiny, and somebodys is served here: it can be played, not continu"
        )
        expect(banner).to_contain_text("Press → to start one of somebodys")
        assert guest.tokens == before
        guest.page.get_by_role("button", name="dismiss").click()


def test_a_records_times_are_not_shown_as_this_machines(reader: Reader, tmp_path: Path) -> None:
    page = reader.visit().page
    assert reader.text("#phase").count("in the record") == 2
    page.click("#tab-cost")
    expect(page.locator("#panel .whose")).to_have_text("As it was recorded, perhaps on another machine:")
    recorded = len(reader.tokens) - len(STORED["record"]["prompt"])
    reader.step(2)
    expect(page.locator("#panel .whose")).to_have_count(0)
    expect(page.locator("#panel")).to_contain_text(f"Pale: {recorded - 1} passes as recorded")
    expect(page.locator("#panel")).to_contain_text("prompt: 7 positions in 0.78 ms in the record")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "run.json")
    steps = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["record"]["steps"]
    own = [step["seconds"] for step in steps[recorded:] if step["positions_computed"] == 1]
    titles = page.locator("#panel .figures b[title]").evaluate_all("all => all.map((one) => Number(one.title))")
    assert titles[0] == pytest.approx(statistics.median_high(own))
    # A branch and a reload know it, too.
    reader.press("f")
    expect(page.locator("#panel")).to_contain_text(f"Pale: {recorded - 1} passes as recorded")
    page.reload()
    expect(page.locator("#panel")).to_contain_text(f"Pale: {recorded - 1} passes as recorded")


def test_settings_of_a_record_hold_when_it_goes_on(reader: Reader) -> None:
    page = reader.visit().page
    page.locator("#set-temperature").fill("0")
    expect(page.locator("#from-temperature")).to_have_text("from you")
    page.locator("#strip").focus()
    reader.step()
    assert "draw" not in reader.text("#next")
    assert "temperature 0 from you" in reader.text("#panel")
    assert "top p 0.95 from the record" in reader.text("#panel")


def test_undone_settings_are_shown_as_they_were(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).page
    page.locator("#set-top_k").fill("7")
    reader.rest()
    page.locator("#strip").focus()
    reader.press("u")
    assert "top k off from default" in reader.text("#panel")
    assert page.locator("#set-top_k").input_value() == "0"


# Keys that do not destroy.


def test_arrows_in_a_list_move_and_take_nothing_back(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).greedy().step(3).page
    before, strip = reader.tokens, page.locator("#strip")
    page.locator("#token-8").click()
    reader.press("ArrowLeft", "ArrowLeft")
    expect(strip).to_have_attribute("aria-activedescendant", "token-6")
    reader.press("ArrowRight")
    expect(strip).to_have_attribute("aria-activedescendant", "token-7")
    reader.press("Home")
    expect(strip).to_have_attribute("aria-activedescendant", "token-1")
    reader.press("End")
    assert reader.tokens == before
    reader.candidate(2).focus()
    reader.press("ArrowLeft")
    assert reader.tokens == before
    # Elsewhere it is the crank's; and at the end so is the one to the right.
    strip.focus()
    reader.step()
    strip.evaluate("(node) => node.blur()")
    reader.press("ArrowLeft")
    assert reader.tokens == before


def test_what_is_pointed_at_is_not_what_is_taken_back(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).greedy().step(4).page
    before = reader.tokens
    page.locator("#token-3").hover()
    reader.press("Backspace")
    assert reader.tokens == before[:-1]


def test_where_a_text_begins_nothing_is_put(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).page
    before = reader.tokens
    page.locator("#token-0").dblclick()
    expect(page.locator("#banner")).to_contain_text("<s> is where this text begins")
    expect(page.locator("#editor")).to_be_hidden()
    expect(page.locator("#branches button")).to_have_count(0)
    assert reader.tokens == before


def test_another_first_token_is_another_run(guest: Reader, other: LLM) -> None:
    page = guest.start("the quick fox").page
    tail = guest.ids[1:]
    page.locator("#token-0").dblclick()
    expect(page.locator("#editor")).to_contain_text("starts a run of its own")
    page.fill("#write-text", "one two")
    page.locator("#write-keep").check()
    page.click("#write-put")
    new = other.encode("one two")
    expect(page.locator(".cell")).to_have_count(len(new) + len(tail))
    assert guest.ids == new + tail
    expect(page.locator("#branches button")).to_have_count(2)


def test_a_branch_in_which_nothing_could_be_done_is_none(guest: Reader) -> None:
    page = guest.start("the quick fox").step(2).page
    before = guest.tokens
    page.locator("#token-2").dblclick()
    page.fill("#write-text", "fox " * 300)
    page.click("#write-put")
    expect(page.locator("#banner .error")).to_contain_text("do not fit")
    expect(page.locator("#branches button")).to_have_count(0)
    assert guest.tokens == before


def test_no_run_is_closed_unasked(guest: Reader) -> None:
    page = guest.start("one").page
    for text in ("two", "three"):
        guest.start(text)
    for act in (lambda: guest.press("f"), lambda: page.locator("#prompt-form button").click()):
        act()
        expect(page.locator("#banner .error")).to_contain_text("3 runs are open, the most that this server keeps")
        expect(page.locator("#branches button")).to_have_count(3)
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name="Show the tree").click()
    expect(page.get_by_role("button", name="close run B")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="close run B").click()
    expect(page.locator("#branches button")).to_have_count(2)
    guest.start("four")
    expect(page.locator("#branches button")).to_have_count(3)
    expect(page.locator("#banner")).to_be_empty()


# What is told is of now.


def test_an_error_ends_with_the_next_thing_that_is_tried(reader: Reader) -> None:
    page, banner = reader.visit().page, reader.page.locator("#banner")

    def fail() -> None:
        page.set_input_files("#file", file_of({}))
        expect(banner).to_contain_text("no byhand record")

    fail()
    reader.start(PROMPT)
    expect(banner).to_be_empty()
    for key in ("ArrowRight", "ArrowLeft", "u", "2"):
        fail()
        reader.press(key)
        expect(banner).to_be_empty()
    fail()
    opened_file(reader, STORED)
    expect(banner).to_be_empty()
    fail()
    page.get_by_role("button", name="run B").click()
    expect(banner).to_be_empty()


def test_a_run_that_was_refused_stands_still(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).page
    reader.press("b")
    page.fill("#break-token", "not one token")
    page.locator("#strip").focus()
    reader.press(" ")
    expect(page.locator("#banner .error")).to_contain_text("token")
    expect(page.locator("#run")).to_have_text("▶ Run")


def test_more_than_memory_allows_is_said_as_it_is(server: Running, opened: Any) -> None:
    """A small model stays in the processor's caches, and is read faster than memory is."""
    with reader_of(server, opened) as reader:

        def slow_memory(ours: Any) -> None:
            theirs = ours.connect_to_server()
            theirs.on_message(lambda text: ours.send(re.sub(r'("bytes_per_second": )[^,}]+', r"\g<1>1e6", text)))

        reader.page.route_web_socket("**/live", slow_memory)
        reader.visit().start(PROMPT).step(2)
        reader.page.click("#tab-cost")
        expect(reader.page.locator("#panel")).to_contain_text("stays in the processor’s own caches")
        share = reader.page.locator("#limit b")
        said, exact = share.inner_text(), float(share.get_attribute("title") or 0)
        assert int(said.removesuffix(" %")) == round(exact * 100) > 100


def test_what_is_told_stays_in_sight(server: Running, opened: Any) -> None:
    with reader_of(server, opened, viewport={"width": 390, "height": 844}) as reader:
        page = reader.visit().page
        page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
        page.set_input_files("#file", file_of({}))
        expect(page.locator("#banner .error")).to_be_in_viewport(ratio=1)


# Chat.


def ask(reader: Reader, text: str) -> None:
    """Ask, and wait for the answer."""
    reader.page.fill("#chat-text", text)
    reader.page.keyboard.press("Enter")
    expect(reader.page.locator("#chat-send")).to_have_text("Send")
    reader.rest()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_newest_answer_stands_above_the_place_to_write(server: Running, opened: Any, width: int) -> None:
    with reader_of(server, opened, viewport={"width": width, "height": 480}) as reader:
        reader.visit().page.click("#view-chat")
        bottom = "document.querySelector('.message:last-child').getBoundingClientRect().bottom"
        gap = f"() => document.querySelector('.compose').getBoundingClientRect().top - {bottom}"
        for question in ("Name a color.", "Count from one to five."):
            ask(reader, question)
            assert reader.page.evaluate(gap) >= 0
        # So it does when one comes back to it; who reads further up is left there.
        reader.page.click("#view-strip")
        reader.page.evaluate("() => scrollTo(0, 0)")
        reader.page.click("#view-chat")
        reader.page.wait_for_function(f"() => ({gap})() >= 0")
        reader.page.evaluate("() => scrollTo(0, 0)")
        reader.page.get_by_role("button", name="edit message 1", exact=True).click()
        assert reader.page.evaluate("() => scrollY") == 0


def test_messages_that_are_left_out_can_be_had_back(reader: Reader) -> None:
    page = reader.visit().page
    page.click("#view-chat")
    for question in ("Name a color.", "Count from one to five."):
        ask(reader, question)
    words = page.locator(".message .words")
    before, undo = words.all_inner_texts(), page.locator("#chat-undo")
    expect(undo).to_be_hidden()

    def edit() -> None:
        page.get_by_role("button", name="edit message 1", exact=True).click()
        page.get_by_role("button", name="Send again").click()

    for leave_out in (
        page.get_by_role("button", name="New chat").click,
        page.get_by_role("button", name="regenerate message 2").click,
        edit,
    ):
        leave_out()
        expect(page.locator("#chat-send")).to_have_text("Send")
        reader.rest()
        assert words.count() < 4
        undo.click()
        assert words.all_inner_texts() == before
        expect(undo).to_be_hidden()
    expect(page.get_by_role("button", name="in the strip")).to_have_count(2)


def test_answers_can_be_opened_after_a_reload(reader: Reader) -> None:
    page = reader.visit().page
    page.click("#view-chat")
    for question in ("Name a color.", "Count from one to five."):
        ask(reader, question)
    words = page.locator(".message.assistant .words").all_inner_texts()
    page.reload()
    for index in (0, 1):
        page.click("#view-chat")
        assert page.locator(".message.assistant .words").all_inner_texts() == words
        page.get_by_role("button", name=f"open message {2 * index + 2} in the strip").click()
        expect(page.locator("#next .candidate").first).to_be_visible()
        expect(page.locator("header")).to_be_in_viewport()
        assert "".join(reader.tokens).removesuffix("</s>").endswith(visible(words[index]))


def test_an_answer_under_way_has_all_its_words_after_a_reload(reader: Reader) -> None:
    page = reader.visit().page
    page.locator("#set-temperature").fill("2")  # so hot that it goes on for long, as a rule
    page.click("#view-chat")
    page.fill("#chat-text", "Tell me a story about a dog.")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .words")).not_to_be_empty()
    page.reload()
    reader.rest()
    expect(page.locator("#chat-send")).to_have_text("Send")
    words = page.locator(".message.assistant .words").text_content() or ""
    page.get_by_role("button", name="open message 2 in the strip").click()
    reader.rest()
    shown = "".join(page.locator(".cell.continuation .piece").all_text_contents())
    assert words.strip()
    assert words.isascii() is False or shown.removesuffix("</s>") == visible(words)


def test_old_answers_leave_the_engine_and_can_still_be_opened(embedded: LLM, opened: Any) -> None:
    running = served(embedded, may_keep_runs=True, limits=Limits(live_runs=3))
    with reader_of(next(running), opened) as reader:
        page = reader.visit().page
        page.click("#view-chat")
        for _ in range(3):
            ask(reader, "Name a color.")
        words = page.locator(".message.assistant .words").all_inner_texts()
        expect(page.get_by_role("button", name="in the strip")).to_have_count(3)
        page.click("#view-strip")
        expect(page.locator("#branches button")).to_have_count(0)
        page.click("#tab-tree")
        # The stored run's, and one of the answers'; the two others are the engine's.
        expect(page.get_by_role("row", name="a record")).to_have_count(2)
        page.reload()
        page.click("#view-chat")
        page.get_by_role("button", name="open message 2 in the strip").click()
        expect(page.locator(".cell.continuation").first).to_be_visible()
        assert "".join(reader.tokens).removesuffix("</s>").endswith(visible(words[0]))
        # It is the engine's again at the next step; its message knows it under its new name.
        reader.press("ArrowLeft")
        page.click("#view-chat")
        expect(page.get_by_role("button", name="in the strip")).to_have_count(3)
    next(running, None)


def test_a_reload_under_a_new_server_loses_nothing(embedded: LLM, opened: Any) -> None:
    first = serve(embedded, grace=1.0)
    first.worker.opened.result(60)
    context = opened.new_context(viewport={"width": 1440, "height": 900})
    reader = Reader(context.new_page(), f"http://127.0.0.1:{first.port}")
    page = reader.visit().start(PROMPT).step(2).page
    tokens = reader.tokens
    page.click("#view-chat")
    ask(reader, "Name a color.")
    first.stop()
    second = serve(embedded, port=first.port, grace=1.0)
    try:
        second.worker.opened.result(60)
        page.reload()
        expect(page.locator("#banner")).to_contain_text("The server has these runs no more: it was started anew")
        page.get_by_role("button", name="open message 2 in the strip").click()
        expect(page.locator(".cell.continuation").first).to_be_visible()
        page.get_by_role("button", name="run A").click()
        expect(page.locator(".cell")).to_have_count(len(tokens))
        assert reader.tokens == tokens
        reader.step()
    finally:
        context.close()
        second.stop()


def test_a_tab_whose_runs_another_took_says_so(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).step(1).page
    page.reload()  # from here on the tab has a key to its runs, and whoever doubles it has it, too
    reader.rest()
    with page.context.expect_page() as double:
        page.evaluate("() => { window.open(location.href); }")
    expect(page.locator("#banner")).to_contain_text("Another tab has taken these runs over. What is on screen is kept")
    expect(double.value.locator(".cell")).to_have_count(8)
    expect(double.value.locator("#model .badge")).to_have_count(0)
    assert len(reader.tokens) == 8


# Records.


# A replay goes on by the clock: the page itself presses the key, and no slow test comes too late.
PAUSE_AT_TEN = """() => new MutationObserver((_, observer) => {
    if (document.querySelectorAll(".cell").length !== 10) return;
    observer.disconnect();
    const strip = document.querySelector("#strip");
    strip.focus();
    strip.dispatchEvent(new KeyboardEvent("keydown", { key: " ", bubbles: true, cancelable: true }));
}).observe(document.querySelector("#strip"), { childList: true, subtree: true })"""


def test_a_record_stays_beside_other_runs_over_a_reload(reader: Reader) -> None:
    page = reader.visit().start(PROMPT).step(1).page
    opened_file(reader, STORED)
    page.select_option("#speed", "easy")
    page.evaluate(PAUSE_AT_TEN)
    page.click("#replay")  # only some of it is shown; the rest is not lost
    expect(page.locator(".cell")).to_have_count(10)
    for _ in range(2):
        page.reload()
        expect(page.locator("#branches button")).to_have_count(2)
        reader.rest()
    assert "a record" in reader.text("#model")
    page.select_option("#speed", "full")
    page.click("#replay")
    expect(page.locator(".cell")).to_have_count(len(STORED["record"]["ids"]))
    page.get_by_role("button", name="run A").click()
    expect(page.locator("#model .badge")).to_have_count(0)
    assert len(reader.tokens) == 8


def test_a_record_too_long_to_keep_is_told_of(reader: Reader) -> None:
    reader.visit()
    opened_file(reader, {**STORED, "record": {**STORED["record"], "more": "x" * 3_000_000}})
    reader.page.reload()
    expect(reader.page.locator("#banner")).to_contain_text("One run was too long for this tab to keep over the reload")
    expect(reader.page.locator("#model .badge")).to_contain_text("a stored run")
    reader.step()
    expect(reader.page.locator("#banner")).to_be_empty()


def test_a_damaged_link_is_told_and_the_page_still_opens(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}/#run=nothing")
    expect(reader.page.locator("#model meter")).to_be_visible()
    expect(reader.page.locator("#banner .error")).to_be_visible()
    expect(reader.page.locator("#model .badge")).to_contain_text("a stored run")


def test_without_a_clipboard_sharing_names_the_other_way(reader: Reader) -> None:
    """A page that comes over plain http from another machine has none."""
    reader.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    reader.visit().page.click("#share")
    expect(reader.page.locator("#banner .error")).to_contain_text("save the run as a file instead")


def test_a_browser_that_keeps_nothing_shows_the_page(reader: Reader) -> None:
    refuse = "{ get() { throw new DOMException('refused', 'SecurityError'); } }"
    for name in ("localStorage", "sessionStorage"):
        reader.page.add_init_script(f"Object.defineProperty(window, '{name}', {refuse})")
    reader.visit().step()
    reader.page.click("#theme")
    expect(reader.page.locator("html")).to_have_attribute("data-theme", re.compile("dark|light"))
    reader.page.reload()
    expect(reader.page.locator("#model .badge")).to_contain_text("a stored run")
