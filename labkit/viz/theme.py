"""How every figure of the lab looks: one fixed colour per phase, ink that follows the page, and a
text twin.

Constraints, each held by a test (tests/unit/viz/test_theme.py):
  - every phase colour has a contrast of at least 3:1 on white and on the dark page (WCAG 1.4.11),
    so one palette serves both;
  - phases that follow each other stay apart under simulated deuteranopia, protanopia and
    tritanopia, and carry different
    hatches, so that colour is never the only sign;
  - text and rules are "ink": black on white, near-white on dark, and `currentColor` in the SVG
    inside a page.

    picture = Picture(draw, alt="…", text="…", width_in=8.6)   # draw(theme) -> matplotlib Figure
    picture.save("waterfall.png"); picture.save("waterfall.svg", theme="dark")

A notebook shows the SVG (ink follows JupyterLab's theme); where that is stripped it shows the PNG,
and in a terminal the text. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from labkit.core import outputs, printable
from labkit.core.json_types import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: One colour a phase, never reused for anything else. Families: image blue, process green, device
#: violet, weights orange.
PHASE_COLOURS = {
    "pull": "#0069A8",
    "unpack": "#3D93D6",
    "mount": "#007F8C",
    "restore": "#0A9B72",
    "start": "#4C7A1F",
    "import": "#7FA02B",
    "context": "#7A4FC9",
    "build": "#B57A0C",
    "load": "#C2480F",
    "warmup": "#B06BD6",
    "ready": "#7C7C7C",
    "first_token": "#D6336C",
}
#: A second sign beside the colour, where bars are stacked without a label of their own.
PHASE_HATCHES = {
    "pull": "",
    "unpack": "///",
    "mount": "...",
    "restore": "xx",
    "start": "",
    "import": "\\\\\\",
    "context": "",
    "build": "///",
    "load": "",
    "warmup": "...",
    "ready": "\\\\\\",
    "first_token": "",
}
#: Arms of a comparison, in order; beyond six, colour says nothing and the labels must.
ARM_COLOURS = ("#0069A8", "#C2480F", "#0A9B72", "#7A4FC9", "#B57A0C", "#D6336C")

# ships with matplotlib: the same glyph widths on every host, so labels never begin to overlap
FONT = ("DejaVu Sans",)
BASE_PT = 10.0


@dataclass(frozen=True)
class Theme:
    name: str
    ink: str
    faint: str  # rules, secondary text; at least 4.5:1 on its paper
    paper: str  # "none" in a page

    @property
    def halo(self) -> str:
        return self.paper


LIGHT = Theme("light", ink="#1A1A1A", faint="#5F6368", paper="#FFFFFF")
DARK = Theme("dark", ink="#ECECEC", faint="#A6ABB2", paper="#16181C")
#: Sentinels that `svg()` turns into currentColor; no phase colour comes near them.
PAGE = Theme("page", ink="#010203", faint="#040506", paper="none")
THEMES = {t.name: t for t in (LIGHT, DARK, PAGE)}


def stamp(figure: Figure, theme: Theme, mark: str, y: float) -> None:
    """In a line of its own, boxed: a replayed figure must not pass for a live one, and the stamp
    must not hide a bar. `y`: its middle, as a share of the figure. "" draws nothing."""
    if mark:
        boxed(figure, theme, mark, y, BASE_PT + 1)


def boxed(figure: Figure, theme: Theme, text: str, y: float, size_pt: float) -> None:
    """A word in a box at the left edge, bold. `y`: its middle, as a share of the figure."""
    figure.text(
        0.016,
        y,
        text,
        va="center",
        fontsize=size_pt,
        fontweight="bold",
        bbox={
            "boxstyle": "round,pad=0.3",
            "facecolor": "none",
            "edgecolor": theme.ink,
            "linewidth": 1.2,
        },
    )


def title(figure: Figure, text: str, y: float) -> None:
    """What a figure is called. `y`: its middle, as a share of the figure."""
    figure.text(0.012, y, text, fontsize=BASE_PT + 2, fontweight="bold", va="center")


def axes(figure: Figure, left_in: float, right_in: float, head_in: float, foot_in: float) -> Axes:
    """Axes with these inches free around them."""
    width_in, height_in = figure.get_size_inches()
    width, height = 1 - (left_in + right_in) / width_in, 1 - (head_in + foot_in) / height_in
    return figure.add_axes((left_in / width_in, foot_in / height_in, width, height))


def caption(figure: Figure, theme: Theme, lines: Iterable[str], y: float) -> None:
    """What stands below a figure. `y`: its foot, as a share of the figure."""
    figure.text(
        0.012,
        y,
        "\n".join(lines),
        fontsize=BASE_PT - 2,
        color=theme.faint,
        va="bottom",
        linespacing=1.3,
    )


def style(theme: Theme) -> JsonObject:
    """rcParams of a figure; used in a `matplotlib.rc_context`, never set globally: the learner's
    own plots stay theirs."""
    return {
        "font.family": list(FONT),
        "font.size": BASE_PT,
        "axes.titlesize": BASE_PT + 2,
        "axes.titleweight": "bold",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.faint,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": theme.faint,
        "grid.alpha": 0.3,
        "hatch.linewidth": 0.6,
        "svg.fonttype": "path",
        "path.simplify": True,
    }


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn for any theme. `alt`: one or two sentences; `text`: everything the
    figure says, as a table."""

    draw: Callable[[Theme], Figure]
    alt: str
    text: str
    name: str = "figure"
    dpi: int = 144

    def __post_init__(self) -> None:
        # Both quote records, whose names may hold anything.
        object.__setattr__(self, "alt", printable.line(self.alt))
        object.__setattr__(self, "text", printable.text(self.text))

    def figure(self, theme: str | Theme = "light") -> Figure:
        """The matplotlib Figure itself, unattached to pyplot."""
        import matplotlib

        chosen = THEMES[theme] if isinstance(theme, str) else theme
        with matplotlib.rc_context(cast(Any, style(chosen))):
            return _literal(self.draw(chosen))

    def _rendered(self, theme: Theme, kind: str) -> bytes:
        import matplotlib

        out = io.BytesIO()
        # Of two figures in one page the hidden one may stand first: neither borrows the other's
        # patterns.
        salted = {**style(theme), "svg.hashsalt": f"labkit {self.name} {self.alt}"}
        with matplotlib.rc_context(cast(Any, salted)):
            # No date: the same record gives the same bytes.
            metadata: JsonObject = {"Date": None} if kind == "svg" else {"Description": self.alt}
            _literal(self.draw(theme)).savefig(out, format=kind, dpi=self.dpi, metadata=metadata)
        return out.getvalue()

    def png(self, theme: str = "light") -> bytes:
        return self._rendered(THEMES[theme], "png")

    def svg(self, theme: str = "page") -> str:
        """Standalone with "light" or "dark"; with "page", ink is `currentColor` and the paper is
        the page's."""
        drawn = self._rendered(THEMES[theme], "svg").decode()
        drawn = drawn[drawn.index("<svg") :]
        drawn = drawn.replace(
            "<svg ", f'<svg role="img" aria-label="{escape(self.alt, quote=True)}" ', 1
        )
        if theme == "page":
            drawn = re.sub(PAGE.ink, "currentColor", drawn, flags=re.IGNORECASE)
            # A fill takes one colour only: faint ink is current ink, thinned.
            drawn = re.sub(
                rf"(fill|stroke): {PAGE.faint}",
                r"\1: currentColor; \1-opacity: 0.72",
                drawn,
                flags=re.IGNORECASE,
            )
            drawn = re.sub(PAGE.faint, "currentColor", drawn, flags=re.IGNORECASE)
            drawn = drawn.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
        return drawn

    def save(self, path: str | Path, theme: str = "light") -> Path:
        """By suffix: .png, .svg, or .txt (the text twin). The alt text goes along as PNG
        description or SVG label."""
        target = Path(path)
        outputs.refuse_stranger(
            target,
            _is_figure if target.suffix in (".png", ".svg") else lambda _: False,
            "a figure of the lab",
            "name",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".png":
            target.write_bytes(self.png(theme))
        elif target.suffix == ".svg":
            svg = self.svg(theme)
            target.write_text('<?xml version="1.0" encoding="utf-8"?>\n' + svg, encoding="utf-8")
        elif target.suffix == ".txt":
            target.write_text(self.text + "\n", encoding="utf-8")
        else:
            from labkit.errors import BadInput

            raise BadInput(
                f"no figure format {target.suffix!r}", fix="end the file name in .png, .svg or .txt"
            )
        return target

    def html(self) -> str:
        """For a page: the drawing, and its text twin to unfold."""
        return (
            f'<figure class="labkit-figure" style="margin:0">{self.svg()}<details><summary>The same'
            f" in words</summary><pre>{escape(self.text)}</pre></details></figure>"
        )

    def named(self, name: str) -> Picture:
        return replace(self, name=name)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.text,
        }

    def __repr__(self) -> str:
        return self.text


def _literal(figure: Figure) -> Figure:
    """Every text as it is: a `$` in an arm's name begins no formula, and no control character
    reaches the file."""
    from matplotlib.text import Text

    for one in figure.findobj(Text):
        # ticks of a logarithmic axis get theirs later, as formulas of matplotlib's own
        if shown := one.get_text():
            one.set_text(printable.text(shown))
            one.set_parse_math(False)
    return figure


def _is_figure(head: bytes) -> bool:
    """Drawn by `Picture.save`: a PNG with its description, an SVG with its label."""
    return (head.startswith(b"\x89PNG") and b"Description" in head[:4096]) or (
        b"<svg" in head[:200] and b'role="img" aria-label=' in head[:400]
    )


def blank(width_in: float, height_in: float) -> Figure:
    """A figure outside pyplot: nothing to close, nothing leaks into the learner's session."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure
