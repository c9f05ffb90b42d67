"""Pages: executed notebooks and reports as static HTML that needs nothing from outside – no script,
no font, no style sheet. Their markup is in `templates/`; Jinja2 escapes what is put into it.

    page("Title", body)                  a whole document; follows the reader's light or dark scheme
    notebook_body(path)                  an executed notebook as HTML: text, code, outputs, figures
        with their text twins
    notebooks_page(results, out)         what `labkit notebooks run` leaves: one row a notebook,
        seconds per cell

Widget views are left out (they are empty without a kernel); every widget of the lab has a text twin
that stays."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core import outputs, secrets
from labkit.core.units import show_s

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from labkit.errors import LabError
    from labkit.lessons.execute import Result


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(disabled_extensions=("sh.j2",), default=True),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(show_s=show_s, code_spans=_code_spans)
    environment.globals["code_css"] = _code_css
    return environment


def render(template: str, **values: object) -> str:
    """A template of `templates/`, filled; but for shell scripts, every value is escaped unless the
    template says that it is HTML."""
    return _templates().get_template(template).render(values)


def document(template: str, title: str, **values: object) -> str:
    """A whole page of a template that extends page.html.j2, without the secrets of this process."""
    return secrets.mask_page(render(template, title=title, **values))


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    return document("page.html.j2", title, body=body)


def refuse_strangers(paths: Iterable[Path]) -> None:
    """Raises BadInput where a page would take the place of a file that is none of the lab's. Asked
    before anything runs."""
    for path in paths:
        outputs.refuse_stranger(path, _is_page, "a page of the lab")


def _is_page(head: bytes) -> bool:
    # The second: as pages began before they named their generator.
    return b'<meta name="generator" content="labkit">' in head[:400] or (
        head.startswith(b"<!doctype html>")
        and b'<link rel="icon" href="data:,"><title>' in head[:400]
    )


def write(path: Path, text: str) -> Path:
    """One page, in place of nothing or of an older one."""
    refuse_strangers([path])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _code_spans(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@functools.cache
def _code_css() -> str:
    """Colours of highlighted code, by the page's scheme."""
    from pygments.formatters import HtmlFormatter

    light, dark = (
        "\n".join(
            line
            for line in HtmlFormatter(style=style).get_style_defs(".code").split("\n")
            if "background" not in line and not line.startswith("pre")
        )
        for style in ("xcode", "github-dark")
    )
    return (
        f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n.code .err {{ border: none }}"
    )


def notebook_body(path: str | Path, links: str = ".html") -> str:
    """The cells of an executed notebook. Links to other notebooks get the suffix `links`; "" leaves
    only their text. Raises BadInput for what is no notebook."""
    from labkit.lessons import notebook_html

    return notebook_html.body(Path(path), links)


def notebooks_page(
    results: Sequence[Result],
    out: Path,
    slower: Sequence[str] = (),
    not_comparable: LabError | None = None,
) -> Path:
    """Write out/index.html and one page a notebook."""
    for result in results:
        if result.executed:
            write(out / f"{result.name}.html", page(result.name, notebook_body(result.executed)))
    index = document(
        "notebooks.html.j2",
        "Notebooks, run headless",
        results=results,
        slower=slower,
        not_comparable=not_comparable,
    )
    return write(out / "index.html", index)
