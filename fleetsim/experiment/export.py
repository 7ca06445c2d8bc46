"""The requests that a scenario would send, as a trace file for other tools."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from fleetsim.errors import ScenarioError
from fleetsim.experiment.check import open_workload
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.load import LoadedScenario
from fleetsim.workload.prefixes import Content
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.replay import ReleasedReplay
from fleetsim.workload.request import Request
from fleetsim.workload.synthetic import ClosedLoop, Conversations
from fleetsim.workload.writers import WRITERS, writable_format

BLOCK_TOKENS = 16
"""Tokens per block in which shared starts of synthetic prompts are told."""


def export_workload(loaded: LoadedScenario, dst: Path | str, to_format: str | None = None) -> dict[str, Any]:
    """Write the requests that a scenario sends, after slicing, scaling and drawing, as a trace.

    Parameters
    ----------
    loaded : LoadedScenario
        A scenario whose arrivals do not depend on the fleet.
    dst : path
        File to write.
    to_format : str, optional
        ``parquet``, ``mooncake`` or ``azure``; otherwise what the name's ending tells.

    Returns
    -------
    dict
        ``requests``, ``to_format``, ``path``.

    Raises
    ------
    InputError
        If the workload's arrivals depend on the fleet, or the file cannot be written.
    """
    dst = Path(dst)
    target = writable_format(dst, to_format)
    workload = open_workload(loaded, Streams(loaded.scenario.seed))
    if isinstance(workload, ClosedLoop | Conversations | ReleasedReplay):
        hint = "run the scenario: its requests table has the arrivals that this fleet gave"
        message = "arrivals depend on when the fleet answers: there is no trace of them before a run"
        raise ScenarioError(loaded.finding(("workload",), message, hint))
    count = WRITERS[target](_rows(workload.requests()), dst)
    return {"requests": count, "to_format": target, "path": str(dst)}


def _rows(requests: Iterator[Request]) -> Iterator[Row]:
    ids: dict[int, int] = {}
    for number, request in enumerate(requests, start=1):
        hashes, hash_tokens = _identity(request.content, ids)
        yield Row(
            number=number,
            time_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            hashes=hashes,
            hash_tokens=hash_tokens,
            session=request.session if request.session >= 0 else None,
            klass=request.klass,
            tenant=request.tenant,
            model=request.model,
        )


def _identity(content: Content | None, ids: dict[int, int]) -> tuple[tuple[int, ...], int]:
    """Block hashes of a prompt; runs of content streams become numbers in order of appearance."""
    if content is None or content.open_ended:
        return (), 0
    if content.hashes:
        return content.hashes, content.hash_tokens
    return tuple(ids.setdefault(key, len(ids)) for key in chain(*content.path(BLOCK_TOKENS))), BLOCK_TOKENS
