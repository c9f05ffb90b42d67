"""A table for a page and for a terminal: the same rows as HTML and as text. No matplotlib here.

    Table(("arm", "median"), (("naive", "8.1 s"),), "cache cold · n = 5")

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows for a page and for a terminal."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()  # longer things to unfold
    notes_title: str = "Notes"

    @property
    def text(self) -> str:
        from labkit.core.stdout import table

        return (
            table(self.rows, self.head)
            + (f"\n{self.caption}" if self.caption else "")
            + (
                "\n" + "\n".join([f"{self.notes_title}:", *(f"- {n}" for n in self.notes)])
                if self.notes
                else ""
            )
        )

    def html(self) -> str:
        head = "".join(
            f'<th scope="col" style="text-align:left">{escape(h)}</th>' for h in self.head
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:left;vertical-align:top">{escape(c)}</td>' for c in row
            )
            + "</tr>"
            for row in self.rows
        )
        foot = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        if self.notes:
            foot += (
                f"<details><summary>{escape(self.notes_title)}</summary><ul>"
                + "".join(f"<li>{escape(n)}</li>" for n in self.notes)
                + "</ul></details>"
            )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text
