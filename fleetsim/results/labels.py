"""What tells runs apart, in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetsim.results.folder import Run


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels that are unique among them.

    Runs of a study are told by the axes that differ among them (``router=least-kv rate=5``) and, where there are several seeds, by
    their replication (``#2``); other runs by their name, or by their folder where names repeat. What is still equal gets its id.
    """
    varied = {study: _varied([run for run in runs if run.study == study]) for study in {run.study for run in runs}}
    several = len({run.study or run.name for run in runs}) > 1
    texts = [_axes(run, varied[run.study], several) or run.name for run in runs]
    texts = _apart(runs, texts, lambda run, text: f"{text} #{run.replication + 1}" if run.study else run.path.name)
    texts = _apart(runs, texts, lambda run, text: f"{text} {run.id}")
    return [replace(run, label=text) for run, text in zip(runs, texts, strict=True)]


def _varied(runs: Sequence[Run]) -> list[str]:
    """Paths whose values differ among the runs."""
    paths = dict.fromkeys(path for run in runs for path in run.axes)
    return [path for path in paths if len({str(run.axes.get(path)) for run in runs}) > 1]


def _axes(run: Run, paths: Sequence[str], with_study: bool) -> str:
    short = short_names(paths)
    parts = [f"{short[path]}={_text(run.axes[path])}" for path in paths if run.axes.get(path) is not None]
    if with_study and run.study:
        parts.insert(0, run.study)
    return " ".join(parts)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path's last parts, as many as tell it from the others; a policy is told by what it decides."""
    parts = {path: _telling(path.split(".")) for path in paths}
    names = {}
    for path, own in parts.items():
        taken = 1
        while taken < len(own) and any(other != path and parts[other][-taken:] == own[-taken:] for other in paths):
            taken += 1
        names[path] = ".".join(own[-taken:])
    return names


def _telling(parts: list[str]) -> list[str]:
    return parts[:-1] if len(parts) > 1 and parts[-1] in ("policy", "kind") else parts


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _apart(runs: Sequence[Run], texts: list[str], told: Callable[[Run, str], str]) -> list[str]:
    """Texts that occur more than once, told more closely."""
    count = Counter(texts)
    return [told(run, text) if count[text] > 1 else text for run, text in zip(runs, texts, strict=True)]
