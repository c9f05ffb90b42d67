"""An executed notebook as HTML, by nbconvert with a template of the lab's: cells and outputs only,
no script, nothing from outside. nbconvert's own templates fetch MathJax and require.js.

    body(Path("report/notebooks/01_anatomy.ipynb"), links=".html")

Importing this imports nbconvert, half a second: it is imported where a page is made.
Lesson: none."""

from __future__ import annotations

import re
from pathlib import Path

import mistune
import nbformat
from nbconvert.exporters import TemplateExporter
from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import Preprocessor
from nbformat.v4.rwbase import rejoin_lines
from traitlets.config import Config

from labkit.core import printable
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.lessons import canonical

TEMPLATE = Path(__file__).parent / "templates" / "notebook.html.j2"
#: What is shown of an output that comes in several forms, best first.
FORMATS = ["text/html", "text/markdown", "image/png", "text/plain"]
#: What nbformat requires of a cell, and an unfinished notebook may lack.
_CELL: JsonObject = {"metadata": {}}
_CODE: JsonObject = {"execution_count": None, "outputs": []}
WIDGET = "application/vnd.jupyter.widget-view+json"


class CleanOutputs(Preprocessor):
    """Outputs without scripts, control characters and widget views, which are empty without a
    kernel."""

    def preprocess_cell(
        self, cell: nbformat.NotebookNode, resources: JsonObject, index: int
    ) -> tuple[nbformat.NotebookNode, JsonObject]:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.output_type == "stream":
                output.text = printable.text(strip_ansi(output.text).rstrip())
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = re.sub(
                    r"<script\b.*?</script>", "", data["text/html"], flags=re.DOTALL
                )
            if "text/plain" in data:
                data["text/plain"] = printable.text(data["text/plain"])
        if outputs:
            cell.outputs = [output for output in outputs if _shows(output)]
        return cell, resources


def _shows(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return bool(output.text)
    data = output.get("data", {})
    if WIDGET in data and "text/html" not in data:
        return False
    return output.output_type == "error" or any(name in data for name in FORMATS)


def body(path: Path, links: str = ".html") -> str:
    """The cells of an executed notebook. Links to other notebooks get the suffix `links`; "" leaves
    only their text. Raises BadInput for what is no notebook."""
    doc = canonical.load(path)
    doc["cells"] = [_CELL | cell for cell in doc["cells"] if cell["source"].strip()]
    for cell in doc["cells"]:
        if cell["cell_type"] == "code":
            cell.update(_CODE | cell)
    exporter = TemplateExporter(
        template_file=str(TEMPLATE),
        preprocessors=[CleanOutputs],
        filters={"markdown2html": lambda text: markdown(text, links)},
        config=Config(
            NbConvertBase={"display_data_priority": FORMATS},
            CoalesceStreamsPreprocessor={"enabled": True},
        ),
    )
    try:
        return str(exporter.from_notebook_node(rejoin_lines(nbformat.from_dict(doc)))[0])
    except nbformat.ValidationError as error:
        raise BadInput(
            f"{path} is not a notebook: {error.message}", fix="give a .ipynb file of format 4"
        ) from None


def markdown(text: str, links: str) -> str:
    """Markdown as HTML, its own markup escaped (mistune's default, unlike nbconvert's)."""
    html = str(mistune.create_markdown(plugins=["table", "strikethrough"])(text))
    if links:
        return re.sub(r'href="([\w./-]+)\.ipynb(#[\w-]*)?"', rf'href="\1{links}\2"', html)
    return re.sub(r'<a href="[\w./-]+\.ipynb(?:#[\w-]*)?">(.*?)</a>', r"<em>\1</em>", html)
