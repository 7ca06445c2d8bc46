"""Why a request went where it went: what the view showed of each candidate, and what the router said of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from fleetsim.routing.api import FleetView, Hold, Reject, RequestView, Route
from fleetsim.routing.inner import explained

MOST = 64
"""In larger fleets only the candidates that the router names stand in the log, and the chosen one."""


class DecisionLog:
    """Decisions about some requests, one row per decision and candidate.

    Parameters
    ----------
    requests : iterable of int
        Ids of the requests whose decisions are kept.
    """

    def __init__(self, requests: Iterable[int]) -> None:
        self.requests = frozenset(requests)
        self.rows: list[dict[str, Any]] = []
        """Of each decision and candidate: request_id, attempt, time_s, router, candidate (number over the fleet), pool, chosen,
        outcome (of the decision), what the view showed (None where nobody watched it), and the router's figures as JSON."""

    def candidates(
        self,
        router: Any,
        view: FleetView,
        request: RequestView,
        figures: Mapping[int, Mapping[str, float]] | None = None,
    ) -> list[dict[str, Any]]:
        """What is known before the decision, with the router's `figures` if they are known already; changes nothing."""
        if figures is None:
            figures = explained(router, request)
        positions: Iterable[int] = range(view.count)
        if view.count > MOST:
            positions = sorted(figures)
        return [_row(view, position, request, figures.get(position, {})) for position in positions]

    def note(
        self,
        router: Any,
        view: FleetView,
        request: RequestView,
        candidates: list[dict[str, Any]],
        answer: Any,
    ) -> None:
        """Note the decision; `candidates` as they were before it."""
        chosen = -1
        outcome = "sent"
        if isinstance(answer, Reject):
            outcome = f"rejected: {answer.reason}"
        elif isinstance(answer, Hold):
            outcome = "held"
        else:
            chosen = answer.replica if isinstance(answer, Route) else answer
            if not 0 <= chosen < view.count:
                return  # the gateway will say so
            if all(row["candidate"] != view.numbers[chosen] for row in candidates):
                candidates = [*candidates, _row(view, chosen, request, {})]
        said: Mapping[str, float] = router.said() if hasattr(router, "said") else {}
        if isinstance(answer, Route):
            limits = {"hedge_after_s": answer.hedge_after_s, "retry_after_s": answer.retry_after_s}
            said = {**said, **{name: value for name, value in limits.items() if isfinite(value)}}
        about = {
            "request_id": request.id,
            "attempt": request.attempt,
            "time_s": view.now_s,
            "router": type(router).__name__,
            "outcome": outcome,
            "said": json.dumps(dict(said)),
        }
        for row in candidates:
            self.rows.append({**about, **row, "chosen": chosen >= 0 and row["candidate"] == view.numbers[chosen]})


def _row(view: FleetView, position: int, request: RequestView, figures: Mapping[str, float]) -> dict[str, Any]:
    """What the view shows of one replica."""
    board = view.board
    if board is not None:
        board.look(position)
    hit = view.known_hit_tokens(position, request)
    prefill_s = ttft_s = None
    if view.has_telemetry:
        prefill_s = view.prefill_s(position, request.prompt_tokens - (hit or 0), hit or 0)
        if board is not None:
            ttft_s = view.ttft_s(position, request.prompt_tokens, hit or 0)
    return {
        "candidate": view.numbers[position],
        "pool": view.pools[position],
        "outstanding": view.outstanding[position],
        "waiting": None if board is None else board.waiting[position],
        "running": None if board is None else board.running[position],
        "kv_used_ratio": None if board is None else view.kv_used(position),
        "pending_tokens": None if board is None else board.pending_tokens[position],
        "hit_tokens": hit,
        "prefill_s": prefill_s,
        "ttft_s": ttft_s,
        "figures": json.dumps(dict(figures)),
    }
