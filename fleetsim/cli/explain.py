"""``fleetsim run --explain``: why a request went where it went, and what the other replicas would have cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import pyarrow.compute as pc

from fleetsim.cli.console import print_table
from fleetsim.errors import InputError
from fleetsim.experiment.run import Result
from fleetsim.units import show

MOST_RUNS = 8
"""Other replicas that ``--what-if`` tries."""

_SEEN = {
    "outstanding": ("outstanding", ""),
    "waiting": ("waiting", ""),
    "running": ("running", ""),
    "kv_used_ratio": ("KV used", "%"),
    "pending_tokens": ("pending tokens", ""),
    "hit_tokens": ("hit tokens", ""),
    "prefill_s": ("prefill", "s"),
    "ttft_s": ("expected ttft", "s"),
}
"""Columns of the table ``decisions`` that say what the view showed, their titles and units."""


def explained(
    result: Result, requests: Sequence[int], again: Callable[..., Result], what_if: bool
) -> list[dict[str, Any]]:
    """The decisions about some requests, each with its candidates; with `what_if` with what each candidate would have led to.

    Parameters
    ----------
    result : Result
        The run in which they were made.
    requests : sequence of int
        Ids of the requests.
    again : callable
        Runs the same scenario with other arguments of `fleetsim.run`.
    what_if : bool
        Run again for each candidate that was not chosen, at most `MOST_RUNS`.

    Raises
    ------
    InputError
        If the run has no such request.
    """
    if not requests:
        return []
    known = set(result.requests()["request_id"].to_pylist())
    missing = [request for request in requests if request not in known]
    if missing:
        raise InputError(f"--explain: no request {missing[0]} in this run; the table `requests` has their ids")
    if not (result.out / "decisions.parquet").exists():
        return []
    rows = result.table("decisions").to_pylist()
    decisions = []
    for (request, attempt), group in groupby(rows, key=lambda row: (row["request_id"], row["attempt"])):
        candidates = list(group)
        if what_if and attempt == 0:
            _try_others(result, request, candidates, again)
        decisions.append({"request_id": request, "attempt": attempt, "candidates": candidates})
    return decisions


def _try_others(result: Result, request: int, candidates: list[dict[str, Any]], again: Callable[..., Result]) -> None:
    """Add what each candidate led to, or would have: the request's own times, and the means over all requests."""
    tried = 0
    for row in candidates:
        if row["chosen"]:
            row["result"] = _outcome(result, request)
        elif tried < MOST_RUNS:
            tried += 1
            with tempfile.TemporaryDirectory() as folder:
                row["result"] = _outcome(again(out=Path(folder) / "run", steer={request: row["candidate"]}), request)


def _outcome(result: Result, request: int) -> dict[str, Any]:
    table = result.requests()
    row = table.filter(pc.equal(table["request_id"], request)).to_pylist()[0]
    own = {name: row[name] for name in ("status", "ttft_s", "e2el_s", "energy_j", "cost_usd")}
    means = {f"all_{name}": result.summary[name] for name in ("ttft_mean_s", "e2el_mean_s", "slo_attainment_ratio")}
    return {**own, **means}


def tell(decision: Mapping[str, Any]) -> None:
    """Print a decision: answer first, then the candidates."""
    rows = decision["candidates"]
    first = rows[0]
    chosen = next((row for row in rows if row["chosen"]), None)
    where = f"replica {chosen['candidate']} ({chosen['pool']})" if chosen else "no replica"
    again = f", attempt {decision['attempt'] + 1}" if decision["attempt"] else ""
    click.echo()
    click.echo(
        f"request {decision['request_id']}{again}: {first['router']} chose {where} at {first['time_s']:.6g} s, "
        f"{first['outcome']}"
    )
    said = json.loads(first["said"])
    if said:
        click.echo("  " + ", ".join(f"{name} {value:.6g}" for name, value in said.items()))
    seen = [name for name in _SEEN if any(row[name] is not None for row in rows)]
    figures = [json.loads(row["figures"]) for row in rows]
    names = list(dict.fromkeys(name for row in figures for name in row))
    results = any("result" in row for row in rows)
    header = ["", "replica", "pool", *(_SEEN[name][0] for name in seen), *names]
    header += ["ttft", "end to end", "all: ttft mean", "all: e2e mean"] if results else []
    body = []
    for row, figure in zip(rows, figures, strict=True):
        line = ["*" if row["chosen"] else "", str(row["candidate"]), row["pool"]]
        line += [_cell(row[name], _SEEN[name][1]) for name in seen]
        line += [_cell(figure.get(name), "") for name in names]
        if results:
            got = row.get("result", {})
            line += [_cell(got.get(k), "s") for k in ("ttft_s", "e2el_s", "all_ttft_mean_s", "all_e2el_mean_s")]
        body.append(line)
    print_table(header, body, right=range(3, len(header)))


def _cell(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return f"{value:.1%}"
    if unit == "s":
        return show(value, "s") if value >= 1 else show(value * 1e3, "ms")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
