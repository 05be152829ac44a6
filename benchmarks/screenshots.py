"""Pictures of the playground in docs/images, taken in Chromium of the models that ship.

    python benchmarks/screenshots.py             # needs Playwright and Debian's chromium
    python benchmarks/screenshots.py docs/images music

The seeds are given, so the ids are the same wherever this runs; fonts may differ.
"""

import argparse
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from served import Serving

IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Shot:
    """One picture: what is asked for, and how the browser looks.

    Attributes:
        model: that ships.
        fields: values by the id of their field.
        fills: a gap is filled.
        drafts: n-grams guess.
        hovered: the id whose alternatives are shown, counted from 0; none where it is None.
        size: of the window, in CSS pixels.
        dark: the colour scheme.
    """

    model: str
    fields: dict[str, str] = field(default_factory=dict)
    fills: bool = False
    drafts: bool = False
    hovered: int | None = None
    size: tuple[int, int] = (1120, 720)
    dark: bool = False


WOLF = '"Who is there?" said the wolf. "It is I," said the fox. "Who is there?" said the wolf.'
STACK = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items."""
POP = "\n\n    def pop(self):\n        return self.items.pop()\n"
SHOTS = {
    "playground": Shot(
        "tales",
        {"prompt": WOLF, "max_tokens": "110", "temperature": "0.35", "seed": "2"},
        drafts=True,
        hovered=45,
    ),
    "playground-dark": Shot(
        "python",
        {"prompt": STACK, "suffix": POP, "max_tokens": "18", "temperature": "0", "seed": "1"},
        fills=True,
        dark=True,
    ),
    "playground-music": Shot("chorales", {"seed": "2", "max_tokens": "400"}, size=(1120, 860)),
    "playground-phone": Shot(
        "tales",
        {"prompt": "Once upon a time", "max_tokens": "60", "temperature": "0.7", "seed": "7"},
        hovered=20,
        size=(390, 844),
    ),
}  # fmt: skip


def take(browser: Any, address: str, shot: Shot, path: Path) -> None:
    width, height = shot.size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.dark else "light",
        device_scale_factor=1 if width > 500 else 2,
    )
    page.goto(address)
    page.select_option("#model", shot.model)
    if shot.fills:
        page.locator("input[name=mode][value=fill]").check(force=True)
    settings = page.locator("#settings")  # closed on a phone
    settings.evaluate("it => { it.before = it.open; it.open = true }")
    if shot.drafts:
        page.select_option("#speculate", "ngram")
    for name, value in shot.fields.items():
        page.locator(f"#{name}").fill(value)
    settings.evaluate("it => { it.open = it.before }")
    page.click("#go")
    page.locator("#seeded").wait_for(timeout=120_000)
    page.locator("#stop[disabled]").wait_for()
    if shot.hovered is not None:
        page.locator("#ids .id").nth(shot.hovered).hover()
    page.screenshot(path=path)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=IMAGES)
    parser.add_argument("only", nargs="*", help="parts of names; default: all")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    shots = {k: s for k, s in SHOTS.items() if not asked.only or any(o in k for o in asked.only)}
    models = sorted({shot.model for shot in shots.values()})
    named = [word for name in models[1:] for word in ("--model", name)]
    with Serving(models[0], *named) as server, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"))
        for name, shot in shots.items():
            take(browser, server.url, shot, asked.folder / f"{name}.png")


if __name__ == "__main__":
    main()
