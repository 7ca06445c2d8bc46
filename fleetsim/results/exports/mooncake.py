"""The requests of a run as a trace in Mooncake's JSONL, which GuideLLM, AIPerf and other simulators replay.

Times are the arrivals that this run saw, also where they depended on the fleet. A result has no prompts, so no two share blocks;
`fleetsim trace convert` of the scenario's own workload keeps what is known of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.errors import InputError
from fleetsim.metrics.statistics import Floats
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.exports.population import Population
from fleetsim.results.folder import Results, Run
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.writers import write_mooncake

Whole = np.ndarray[Any, np.dtype[np.int64]]


def write(results: Results, run: Run, out: Path, options: Options) -> Written:  # noqa: ARG001
    """Write one line per request that finished, in the order of arrival."""
    population = Population(results, run, warm_up=True)
    finished = population.finished[population.order]
    times = population.ordered("arrival_s")
    chosen = finished & ~np.isnan(times)
    if not chosen.any():
        raise InputError(f"{run.label}: no request of it finished with a known arrival; there is no trace to write")
    lengths = [population.ordered(name)[chosen].astype(np.int64) for name in ("prompt_tokens", "output_tokens")]
    write_mooncake(_rows(times[chosen], *lengths), out)
    left_out = len(chosen) - int(chosen.sum())
    note = f"{left_out:,} requests that did not finish are left out: their lengths are not known"
    return Written([out], [note] if left_out else [])


def _rows(times: Floats, prompts: Whole, outputs: Whole) -> Iterator[Row]:
    for number, place in enumerate(np.argsort(times, kind="stable"), start=1):
        yield Row(number, float(times[place]), int(prompts[place]), int(outputs[place]))
