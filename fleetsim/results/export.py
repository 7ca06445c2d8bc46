"""Runs written for other tools."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fleetsim.errors import InputError, nearest
from fleetsim.experiment.run import folder_name
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.folder import Results, open_results


@dataclass(frozen=True, slots=True)
class Format:
    """A format that runs are written in."""

    module: str
    """Of `fleetsim.results.exports`, with a function `write`."""
    title: str
    suffix: str
    """Of the file's name; empty for a folder of files."""


FORMATS = {
    "llm-d": Format("llm_d", "benchmark report 0.2.1 of llm-d", ".llm-d.json"),
    "vllm-bench": Format("vllm_bench", "result file of vllm bench serve", ".vllm-bench.json"),
    "aiperf": Format("aiperf", "profile_export_aiperf.json and profile_export.jsonl of AIPerf", ""),
    "mooncake": Format("mooncake", "the requests as a trace in Mooncake's JSONL", ".mooncake.jsonl"),
    "prometheus": Format("prometheus", "time series in OpenMetrics text, with vLLM's names", ".openmetrics.txt"),
    "perfetto": Format("perfetto", "trace for ui.perfetto.dev", ".perfetto.json"),
}
"""By name."""


def export(
    results: Results | str | os.PathLike[str],
    to_format: str,
    out: str | os.PathLike[str] | None = None,
    *,
    run: str | None = None,
    options: Options = Options(),  # noqa: B008
) -> Written:
    """Write runs in the format of another tool.

    Parameters
    ----------
    results : Results or path
        What `open_results` takes or gives.
    to_format : str
        One of `FORMATS`.
    out : path, optional
        File to write, or folder for `aiperf` and for several runs; default: beside, named after the run.
    run : str, optional
        This run only, by its label or id.
    options : Options
        Time of day, part of the run, and size.

    Returns
    -------
    Written
        The files, and what was left out of them.

    Raises
    ------
    InputError
        If there is no such format or run, or the run lacks what the format needs.
    """
    if to_format not in FORMATS:
        raise InputError(f'no format "{to_format}". {nearest(to_format, FORMATS, "formats")}')
    chosen = FORMATS[to_format]
    opened = results if isinstance(results, Results) else open_results(results)
    runs = [opened.run(run)] if run is not None else list(opened.runs)
    if not runs:
        raise InputError("no run of these folders has finished: nothing to write")
    write: Callable[..., Written] = import_module(f"fleetsim.results.exports.{chosen.module}").write
    files: list[Path] = []
    notes: list[str] = []
    for each in runs:
        name = folder_name(each.label)
        target = (
            Path(f"{name}{chosen.suffix}" if chosen.suffix else f"{name}-{to_format}") if out is None else Path(out)
        )
        if out is not None and len(runs) > 1:
            target = target / f"{name}{chosen.suffix}"
        written = write(opened, each, target, options)
        files += written.files
        notes += (f"{each.label}: {note}" if len(runs) > 1 else note for note in written.notes)
    return Written(files, notes)
