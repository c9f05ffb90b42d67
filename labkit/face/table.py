"""A table for a page and for a terminal: the same rows as HTML and as text. No matplotlib here.

    Table(("arm", "median"), (("naive", "8.1 s"),), "cache cold · n = 5")

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows for a page and for a terminal."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def text(self) -> str:
        from labkit.cli.output import table

        return table(self.rows, self.head) + (f"\n{self.caption}" if self.caption else "")

    def html(self) -> str:
        head = "".join(f'<th scope="col" style="text-align:left">{escape(h)}</th>' for h in self.head)
        body = "".join("<tr>" + "".join(f'<td style="text-align:left;vertical-align:top">{escape(c)}</td>' for c in row) + "</tr>" for row in self.rows)
        foot = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text
