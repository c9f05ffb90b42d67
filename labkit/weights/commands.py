"""`labkit model convert` and `labkit model inspect`: hooks that labkit.cli.model wires in.

    labkit model inspect models/small/model.safetensors
    labkit model convert models/small --to gguf:Q8_0 models/small-q8

Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.stdout import add_json, columns, last_line, say, table
from labkit.core.units import show_bytes, show_s
from labkit.errors import BadInput
from labkit.formats.layout import Layout


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DIR", help="model directory")
    parser.add_argument("target", metavar="OUT", help="new model directory")
    parser.add_argument(
        "--to",
        required=True,
        help="pickle, safetensors, tensorizer, gguf or gguf:TYPE (F16, BF16, F32, Q8_0, Q4_0, …)",
    )
    add_json(parser)


def convert(args: argparse.Namespace) -> int:
    from labkit.weights.convert import convert as run

    facts = run(args.source, args.target, args.to)
    say(
        f"{args.target}: {show_bytes(facts['size_bytes'])} of {facts['format']} in"
        f" {show_s(facts['convert_s'])}"
    )
    for difference in facts.get("cut_otherwise", ()):
        say(f"other tokens: {difference}")
    last_line(
        {
            "command": "model convert",
            "source": str(args.source),
            "target": str(args.target),
            **facts,
        }
    )
    return 0


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="a .safetensors, .gguf or pickle file, or a model directory"
    )
    parser.add_argument("--all", action="store_true", help="every tensor (default: the first 20)")
    add_json(parser)


def inspect(args: argparse.Namespace) -> int:
    """Exit code 1 if a pickle would do more than rebuild tensors."""
    layouts, others = _layouts(Path(args.file).expanduser())
    for layout in layouts if not args.json else []:
        say(describe(layout, None if args.all else 20, min(columns() or 76, 76)))
    for name, reason in others.items() if not args.json else ():
        say(f"{name}: no checkpoint ({reason})")
    last_line(
        {
            "command": "model inspect",
            "files": [_as_doc(layout, args.all) for layout in layouts],
            "no_checkpoint": others,
        }
    )
    return 1 if any(layout.format == "pickle" and layout.findings for layout in layouts) else 0


def _layouts(path: Path) -> tuple[list[Layout], dict[str, str]]:
    """Of a file; of a directory those that can be read, and by name why others are none. Raises
    BadInput for a file, a directory without any, and weights that a loader would read."""
    from labkit.formats import weight_files
    from labkit.formats.read import read_layout

    if not path.is_dir():
        return [read_layout(path)], {}
    loaded = {
        name for form in weight_files.formats(path) for name in weight_files.local(path, form).names
    }
    layouts: list[Layout] = []
    others: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.name not in loaded and not weight_files.holds_weights(file):
            continue
        try:
            layouts.append(read_layout(file))
        except BadInput as error:
            if file.name in loaded and not file.name.endswith(".tensors"):
                raise
            others[file.name] = error.what
    if not layouts and not others:
        weight_files.local(path)  # its words for what is there instead
    return layouts, others


def _as_doc(layout: Layout, every: bool) -> JsonObject:
    doc = layout._asdict() | {"tensors": [t._asdict() for t in layout.tensors]}
    doc["tensor_count"] = len(layout.tensors)
    doc["metadata"] = {
        k: v if isinstance(v, (str, int, float, bool, dict, list)) else str(v)
        for k, v in list(layout.metadata.items())[:200]
    }
    if not every:
        doc["tensors"] = doc["tensors"][:20]
    return doc


def describe(layout: Layout, limit: int | None = 20, width: int = 76) -> str:
    """Header, a picture of the layout, the tensors, the findings."""
    lines = [
        (
            f"{layout.path}: {layout.format}, {show_bytes(layout.size_bytes)},"
            f" {len(layout.tensors)} tensors, {layout.header_bytes} bytes of header, tensors"
            f" aligned to {layout.alignment} B"
        ),
        picture(layout, width - 4),
    ]
    lines += [f"  {key} = {str(value)[:100]}" for key, value in list(layout.metadata.items())[:30]]
    shown = layout.tensors[:limit]
    if shown:
        lines.append(
            table(
                [
                    [
                        t.offset,
                        show_bytes(t.size_bytes),
                        t.dtype,
                        "×".join(map(str, t.shape)),
                        t.name,
                    ]
                    for t in shown
                ],
                ["offset", "size", "dtype", "shape", "name"],
            )
        )
    if limit is not None and len(layout.tensors) > limit:
        lines.append(f"… and {len(layout.tensors) - limit} more (--all)")
    lines += [f"! {finding}" for finding in layout.findings]
    return "\n".join(lines)


def picture(layout: Layout, width: int = 72) -> str:
    """The file as one line of cells: H header, letters by tensor kind, . neither. Each cell takes
    what covers most of it."""
    cells: list[dict[str, float]] = [{".": 0} for _ in range(width)]

    def cover(start: int, end: int, mark: str) -> None:
        scale = max(layout.size_bytes, 1) / width
        for i in range(int(start / scale), min(width, int(max(end - 1, start) / scale) + 1)):
            part = min(end, (i + 1) * scale) - max(start, i * scale)
            cells[i][mark] = cells[i].get(mark, 0) + part

    if layout.format != "pickle":
        cover(0, layout.header_bytes, "H")
    for t in layout.tensors:
        if t.offset >= 0 and t.size_bytes:
            cover(t.offset, t.end, kind(t.name))
    return (
        "  ["
        + "".join(max(c, key=lambda mark: c[mark]) for c in cells)
        + "]\n  H header  E embedding and head  A attention  F feed-forward  n norms and the rest"
    )


def kind(name: str) -> str:
    """E, A, F or n: what part of the model a tensor is, by its public or its GGUF name."""
    if "embed" in name or "lm_head" in name or name.startswith(("token_embd", "output.")):
        return "E"
    if re.search(r"attn[._]q|[qkvo]_proj|attn_(k|v|output)", name):
        return "A"
    if re.search(r"mlp\.|ffn_(up|down|gate)", name):
        return "F"
    return "n"
