"""A real Chromium for tests of the page, and somebody who sits before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import chromium
from tests.serving import Running

SECONDS = 15.0

# Two frames in a row in which nothing is under way: what was asked for is there, and it is drawn.
REST = """async (most) => {
    const isUnderWay = () => document.body.dataset.busy !== 'false';
    const isBusy = () => isUnderWay() || document.getElementById('run')?.textContent !== '▶ Run';
    const start = performance.now();
    for (let still = 0; still < 2; still = isBusy() ? 0 : still + 1) {
        if (performance.now() - start > most) throw new Error('the page does not come to rest');
        await new Promise(requestAnimationFrame);
    }
}"""

expect.set_options(timeout=SECONDS * 1000)


@contextmanager
def browser() -> Iterator[Browser]:
    """The browser that is here, closed in the end; else a plain word on what is missing."""
    found = chromium.find()
    if found is None:
        pytest.fail(chromium.MISSING, pytrace=False)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found)
        yield opened
        opened.close()


class Reader:
    """Somebody who sits before the page: what they do, and what they see."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)

    def visit(self, path: str = "/") -> Reader:
        """Open the page, and wait until it has both its stored run and its model."""
        self.page.goto(self.url + path)
        self.rest()
        expect(self.page.locator("#model meter")).to_be_visible()
        expect(self.page.locator("#banner")).to_be_empty()
        return self

    def start(self, prompt: str) -> Reader:
        """Type a prompt and press Enter."""
        self.page.keyboard.press("/")
        self.page.fill("#prompt", prompt)
        self.page.keyboard.press("Enter")
        self.rest()
        expect(self.page.locator("#model .badge")).to_have_count(0)
        expect(self.page.locator("#next .candidate").first).to_be_visible()
        return self

    def greedy(self) -> Reader:
        """From now on the best token is taken."""
        self.page.click("#greedy")
        expect(self.page.locator(".setting output").first).to_have_text("0")
        return self

    def press(self, *keys: str) -> Reader:
        """Press keys, each when the page has come to rest after the one before."""
        for key in keys:
            self.page.keyboard.press(key)
            self.rest()
        return self

    def rest(self) -> None:
        """Wait until what was asked for is there: nothing is pending, and the picture is drawn."""
        self.page.evaluate(REST, SECONDS * 1000)

    def step(self, count: int = 1) -> Reader:
        """Press → this often, and see that many tokens come."""
        self.rest()
        for _ in range(count):
            before = self.page.locator(".cell").count()
            self.press("ArrowRight")
            expect(self.page.locator(".cell")).to_have_count(before + 1)
        return self

    @property
    def tokens(self) -> list[str]:
        """The strip, as it is read."""
        return self.page.locator(".cell .piece").all_inner_texts()

    @property
    def ids(self) -> list[int]:
        """The ids under the tokens, which are there when they are asked for or not."""
        return [int(text or 0) for text in self.page.locator(".cell .id").all_text_contents()]

    def said(self, count: int) -> list[str]:
        """The predictions under the first tokens."""
        said = self.page.locator(".cell .said")
        expect(said.first).not_to_be_empty()  # readings come after the tokens
        return said.all_text_contents()[:count]

    def text(self, selector: str) -> str:
        """What stands there, white space made one."""
        return " ".join(self.page.locator(selector).inner_text().split())

    def candidate(self, index: int) -> Any:
        """One row of the next token's panel."""
        return self.page.locator("#next button.candidate").nth(index)


@contextmanager
def reader_of(server: Running, opened: Browser, **options: Any) -> Iterator[Reader]:
    """Somebody with a window of their own, in which nothing may go wrong."""
    context = opened.new_context(**options)
    one = Reader(context.new_page(), f"http://127.0.0.1:{server.port}")
    yield one
    context.close()
    assert one.faults == []


def visible(text: str) -> str:
    """A token's text as the page shows it."""
    return text.replace(" ", "·").replace("\n", "⏎")
