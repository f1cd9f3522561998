"""Take the README's picture of a report: its first screen and the drawings below it, light, two pixels for each.

    python docs/picture.py multirun/STUDY docs/report.png

It needs the extra ``dev`` and a Chromium or Chrome; on Debian ``apt-get install chromium``.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
"""Without these a browser looks for updates of itself; the page has no part in that."""
WIDTH, BELOW = 1200, 24
"""Of the picture, and how much is kept below the last drawing, in CSS pixels."""
COLOURS = 256
"""Of the PNG: a page of text and flat marks loses nothing to the eye, and takes a third of the bytes."""


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser to make pages in (playwright's ``Browser``).

    Raises:
        ConfigError: There is none on this machine, or playwright is not installed.

    Example:
        >>> with open_browser() as browser:
        ...     browser.new_page().goto(Path("report.html").resolve().as_uri())
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ConfigError("playwright is not installed; pip install -e '.[dev]' -c constraints.txt") from error
    with sync_playwright() as driver:
        own = driver.chromium.executable_path
        found = own if os.path.exists(own) else next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            raise ConfigError(
                f"no browser was found (looked for {', '.join(NAMES)}); on Debian: apt-get install chromium"
            )
        # Root has no sandbox to put a browser in; anyone else keeps it.
        flags = [*QUIET, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=found, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def take(study: Path, out: Path) -> Path:
    """Write the picture of a study's report.

    Args:
        study: Its folder; it is only read.
        out: The PNG.

    Raises:
        ConfigError: It is no study, or there is no browser.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as place, open_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=2, color_scheme="light")
        page.goto(write_report(study, Path(place) / "report.html").resolve().as_uri())
        page.locator("#curves").scroll_into_view_if_needed()
        page.locator("#pareto .plot").wait_for()
        page.evaluate("scrollTo(0, 0)")
        box = page.locator(".two").bounding_box()
        height = int(box["y"] + box["height"]) + BELOW
        page.set_viewport_size({"width": WIDTH, "height": height})
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    # By the extent of colours, not by how often they occur: a single red word must stay red.
    picture = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(out, optimize=True)
    return out


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/picture.py multirun/STUDY docs/report.png")
    try:
        out = take(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
