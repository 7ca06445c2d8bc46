"""Runs that other tools measured, made result folders, so that they can be compared with simulated ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleetsim.errors import Finding, InputError, nearest
from fleetsim.experiment.run import folder_name
from fleetsim.results.imports import aiperf, llm_d, vllm_bench
from fleetsim.results.imports.measured import Measured, write
from fleetsim.scenario.schema import Slo

FORMATS = {
    "vllm-bench": "result file of vllm bench serve, best with --save-detailed",
    "aiperf": "profile_export_aiperf.json or profile_export.jsonl of AIPerf, best with both in a folder",
    "llm-d": "benchmark report 0.2 or 0.2.1 of llm-d, in JSON or YAML (figures only)",
}
"""By name."""


def import_results(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    slo: Slo | Mapping[str, Any] | None = None,
) -> Path:
    """Make a result folder of a run that another tool measured.

    Parameters
    ----------
    path : path
        A file of one of `FORMATS`, or the folder of AIPerf's.
    out : path, optional
        Folder to write; default ``fleetsim-out/<name>``. An earlier result there is replaced.
    name : str, optional
        What the run is called; default: what the file calls it.
    slo : Slo or mapping, optional
        Limits that each request is held against, e.g. ``{"ttft": "500 ms"}``; needs requests, not figures only.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the file is none of these, or lacks what the limits need.
    """
    source = Path(path)
    measured, file = _read(source)
    if name is not None:
        measured = replace(measured, name=name)
    limits = Slo.model_validate(slo) if slo is not None and not isinstance(slo, Slo) else slo
    if limits is not None and measured.requests is None:
        raise InputError(Finding("has figures only: no request can be held against an SLO", file=str(file)))
    target = Path(out) if out is not None else Path("fleetsim-out") / folder_name(measured.name)
    return write(measured, file, target, limits)


def _read(source: Path) -> tuple[Measured, Path]:
    if source.is_dir():
        for each in (aiperf.JSON, aiperf.JSONL):
            if (source / each).is_file():
                return _read(source / each)
        raise InputError(Finding(f"is a folder without {aiperf.JSON}", file=str(source), hint=_hint()))
    if source.suffix == ".jsonl":
        return aiperf.read(None, source), source
    content = _content(source)
    if vllm_bench.is_one(content):
        return vllm_bench.read(content, source), source
    if llm_d.is_one(content):
        return llm_d.read(content, source), source
    if aiperf.is_one(content):
        return aiperf.read(content, source), source
    raise InputError(Finding("is the result of no tool that is known here", file=str(source), hint=_hint()))


def _content(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = (
            nearest(path.name, [child.name for child in path.parent.iterdir()], "there") if path.parent.is_dir() else ""
        )
        raise InputError(Finding("there is no such file", file=str(path), hint=near)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Finding(f"cannot be read: {error}", file=str(path))) from error
    if path.suffix in (".yaml", ".yml"):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            return YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise InputError(Finding(f"is not YAML: {error}", file=str(path))) from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            Finding(f"is not JSON: {error}", file=str(path), line=getattr(error, "lineno", None))
        ) from error


def _hint() -> str:
    return "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
