"""Figures as image files, for papers and slides."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio

from fleetsim.errors import Finding, InputError

FORMATS = ("svg", "png", "pdf")
WIDTH, SCALE = 900, 2
"""Pixels of an image across, and pixels of a PNG for each."""


def save(figures: Mapping[str, go.Figure], folder: str | os.PathLike[str], image_format: str = "svg") -> list[Path]:
    """Write figures as images, all by one browser.

    Parameters
    ----------
    figures : mapping of str to Figure
        By the name of their file, without its ending.
    folder : path
        Where to; made if it is missing.
    image_format : str
        ``svg``, ``png`` or ``pdf``.

    Raises
    ------
    InputError
        If the extra that draws images, a browser for it or the folder is missing.
    """
    if image_format not in FORMATS:
        raise InputError(f"no image format {image_format!r}; there are {', '.join(FORMATS)}")
    if find_spec("kaleido") is None:
        raise InputError("images need an extra: pip install 'fleetsim[png]', and Chrome or Chromium on this machine")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(Finding(f"cannot write there: {error.strerror}", file=str(folder))) from error
    files = [folder / f"{name}.{image_format}" for name in figures]
    if not files:
        return files
    drawn = [
        go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white") for figure in figures.values()
    ]
    heights = [int(figure.layout.height or 450) for figure in drawn]
    try:
        pio.write_images(drawn, [str(file) for file in files], width=WIDTH, height=heights, scale=SCALE)
    except Exception as error:  # kaleido and its browser raise what they like
        told = " ".join(str(error).split())[:200]
        raise InputError(f"images could not be drawn: {told}; is Chrome or Chromium installed?") from error
    return files
