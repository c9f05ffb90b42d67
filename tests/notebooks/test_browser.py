"""Pages and notebooks in a real browser: no console error, nothing fetched from outside, ink that
follows the page."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from labkit.core import records
from labkit.lessons import gallery, pages, parameters, report
from labkit.stack import replay
from labkit.technique import LAYERS

pytestmark = pytest.mark.needs("chromium", "package:selenium")

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
#: In one step: a widget that draws itself anew between looking for it and reading it would be a
#: stale element.
STATUS = (
    "const line = document.querySelector('.jp-OutputArea [role=status]'); return line ?"
    " line.innerText : ''"
)
INK = "return getComputedStyle(document.querySelector('figure svg')).color"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A report page, an executed notebook's page and a gallery, of fixture records only."""
    out = tmp_path_factory.mktemp("pages")
    patch = pytest.MonkeyPatch()
    patch.setenv("LABKIT_HOME", str(out / "home"))
    recorded = out / "recorded" / "fixture-host"
    recorded.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "fixtures" / "fixture_arms.json", recorded / "arms.json")
    (recorded / "torn.json").write_text("{")
    patch.setenv(replay.ENV, str(recorded.parent))
    (out / "study").mkdir()
    shutil.copy(ROOT / "data" / "fixtures" / "fixture_study.json", out / "study" / "ladder.json")
    record = str(ROOT / "data" / "fixtures" / "fixture_naive.json")
    patch.setattr(parameters, "parameters_for", lambda *_: {"record": record})
    done = report.report(
        out / "report",
        [FIXTURES / "figures_and_progress.ipynb"],
        report.Options(study=out / "study", records=[recorded / "arms.json"], notebook_preset=""),
        say=lambda _: None,
    )
    assert done.failed == (), done.failed
    built = gallery.build(out / "site", out / "report" / "notebooks")
    assert (built.notebooks, built.runs, len(built.skipped)) == (1, 1, 1)
    patch.undo()
    return out


@pytest.fixture(scope="module")
def light():
    from tests.notebooks.browser import browser

    with browser() as driver:
        yield driver


def _pages(made: Path) -> list[Path]:
    return [
        made / "report" / "index.html",
        made / "report" / "notebooks" / "figures_and_progress.html",
        made / "report" / "notebooks" / "index.html",
        made / "site" / "index.html",
        made / "site" / "figures_and_progress.html",
        made / "site" / "recorded" / "fixture-host" / "arms.html",
    ]


def test_pages_open_without_a_console_error_and_fetch_nothing(made, light):
    from tests.notebooks.browser import errors, requested

    for page in _pages(made):
        light.get(page.as_uri())
        assert (errors(light), requested(light)) == ([], []), page
        assert light.execute_script("return document.querySelectorAll('h1').length") == 1, page


def test_links_of_every_page_lead_to_a_file(made, light):
    for page in _pages(made):
        light.get(page.as_uri())
        for target in light.execute_script(
            "return [...document.querySelectorAll('a[href]')].map(a => a.href)"
        ):
            if target.startswith("file:"):
                assert Path(target.removeprefix("file://").partition("#")[0]).exists(), (
                    page,
                    target,
                )


def test_figures_have_a_name_and_a_twin_in_words(made, light):
    light.get((made / "report" / "index.html").as_uri())
    names = light.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getAttribute('aria-label'))"
    )
    assert len(names) >= 6 and all(len(name) > 20 for name in names)
    assert light.execute_script(
        "return [...document.querySelectorAll('figure')].every(f => f.querySelector('details"
        " pre').textContent.length > 50)"
    )


def test_headings_of_the_report_are_in_order_and_every_picture_has_a_name(made, light):
    light.get((made / "report" / "index.html").as_uri())
    levels = light.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert light.execute_script(
        "return [...document.querySelectorAll('img')].every(i => i.alt) &&"
        " [...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))"
    )


def test_the_first_screen_of_the_report_answers(made, light):
    light.set_window_size(1280, 800)
    light.get((made / "report" / "index.html").as_uri())
    seen = light.execute_script(
        "return ['h1', '.wide svg', '#claims'].map(s => document.querySelector(s)"
        ".getBoundingClientRect()).map(r => r.top >= 0 && r.top < innerHeight && r.height > 0)"
    )
    assert seen == [True] * 3
    assert "naive" in light.execute_script("return document.querySelector('h1').innerText")


@pytest.mark.parametrize("width, shown", [(390, ".narrow"), (1280, ".wide")])
def test_the_ladder_is_drawn_for_the_width_of_the_window(made, light, width, shown):
    light.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    light.get((made / "report" / "index.html").as_uri())
    visible = light.execute_script(
        "return ['.narrow', '.wide'].filter(s => document.querySelector(s).offsetHeight > 0)"
    )
    light.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert visible == [shown]


def test_text_of_the_report_has_contrast_in_both_schemes(made, light):
    from tests.notebooks.browser import contrasts

    for scheme in ("light", "dark"):
        light.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        light.get((made / "report" / "index.html").as_uri())
        assert min(contrasts(light, "h1, p, td, th, li, summary, .faint, .good")) >= 4.5, scheme


def test_no_page_is_wider_than_its_window_on_a_phone(made, light):
    light.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    for page in _pages(made):
        light.get(page.as_uri())
        assert light.execute_script("return document.documentElement.scrollWidth") <= 391, page
    light.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ink_is_dark_on_a_light_page_and_light_on_a_dark_one(made, light):
    page = (made / "report" / "index.html").as_uri()
    seen = {}
    for scheme in ("light", "dark"):
        light.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        light.get(page)
        seen[scheme] = int(light.execute_script(INK).split("(")[1].split(",")[0])
    assert seen["light"] < 60 and seen["dark"] > 200


def test_widgets_leave_their_lines_in_an_exported_page(made):
    text = (made / "report" / "index.html").read_text()
    assert "block 5/5" in text and "widget-view" not in text and "<script" not in text


def test_a_page_never_names_an_outside_address():
    text = pages.page("x", "<p>y</p>")
    assert "http" not in text


def test_jupyterlab_runs_a_notebook_and_its_figures_follow_the_theme(tmp_path, light):
    from tests.notebooks.browser import jupyterlab, run_all_cells

    work = tmp_path / "work"
    work.mkdir()
    text = (FIXTURES / "figures_and_progress.ipynb").read_text()
    (work / "figures.ipynb").write_text(text.replace("../../../data", str(ROOT / "data")))
    with jupyterlab(work, {"LABKIT_HOME": str(tmp_path / "home")}) as address:
        cells = run_all_cells(light, address.format(name="figures.ipynb"))
        assert [c[2] for c in cells] == [False] * 5
        assert (
            light.execute_script(
                "return document.querySelectorAll('.jp-OutputArea figure svg').length"
            )
            >= 1
        )
        assert (
            light.execute_script(
                "return document.querySelectorAll('.jp-OutputArea .jupyter-widgets').length"
            )
            >= 1
        )
        assert "block 5/5" in light.execute_script(
            "return document.querySelector('.jp-Notebook').innerText"
        )
        shades = []
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            light.execute_async_script(
                "const done = arguments[1];"
                " window.jupyterapp.commands.execute('apputils:change-theme', {theme:"
                " arguments[0]}).then(() => setTimeout(done, 1500))",
                theme,
            )
            shades.append(int(light.execute_script(INK).split("(")[1].split(",")[0]))
        assert shades[0] < 80 < 180 < shades[1], shades


def test_the_stack_bench_works_by_keyboard_alone_and_its_result_stays(tmp_path, light):
    import json
    from dataclasses import asdict

    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.notebooks.browser import jupyterlab, run_all_cells

    run = json.loads((ROOT / "data" / "fixtures" / "fixture_naive.json").read_text())
    naive = {"image": "full-pull", "process": "runc", "weights": "pickle"}
    run["experiment"]["arms"] = [
        {
            "name": "naive",
            "stack": {**naive, "weights": "safetensors"},
            "scenario": "fresh-node",
            "link": "1gbit",
        }
    ]
    record = tmp_path / "run.json"
    record.write_text(json.dumps(run))
    assert asdict(records.read(record))["trials"]
    work = tmp_path / "work"
    work.mkdir()
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": (
            "from labkit.core import records\nfrom labkit.viz.stack_bench import StackBench\n"
            f"bench = StackBench(recorded=records.read({str(record)!r}))\nbench"
        ),
    }
    (work / "bench.ipynb").write_text(
        json.dumps(
            {
                "cells": [cell],
                "nbformat": 4,
                "nbformat_minor": 5,
                "metadata": {
                    "kernelspec": {
                        "name": "python3",
                        "display_name": "Python 3",
                        "language": "python",
                    }
                },
            }
        )
    )
    with jupyterlab(work, {"LABKIT_HOME": str(tmp_path / "home")}) as address:
        assert [c[2] for c in run_all_cells(light, address.format(name="bench.ipynb"))] == [False]
        wait = WebDriverWait(light, 60, poll_frequency=0.2)
        menus = wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, ".jp-OutputArea select"))
        assert len(menus) == len(LAYERS)
        menus[LAYERS.index("weights")].send_keys("safetensors")
        wait.until(lambda d: "weights: safetensors" in d.execute_script(STATUS))
        number = light.find_element(By.CSS_SELECTOR, ".jp-OutputArea input[type=number]")
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys("12", Keys.TAB)
        assert light.switch_to.active_element.tag_name == "button"
        light.switch_to.active_element.send_keys(Keys.SPACE)
        wait.until(lambda d: "guessed 12.0 s" in d.execute_script(STATUS))
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, ".jp-OutputArea figure svg"))
        light.save_screenshot(str(tmp_path / "bench.png"))


def test_the_planner_works_by_keyboard_alone_and_its_forecast_stays_as_a_figure(tmp_path, light):
    import json
    import sys

    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.notebooks.browser import jupyterlab, run_all_cells

    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    try:
        from tests.support.decide_runs import three
    finally:
        sys.path.pop(0)
    paths = [str(records.write(run, tmp_path / f"{run.id}.json")) for run in three(noise=0.02)]
    work = tmp_path / "work"
    work.mkdir()
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": (
            "from labkit.core import records\nfrom labkit.viz.planner import PlanBench\nbench ="
            f" PlanBench([records.read(p) for p in {paths!r}], image_gb=1.0, model_gb=2.0)\nbench"
        ),
    }
    (work / "plan.ipynb").write_text(
        json.dumps(
            {
                "cells": [cell],
                "nbformat": 4,
                "nbformat_minor": 5,
                "metadata": {
                    "kernelspec": {
                        "name": "python3",
                        "display_name": "Python 3",
                        "language": "python",
                    }
                },
            }
        )
    )
    with jupyterlab(work, {"LABKIT_HOME": str(tmp_path / "home")}) as address:
        assert [c[2] for c in run_all_cells(light, address.format(name="plan.ipynb"))] == [False]
        wait = WebDriverWait(light, 60, poll_frequency=0.2)
        fields = wait.until(
            lambda d: d.find_elements(By.CSS_SELECTOR, ".jp-OutputArea input[type=text]")
        )
        assert len(fields) == 7 and [f.get_attribute("value") for f in fields[:3]] == ["1", "2", ""]
        fields[1].send_keys(Keys.CONTROL, "a")
        # over link, disk, requests and price to the guess
        fields[1].send_keys("16", *[Keys.TAB] * 5)
        light.switch_to.active_element.send_keys("200", Keys.TAB)
        assert light.switch_to.active_element.tag_name == "button"
        light.switch_to.active_element.send_keys(Keys.SPACE)
        wait.until(
            lambda d: (
                "guessed 3 min 20 s" in d.execute_script(STATUS)
                and "predicted" in d.execute_script(STATUS)
            )
        )
        figure = wait.until(
            lambda d: d.find_elements(By.CSS_SELECTOR, ".jp-OutputArea figure svg")
        )[0]
        assert "Predicted cold start" in figure.get_attribute("aria-label")
        assert "model 16 GB" in light.execute_script(
            "return document.querySelector('.jp-Notebook').innerText"
        )
        light.save_screenshot(str(tmp_path / "plan.png"))
