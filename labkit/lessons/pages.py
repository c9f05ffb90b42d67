"""Pages: executed notebooks and reports as static HTML that needs nothing from outside – no script,
no font, no style sheet.

    page("Title", body)                  a whole document; follows the reader's light or dark scheme
    notebook_body(path)                  an executed notebook as HTML: text, code, outputs, figures
        with their text twins
    notebooks_page(results, out)         what `labkit notebooks run` leaves: one row a notebook,
        seconds per cell

Widget views are left out (they are empty without a kernel); every widget of the lab has a text twin
that stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from labkit.core import outputs, printable, secrets

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #5f6368; --paper: #fff; --panel:
  #f4f5f7; --rule: #d5d8dd; --link: #0b5cad; --bad: #b3261e; --good: #1b6e3c }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --faint: #a6abb2; --paper: #16181c;
  --panel: #202329; --rule: #3a3f47; --link: #7db7f0; --bad: #ff8a80; --good: #7fd39a } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
a { color: var(--link) }
h1 { line-height: 1.2 }
h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--rule) }
pre { background: var(--panel); padding: .7rem .9rem; overflow-x: auto; border-radius: 4px;
  font-size: .86rem; line-height: 1.4 }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace }
p code, li code, td code { background: var(--panel); padding: 0 .25em; border-radius: 3px }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { overflow-wrap: break-word; text-align: left; padding: .3rem .8rem .3rem 0; border-bottom:
  1px solid var(--rule); vertical-align: top }
.faint { color: var(--faint) }
.bad { color: var(--bad); font-weight: 600 }
.good { color: var(--good); font-weight: 600 }
.code { border-left: 3px solid var(--rule) }
.out pre { white-space: pre-wrap; background: none; border: 1px solid var(--rule) }
figure { margin: 1rem 0 }
img, svg { max-width: 100%; height: auto }
details > summary { cursor: pointer; padding: .3rem 0 }
details.notebook { border: 1px solid var(--rule); border-radius: 6px; padding: .3rem 1rem; margin:
  .8rem 0 }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
"""


def page(title: str, body: str, foot: str = "") -> str:
    return secrets.mask_page(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="generator" content="labkit">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{CSS}{_code_css()}</style></head>\n<body>{body}\n"
        f'<footer class="faint"><p>{foot}</p></footer></body></html>\n'
    )


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


def _code_css() -> str:
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="xcode").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    rules = "\n".join(
        line
        for line in light.split("\n")
        if "background" not in line and not line.startswith("pre")
    )
    night = "\n".join(
        line for line in dark.split("\n") if "background" not in line and not line.startswith("pre")
    )
    return (
        f"{rules}\n@media (prefers-color-scheme: dark) {{ {night} }}\n.code .err {{ border: none }}"
    )


def notebook_body(path: str | Path, links: str = ".html") -> str:
    """The cells of an executed notebook. Links to other notebooks get the suffix `links`; "" leaves
    only their text."""
    from labkit.lessons import canonical

    parts = []
    for cell in canonical.load(Path(path))["cells"]:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            parts.append(_markdown(source, links))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_highlight(source))
            parts += [
                f'<div class="out">{html}</div>'
                for o in _merged(cell.get("outputs", []))
                if (html := _output(o))
            ]
    return "\n".join(parts)


def _markdown(text: str, links: str) -> str:
    import mistune

    html = str(mistune.create_markdown(plugins=["table", "strikethrough"])(text))
    if links:
        return re.sub(r'href="([\w./-]+)\.ipynb(#[\w-]*)?"', rf'href="\1{links}\2"', html)
    return re.sub(r'<a href="[\w./-]+\.ipynb(?:#[\w-]*)?">(.*?)</a>', r"<em>\1</em>", html)


def _highlight(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    formatter = HtmlFormatter(nowrap=False, cssclass="code")
    return f'<div class="code">{highlight(source, PythonLexer(), formatter)}</div>'


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _merged(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines that were flushed one by one come as one output each; they are one text."""
    made: list[dict[str, Any]] = []
    for o in outputs:
        if made and o.get("output_type") == "stream" and made[-1].get("output_type") == "stream":
            made[-1] = {**made[-1], "text": _text(made[-1]["text"]) + _text(o["text"])}
        else:
            made.append(o)
    return made


def _output(output: dict[str, Any]) -> str:
    from nbconvert.filters.ansi import ansi2html, strip_ansi

    kind = output.get("output_type")
    if kind == "stream":
        text = printable.text(strip_ansi(_text(output["text"])).rstrip())
        return f"<pre>{escape(text)}</pre>" if text else ""
    if kind == "error":
        return f'<pre class="bad">{ansi2html(chr(10).join(output.get("traceback", [])))}</pre>'
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data:
        return ""
    if "text/html" in data:
        return re.sub(r"<script\b.*?</script>", "", _text(data["text/html"]), flags=re.DOTALL)
    if "text/markdown" in data:
        return _markdown(_text(data["text/markdown"]), "")
    if "image/png" in data:
        return (
            f'<img alt="{escape(_text(data.get("text/plain", "")), quote=True)}"'
            f' src="data:image/png;base64,{_text(data["image/png"]).strip()}">'
        )
    return (
        f"<pre>{escape(printable.text(_text(data['text/plain'])))}</pre>"
        if "text/plain" in data
        else ""
    )


def outcome_html(outcome: str) -> str:
    return f'<span class="{"good" if outcome == "ok" else "bad"}">{escape(outcome)}</span>'


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    heads = "".join(f"<th scope=col>{escape(h)}</th>" for h in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def notebooks_page(results: Sequence[Any], out: Path, slower: Sequence[str] = ()) -> Path:
    """Write out/index.html and one page a notebook."""
    from labkit.core.units import show_s

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for r in results:
        if r.executed:
            write(out / f"{r.name}.html", page(r.name, notebook_body(r.executed)))
        name = f'<a href="{r.name}.html">{escape(r.name)}</a>' if r.executed else escape(r.name)
        cells = ", ".join("–" if s is None else f"{s:.1f}" for s in r.cells)
        rows.append(
            [
                name,
                outcome_html(r.outcome),
                show_s(r.seconds),
                f"<details><summary>{escape(r.slowest) or 'none'}</summary>{cells}</details>",
                f"<pre>{escape(r.error)}</pre>" if r.error else "",
                str(r.ended) if r.ended else "",
            ]
        )
    body = "<h1>Notebooks, run headless</h1>" + table_html(
        ["notebook", "outcome", "took", "seconds per code cell", "error", "processes ended"], rows
    )
    if slower:
        body += (
            "<h2>Slower than the baseline</h2><ul>"
            + "".join(f'<li class="bad">{escape(s)}</li>' for s in slower)
            + "</ul>"
        )
    return write(out / "index.html", page("Notebooks, run headless", body))
