"""Takes the page's pictures into docs/: python docs/screenshots.py (or: make screenshots)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, expect

from byhand import LLM
from tests.browsing import Reader, browser
from tests.serving import Running, serve

DOCS = Path(__file__).parent
PROMPT = "A list of colors: red"


def reader(opened: Browser, url: str, width: int, scheme: str) -> Reader:
    """Somebody with a window of this width."""
    height = 960 if width > 600 else 844
    context = opened.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    return Reader(context.new_page(), url).visit()


def take(one: Reader, name: str, *, is_low: bool = False) -> None:
    """One picture, when nothing moves any more; `is_low`: of what stands at the page's end."""
    if is_low:
        one.page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    one.page.wait_for_timeout(300)
    one.page.screenshot(path=DOCS / f"{name}.png")
    one.page.context.close()


def first_sight(opened: Browser, url: str) -> None:
    """What stands there when the page is opened, and the lesson's gesture."""
    take(reader(opened, url, 1440, "light"), "page")
    dark = reader(opened, url, 1440, "dark")
    dark.page.click("#ids")
    dark.page.locator(".cell .said").nth(3).hover()
    take(dark, "page-lesson-dark")
    take(reader(opened, url, 390, "light"), "page-narrow")


def panels(opened: Browser, url: str) -> None:
    """A run of one's own, and what is told of it."""
    tree = reader(opened, url, 1440, "light")
    tree.step()
    tree.press("ArrowLeft", "1")
    tree.page.locator("#token-8").click()
    tree.page.get_by_role("button", name="take ·green").click()
    expect(tree.page.locator("#branches button")).to_have_count(2)
    tree.step(4)
    tree.page.click("#tab-tree")
    tree.page.get_by_role("button", name="compare with A").click()
    take(tree, "page-tree", is_low=True)
    cost = reader(opened, url, 1440, "dark")
    cost.start("Once upon a time, there was a little dog who")
    cost.press(*["ArrowRight"] * 40)
    cost.page.click("#tab-cost")
    expect(cost.page.locator("#limit")).to_contain_text("of what this machine’s memory allows")
    take(cost, "page-cost-dark", is_low=True)
    ending = reader(opened, url, 1440, "light")
    ending.start(PROMPT).greedy().press(" ")
    ending.page.click("#tab-ending")
    take(ending, "page-ending")
    wire = reader(opened, url, 1440, "dark")
    wire.start(PROMPT).step(3)
    wire.page.click("#tab-wire")
    take(wire, "page-wire-dark", is_low=True)


def chat(opened: Browser, url: str, width: int, scheme: str, name: str) -> None:
    """A question, its answer, and the prompt that the model read."""
    one = reader(opened, url, width, scheme)
    one.page.click("#view-chat")
    one.page.fill("#chat-text", "Count from one to five.")
    one.page.keyboard.press("Enter")
    expect(one.page.locator("#chat-send")).to_have_text("Send")
    one.page.click("#template summary")
    expect(one.page.locator("#template pre")).to_contain_text("<|assistant|>")
    take(one, name)


def server_gone(opened: Browser, server: Running, url: str) -> None:
    """The last picture: what stays when the server goes."""
    one = reader(opened, url, 390, "dark")
    one.start(PROMPT).step(3)
    server.stop()
    expect(one.page.locator("#banner")).to_contain_text("The server does not answer")
    take(one, "page-error-narrow-dark")


if __name__ == "__main__":
    server = serve(LLM())
    server.worker.opened.result(60)
    with browser() as opened:
        url = f"http://127.0.0.1:{server.port}"
        first_sight(opened, url)
        panels(opened, url)
        chat(opened, url, 1440, "dark", "page-chat-dark")
        chat(opened, url, 390, "light", "page-chat-narrow")
        server_gone(opened, server, url)
