"""A page on the user's screen, where there is one.

    show(Path("report/index.html"))     # "" where a browser was asked to; else why not

A browser in the terminal would take it over, so none is started where there is no desktop.
Lesson: notebooks/00_start_here."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path

#: Browsers that run in the terminal (webbrowser.register_standard_browsers).
TEXT_BROWSERS = ("www-browser", "links", "elinks", "lynx", "w3m")


def there(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether this process has a desktop to show something on."""
    return platform == "darwin" or bool(
        environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    )


def show(page: Path) -> str:
    """Open a file in the user's browser. Returns "", or where the file is and why nothing was
    opened."""
    address = page.resolve().as_uri()
    if not there():
        return f"no desktop here to open it on: {address}"
    try:
        browser = webbrowser.get()
        if getattr(browser, "basename", "") in TEXT_BROWSERS:
            return f"the only browser here is one for the terminal: {address}"
        return "" if browser.open(address) else f"no browser opened it: {address}"
    except webbrowser.Error:
        return f"no browser here: {address}"
