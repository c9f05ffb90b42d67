"""A headless Chromium for tests: pages and JupyterLab are looked at as a person's browser shows
them.

    with browser() as driver:
        driver.get(page.as_uri()); assert errors(driver) == []

Needs Debian's chromium and chromium-driver, and selenium. Each one has a profile of its own;
nothing is left."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


@contextmanager
def browser(width: int = 1200, height: int = 1400, dark: bool = False) -> Iterator[Any]:
    from selenium import webdriver

    profile = tempfile.mkdtemp(prefix="labkit-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        *FLAGS,
        f"--window-size={width},{height}",
        f"--user-data-dir={profile}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        if dark:
            driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
            )
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def errors(driver: Any) -> list[str]:
    """Console messages of level SEVERE: failed requests, scripts that threw."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def contrasts(driver: Any, selector: str) -> list[float]:
    """Contrast of the text of these elements with the page below it (WCAG 1.4.3)."""
    found = driver.execute_script(
        "const page = getComputedStyle(document.body).backgroundColor;"
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetHeight)"
        ".map(e => [getComputedStyle(e).color, page])",
        selector,
    )

    def luminance(colour: str) -> float:
        parts = [float(p) / 255 for p in re.findall(r"[\d.]+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ratios = []
    for pair in {tuple(p) for p in found}:
        low, high = sorted(map(luminance, pair))
        ratios.append((high + 0.05) / (low + 0.05))
    return ratios


def requested(driver: Any) -> list[str]:
    """Addresses that the page asked for beside itself."""
    return driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")


@contextmanager
def jupyterlab(folder: Any, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A real JupyterLab serving `folder` on loopback; yields its address. Ended with all its
    kernels."""
    import secrets
    import signal
    import socket
    import subprocess
    import sys
    import time
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    settings = tempfile.mkdtemp(prefix="labkit-jupyter-")
    own = {
        **os.environ,
        **(environment or {}),
        "JUPYTER_CONFIG_DIR": settings,
        "JUPYTER_DATA_DIR": settings,
        "JUPYTER_RUNTIME_DIR": settings,
    }
    # this is a person's JupyterLab, wherever the test runs: in CI the lab would show lines in place
    # of widgets
    own.pop("CI", None)
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ip=127.0.0.1",
            f"--IdentityProvider.token={token}",
            "--expose-app-in-browser",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            f"--notebook-dir={folder}",
        ],
        env=own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api?token={token}", timeout=2
                ).read()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/{{name}}?token={token}&reset"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        shutil.rmtree(settings, ignore_errors=True)


OPEN = (
    "return !!(window.jupyterapp && window.jupyterapp.shell.currentWidget &&"
    " window.jupyterapp.shell.currentWidget.content &&"
    " window.jupyterapp.shell.currentWidget.content.widgets)"
)
CELLS = """const cells = [...window.jupyterapp.shell.currentWidget.content.widgets].filter(c => c.model.type === 'code' && c.model.sharedModel.getSource().trim());
return cells.map(c => [c.model.executionCount, c.promptNode ? c.promptNode.textContent : '', c.outputArea.model.toJSON().some(o => o.output_type === 'error')])"""  # noqa: E501 - a program's own lines


def run_all_cells(driver: Any, address: str, timeout_s: float = 120) -> list[list[Any]]:
    """Open a notebook, wait for its kernel, run all cells as the menu does, wait for the last.
    Returns [count, prompt, failed] a cell."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(address)
    wait = WebDriverWait(driver, timeout_s, poll_frequency=0.3)
    wait.until(lambda d: d.execute_script(OPEN))
    wait.until(
        lambda d: d.execute_script(
            "const s = window.jupyterapp.shell.currentWidget.sessionContext; return s.session &&"
            " s.session.kernel && s.session.kernel.status === 'idle'"
        )
    )
    driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    wait.until(
        lambda d: (
            (cells := d.execute_script(CELLS))
            and (all(c[0] for c in cells) or any(c[2] for c in cells))
        )
    )
    return driver.execute_script(CELLS)
