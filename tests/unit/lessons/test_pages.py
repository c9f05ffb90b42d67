"""Pages are whole without anything from elsewhere, and nothing that a notebook or a record holds
becomes markup or runs."""

from __future__ import annotations

import json

import pytest

from labkit.errors import BadInput
from labkit.lessons import pages

PNG = "iVBORw0KGgo="
OUTPUTS = [
    {"output_type": "stream", "name": "stdout", "text": ["one <i>\n"]},
    {"output_type": "stream", "name": "stdout", "text": "\x1b[31mtwo\x1b[0m\u202e\n"},
    {
        "output_type": "display_data",
        "metadata": {},
        "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "W"},
    },
    {
        "output_type": "execute_result",
        "execution_count": 1,
        "metadata": {},
        "data": {"text/html": ["<p>figure</p><script>\nalert(1)</script>"], "text/plain": "x"},
    },
    {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": PNG, "text/plain": '"a"'},
    },
    {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["\x1b[31m<b>E\x1b[0m"]},
]


@pytest.fixture
def notebook(tmp_path):
    cells = [
        {
            "cell_type": "markdown",
            "metadata": {},
            "source": "# A\n[b](b.ipynb#c) <script>2</script>",
        },
        {"cell_type": "code", "metadata": {}, "source": "x = 1\n", "outputs": OUTPUTS},
        {"cell_type": "code", "metadata": {}, "source": " ", "outputs": []},
    ]
    path = tmp_path / "n.ipynb"
    doc = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": cells}
    path.write_text(json.dumps(doc))
    return path


def test_an_executed_notebook_keeps_its_outputs_and_loses_scripts_and_widgets(notebook):
    html = pages.notebook_body(notebook)
    assert "<pre>one &lt;i&gt;\ntwo\\u202e</pre>" in html
    assert "<p>figure</p>" in html and "<script" not in html and "alert" not in html
    assert f'<img alt="&quot;a&quot;" src="data:image/png;base64,{PNG}">' in html
    assert '<pre class="bad">' in html and "&lt;b&gt;E" in html
    assert html.count('class="out"') == 4 and html.count('class="code"') == 1


def test_links_between_notebooks_become_links_between_pages_or_words(notebook):
    assert '<a href="b.html#c">b</a>' in pages.notebook_body(notebook)
    assert "<em>b</em>" in pages.notebook_body(notebook, links="")


def test_a_page_fetches_nothing_and_escapes_what_it_is_given(notebook):
    page = pages.page("<title>", pages.notebook_body(notebook))
    assert "<title>&lt;title&gt;</title>" in page
    assert "http" not in page and "@import" not in page and "url(" not in page


@pytest.mark.parametrize(
    "text", ["{}", '{"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "x", "source": "y"}]}']
)
def test_what_is_no_notebook_is_refused(tmp_path, text):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(BadInput):
        pages.notebook_body(tmp_path / "n.ipynb")
