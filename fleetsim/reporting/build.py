"""Writes the page."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fleetsim.errors import Finding, InputError
from fleetsim.plots.export import save
from fleetsim.reporting.content import page
from fleetsim.reporting.series import MOST_DETAILED
from fleetsim.results.folder import open_results

MOST_BYTES = 8 * 10**6
"""A page is no larger than this [bytes]."""


def report(
    *paths: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    title: str | None = None,
    figures: str | os.PathLike[str] | None = None,
    figure_format: str = "svg",
) -> Path:
    """Write one HTML file that shows results: the answer first, then figures, tables and what was assumed.

    Parameters
    ----------
    *paths : path
        Result folders, study folders, or folders that hold several of them.
    out : path, optional
        File to write; default ``report.html`` in the first folder.
    title : str, optional
        Head line; default the name of the scenario or the study.
    figures : path, optional
        Folder for the figures of the page as image files; needs ``fleetsim[png]``.
    figure_format : str
        ``svg``, ``png`` or ``pdf``.

    Returns
    -------
    Path
        The file. It needs nothing else and no network, and has at most 8 MB.

    Raises
    ------
    InputError
        If there are no results, or the file cannot be written.
    """
    results = open_results(*paths)
    if not results.runs:
        raise InputError(
            Finding("no run is finished yet", file=str(paths[0]), hint="run the study again: it goes on where it was")
        )
    target = Path(out) if out is not None else Path(paths[0]) / "report.html"
    if target.is_dir():
        raise InputError(Finding("is a folder", file=str(target), hint="name the HTML file"))
    kept: dict[str, go.Figure] | None = None if figures is None else {}
    for most_detailed in (MOST_DETAILED, 1):
        html = render(page(results, title, kept, most_detailed))
        size_bytes = len(html.encode())
        if size_bytes <= MOST_BYTES:
            break
        if kept is not None:
            kept.clear()
    else:
        hint = "name fewer folders"
        raise InputError(Finding(f"the page would have {size_bytes / 1e6:.1f} MB", file=str(target), hint=hint))
    _write(target, html)
    if figures is not None and kept is not None:
        save(kept, figures, figure_format)
    return target


def render(content: object) -> str:
    """The page as HTML; everything that comes from users is escaped."""
    environment = Environment(
        loader=PackageLoader("fleetsim.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = _script_json
    folder = Path(__file__).parent
    parts = {name: Markup((folder / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("page.html.j2").render(page=content, plotly_js=Markup(get_plotlyjs()), **parts)


def _script_json(text: str) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _write(target: Path, html: str) -> None:
    """Write a file that appears whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as error:
        raise InputError(Finding(f"cannot write there: {error.strerror}", file=str(target))) from error
