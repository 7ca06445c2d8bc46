"""Spot capacity as a trace recorded it."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import DataError, Finding
from fleetsim.faults.api import Fault, Site
from fleetsim.plugins import PolicyConfig, ScenarioFile

_Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]


class SpotConfig(PolicyConfig):
    """Parameters of a replay."""

    file: Annotated[ScenarioFile, Field(min_length=1)]
    """Trace, relative to the scenario: JSON with ``metadata.gap_seconds`` and ``data``, nodes available at each sample, as in
    SkyPilot's collection; or CSV with columns ``time_s`` and ``available``."""
    pool: str | None = None
    """Whose replicas are spot capacity; default: all pools', which then share one trace."""
    notice_s: _Seconds = 120.0
    """Warning before an interruption: 120 s at AWS, 30 s at GCP and Azure. The replica takes no more requests and drains."""
    begin_s: _Seconds = 0.0
    """Time in the trace at which the run begins."""
    per_node: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] | None = None
    """Replicas for each node available; default: all replicas of the pool at the trace's most."""
    repeat: bool = False
    """Begin the trace again where it ends; if not, a run that lasts longer is refused."""


class Spot:
    """Replicas come and go with the spot capacity that a cloud really had.

    Rule: at each sample, replicas beyond the number that was available are interrupted, those with the highest numbers first, after
    a warning `notice_s` before; they may be started again (and pay their start-up) once the trace has capacity for them. Capacity
    that comes back before the warning is over does not call it off.

    References
    ----------
    Z. Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI 2024; traces in skypilot-org/spot-traces.
    """

    Config: ClassVar = SpotConfig

    def __init__(self, config: SpotConfig, rng: Generator, site: Site) -> None:
        self._config = config
        pools = [config.pool] if config.pool is not None else list(site.pools)
        if config.pool is not None and config.pool not in site.pools:
            raise DataError(Finding(f'faults name the pool "{config.pool}"', hint=f"pools: {', '.join(site.pools)}"))
        self._replicas = tuple(i for pool in pools for i in site.pools[pool])
        self._samples = read_availability(Path(config.file))
        most = max(available for _, available in self._samples)
        if not most:
            raise DataError(Finding(f"{config.file}: nothing is ever available"))
        self._per_node = config.per_node or len(self._replicas) / most

    def faults(self) -> Iterator[Fault]:
        """Interruptions and returns until the trace ends."""
        config = self._config
        up = len(self._replicas)
        last_s = 0.0
        pending: list[Fault] = []
        for time_s, available in self._from_begin():
            count = self._replicas_of(available)
            if count < up:
                gone = self._replicas[count:up]
                if config.notice_s:
                    pending.append(Fault(max(time_s - config.notice_s, last_s), "warn", gone))
                pending.append(Fault(time_s, "fail", gone, name="spot_interruption"))
            elif count > up:
                pending.append(Fault(time_s, "repair", self._replicas[up:count]))
            up = count
            # a warning may lie before what the next sample says, but not before what was told already
            pending.sort(key=lambda fault: fault.time_s)
            while pending and pending[0].time_s <= time_s - config.notice_s:
                last_s = pending[0].time_s
                yield pending.pop(0)
        yield from pending
        if not config.repeat:
            end_s = self._samples[-1][0] - config.begin_s
            raise_at = max(end_s, last_s, pending[-1].time_s if pending else 0.0)
            yield Fault(raise_at, "end", ())

    def _replicas_of(self, available: float) -> int:
        """Replicas that so many nodes are enough for."""
        return min(int(available * self._per_node + 1e-9), len(self._replicas))

    def _never_changes(self) -> bool:
        """Whether the trace has the same replicas all the time: repeated, it would be searched for a change without end."""
        return len({self._replicas_of(available) for _, available in self._samples}) == 1

    def _from_begin(self) -> Iterator[tuple[float, float]]:
        """Samples in the run's time, the one under way at its beginning first; round and round with `repeat`."""
        begin_s, samples = self._config.begin_s, self._samples
        if begin_s >= samples[-1][0]:
            message = f"{self._config.file}: begin_s {begin_s:g} is not before its last sample, {samples[-1][0]:g} s"
            raise DataError(Finding(message))
        first = max(i for i, (time_s, _) in enumerate(samples) if time_s <= begin_s)
        yield 0.0, samples[first][1]
        offset_s = -begin_s
        position = first + 1
        length_s = samples[-1][0] + (samples[-1][0] - samples[-2][0])
        while True:
            for time_s, available in samples[position:]:
                yield time_s + offset_s, available
            if not self._config.repeat or self._never_changes():
                return
            offset_s += length_s
            position = 0


def read_availability(path: Path) -> list[tuple[float, float]]:
    """Samples (time [s], nodes available) of a spot trace.

    Raises
    ------
    DataError
        If the file cannot be read, has fewer than two samples, or times that fall.
    """
    try:
        samples = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(Finding(f"{path}: no spot trace: {type(error).__name__}: {error}")) from None
    if len(samples) < 2:
        raise DataError(Finding(f"{path}: a spot trace needs two samples at least"))
    for (before_s, _), (time_s, available) in itertools.pairwise(samples):
        if not time_s > before_s or not available >= 0:
            raise DataError(Finding(f"{path}: {available:g} nodes at {time_s:g} s, after {before_s:g} s"))
    return samples


def _read_json(path: Path) -> list[tuple[float, float]]:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    gap_s = float(content["metadata"]["gap_seconds"])
    return [(number * gap_s, float(available)) for number, available in enumerate(content["data"])]


def _read_csv(path: Path) -> list[tuple[float, float]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [(float(row["time_s"]), float(row["available"])) for row in csv.DictReader(lines)]
