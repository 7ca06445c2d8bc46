"""The documentation site: `sphinx-build -W -b html docs site` writes it, without a network."""

from __future__ import annotations

from pathlib import Path

import fleetsim

HERE = Path(__file__).parent

project = "fleetsim"
author = "the fleetsim authors"
copyright = "the fleetsim authors, Apache-2.0"
release = version = fleetsim.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["blind"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "fleetsim"
html_static_path: list[str] = []
html_show_sphinx = False


def _write_reference(_: object) -> None:
    """Write the pages that come from the code, which are not kept."""
    from fleetsim.cli.reference import reference_pages

    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    for name, text in reference_pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


PAGES_BELOW = {"policies/README": "*/*", "reference/README": "*"}
"""Indexes whose pages stand in the sidebar below them."""


def _add_pages_below(_: object, name: str, source: list[str]) -> None:
    if name in PAGES_BELOW:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{PAGES_BELOW[name]}\n```\n"


def setup(app: object) -> None:
    """Have the reference written before pages are looked for, and lists of pages completed as they are read."""
    app.connect("builder-inited", _write_reference)  # type: ignore[attr-defined]
    app.connect("source-read", _add_pages_below)  # type: ignore[attr-defined]
