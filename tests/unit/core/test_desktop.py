"""A page is opened where there is a desktop, and never in a browser that takes the terminal."""

from __future__ import annotations

import webbrowser
from types import SimpleNamespace

import pytest

from labkit.core import desktop


@pytest.fixture
def opened(monkeypatch):
    seen: list[str] = []
    browser = SimpleNamespace(basename="firefox", open=lambda address: not seen.append(address))
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    monkeypatch.setattr(desktop, "there", lambda: True)
    return seen, browser


def test_a_desktop_shows_the_page(opened, tmp_path):
    assert desktop.show(tmp_path / "index.html") == ""
    assert opened[0] == [(tmp_path / "index.html").as_uri()]


def test_without_a_desktop_its_address_is_said(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(desktop, "there", lambda: False)
    assert "index.html" in desktop.show(tmp_path / "index.html") and not opened[0]


def test_a_text_browser_is_never_started(opened, tmp_path):
    opened[1].basename = "w3m"
    assert "terminal" in desktop.show(tmp_path / "index.html") and not opened[0]


@pytest.mark.parametrize(
    "environment, platform, there",
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "darwin", True),
    ],
)
def test_a_desktop_is_a_display(environment, platform, there):
    assert desktop.there(environment, platform) is there
