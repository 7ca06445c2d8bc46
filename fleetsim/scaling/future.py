"""What will come, for policies that say openly that they know it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fleetsim.scaling.forecasters.api import What
from fleetsim.workload.request import Request


class Future:
    """All arrivals of a workload that do not wait for others to end."""

    def __init__(self, requests: Iterable[Request]) -> None:
        rows = [(r.arrival_s, r.model, r.prompt_tokens, r.output_tokens) for r in requests]
        self._rows: dict[str | None, list[tuple[float, int, int]]] = {}
        for arrival_s, model, prompt, output in rows:
            self._rows.setdefault(model, []).append((arrival_s, prompt, output))
        self._sums: dict[tuple[str, What], tuple[np.ndarray, np.ndarray]] = {}

    def between(self, llm: str, what: What, from_s: float, to_s: float) -> float:
        """How much comes for an LLM, requests for any included, from one time until before another."""
        times, sums = self._summed(llm, what)
        first, last = np.searchsorted(times, (from_s, to_s)).tolist()
        return float(sums[last] - sums[first])

    def _summed(self, llm: str, what: What) -> tuple[np.ndarray, np.ndarray]:
        """Arrival times, and how much has come before each and after the last."""
        key = (llm, what)
        found = self._sums.get(key)
        if found is None:
            rows = sorted([*self._rows.get(llm, []), *self._rows.get(None, [])])
            column = {"requests": None, "prompt_tokens": 1, "output_tokens": 2}[what]
            values = [1.0 if column is None else float(row[column]) for row in rows]
            found = np.array([row[0] for row in rows]), np.concatenate(([0.0], np.cumsum(values)))
            self._sums[key] = found
        return found


class Known:
    """What of the future concerns one LLM."""

    def __init__(self, future: Future, llm: str) -> None:
        self._future, self._llm = future, llm

    def between(self, what: What, from_s: float, to_s: float) -> float:
        """How much comes from one time until before another."""
        return self._future.between(self._llm, what, from_s, to_s)
