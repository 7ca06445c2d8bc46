"""From one trace format to another, and from a profile to a trace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from fleetsim.errors import DataError, Finding
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import SyntheticWorkload
from fleetsim.workload.describe import opened
from fleetsim.workload.formats import Scan
from fleetsim.workload.profiles import Profile, load_profile
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.synthetic import synthetic_workload
from fleetsim.workload.writers import WRITERS, writable_format, write_parquet

DEFAULT_RATE = 1.0
"""Poisson arrivals per second where a profile holds lengths only."""


def convert_trace(
    src: Path | str,
    dst: Path | str,
    from_format: str | None = None,
    to_format: str | None = None,
    skip_bad_rows: bool = False,
) -> dict[str, Any]:
    """Write a trace in another format: parquet keeps everything, mooncake block ids, azure only times and lengths.

    Parameters
    ----------
    src, dst
        Files to read and to write.
    from_format, to_format
        Formats; None to take what the first lines and the name's ending tell.
    skip_bad_rows
        Leave bad rows out and count them, instead of refusing.

    Returns
    -------
    dict
        ``requests``, ``skipped_rows``, the formats, and ``lost``: fields that the new format has no room for.

    Raises
    ------
    DataError
        If the source is not sound, or the target cannot be written.
    """
    dst = Path(dst)
    trace = opened(src, from_format)
    target = writable_format(dst, to_format)
    if dst.exists() and dst.samefile(trace.path):
        raise DataError(Finding("would be written over itself", file=str(dst), hint="choose another name"))
    scan = trace.scan()
    if scan.bad.count and not (skip_bad_rows and scan.rows):
        trace.refuse(scan)
    count = _write(trace.ordered(scan), dst, target, scan.columns, f"converted from {trace.format}")
    return {
        "requests": count,
        "skipped_rows": scan.bad.count,
        "from_format": trace.format,
        "to_format": target,
        "lost": _lost(scan, target),
    }


_KEPT = {
    "parquet": {"hashes", "hash_tokens", "session", "pause_s", "klass", "tenant", "model", "images", "image_tokens"},
    "mooncake": {"hashes", "hash_tokens"},
    "azure": set[str](),
}


def _lost(scan: Scan, target: str) -> list[str]:
    return sorted(scan.columns - _KEPT[target] - {"hash_tokens"})


def _write(rows: Iterable[Row], dst: Path, target: str, fields: set[str], note: str) -> int:
    if target == "parquet":
        return write_parquet(rows, dst, fields, note)
    return WRITERS[target](rows, dst)


def synthesise(
    profile: str,
    requests: int,
    seed: int,
    dst: Path | str,
    to_format: str | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Write a trace drawn from a profile: recorded quantiles of lengths, course of the rate and burstiness.

    Parameters
    ----------
    profile
        Name of the profile.
    requests
        How many to draw, at least 1.
    seed
        The same seed gives the same trace.
    dst
        File to write.
    to_format
        Its format; None to take what the name's ending tells.
    rate
        Mean arrivals per second instead of the recorded ones; a profile of lengths only has `DEFAULT_RATE`, Poisson.

    Raises
    ------
    DataError
        If there is no such profile, a number makes no sense, or the file cannot be written.
    """
    dst = Path(dst)
    target = writable_format(dst, to_format)
    known = load_profile(profile)
    if requests < 1 or (rate is not None and not 0 < rate < float("inf")):
        raise DataError(Finding(f"cannot draw {requests} requests at {rate} per second: both must be above zero"))
    count = _write(
        _drawn(known, requests, seed, rate), dst, target, set(), f"drawn from profile {profile}, seed {seed}"
    )
    return {"requests": count, "profile": profile, "seed": seed, "to_format": target}


def _drawn(profile: Profile, requests: int, seed: int, rate: float | None) -> Iterable[Row]:
    block: dict[str, Any] = {"kind": "synthetic", "requests": requests, "profile": profile.name}
    if not profile.has("arrivals"):
        block["arrivals"] = {"process": "poisson", "rate": f"{rate or DEFAULT_RATE:.17g} req/s"}
    workload = synthetic_workload(SyntheticWorkload.model_validate(block), Streams(seed))
    squeeze = 1.0 if rate is None or profile.rate is None else rate / profile.rate
    for number, request in enumerate(islice(workload.requests(), requests), 1):
        yield Row(number, request.arrival_s / squeeze, request.prompt_tokens, request.output_tokens)
