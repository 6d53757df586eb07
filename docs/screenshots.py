"""Takes the page's pictures into docs/: python docs/screenshots.py (or: make screenshots)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, expect

from byhand import LLM
from tests.browsing import Reader, browser
from tests.serving import serve

DOCS = Path(__file__).parent


def reader(opened: Browser, url: str, width: int, scheme: str) -> Reader:
    """Somebody with a window of this width."""
    height = 960 if width > 600 else 844
    context = opened.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    return Reader(context.new_page(), url).visit()


def take(one: Reader, name: str) -> None:
    """One picture, when nothing moves any more."""
    one.page.wait_for_timeout(300)
    one.page.screenshot(path=DOCS / f"{name}.png")


def pictures(opened: Browser, url: str) -> None:
    """Each view once."""
    take(reader(opened, url, 1440, "light"), "page")
    dark = reader(opened, url, 1440, "dark")
    dark.page.locator(".cell .said").nth(3).hover()
    take(dark, "page-lesson-dark")
    take(reader(opened, url, 390, "light"), "page-narrow")
    tree = reader(opened, url, 1440, "light")
    tree.step()
    tree.press("ArrowLeft", "1")
    tree.page.locator("#token-8").click()
    tree.page.get_by_role("button", name="take ·green").click()
    expect(tree.page.locator("#branches button")).to_have_count(2)
    tree.step(4)
    tree.page.click("#tab-tree")
    tree.page.get_by_role("button", name="compare with A").click()
    take(tree, "page-tree")
    chat = reader(opened, url, 1440, "dark")
    chat.page.click("#view-chat")
    chat.page.fill("#chat-text", "Count from one to five.")
    chat.page.keyboard.press("Enter")
    expect(chat.page.locator("#chat-send")).to_have_text("Send")
    chat.page.click("#template summary")
    take(chat, "page-chat-dark")


if __name__ == "__main__":
    server = serve(LLM())
    server.worker.opened.result(60)
    with browser() as opened:
        pictures(opened, f"http://127.0.0.1:{server.port}")
    server.stop()
