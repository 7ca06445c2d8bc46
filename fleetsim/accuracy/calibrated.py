"""Served points before and after fitting: without anything fitted to them, and with two numbers fitted to each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from fleetsim.accuracy import served

HOST_STEP_S, SCALE_STEP = 0.3e-3, 0.03
"""Changes by which the effect of either number is found."""

UNFITTED = """\
engine:
  host: {value: 0.9, unit: ms, source: llmservingsim}
  host_async: {value: 0.9, unit: ms, source: llmservingsim}
  host_per_sequence: {value: 0, unit: us, source: llmservingsim}
  eager_per_layer: {value: 0, unit: us, source: llmservingsim}
  scale: {value: 1, unit: ratio, source: llmservingsim}
"""
"""An engine of which nothing is known but the host's time per step in a whole vLLM run on another chip."""


UNTOUCHED = {"expert_spread": 0.0, "prompt_scale": 1.0}
"""Options that were fitted to served points, as they were before."""


@contextmanager
def unfitted() -> Iterator[str]:
    """Name of a calibration file for an engine that nothing was fitted to."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "unfitted.yaml")
        path.write_text(UNFITTED, encoding="utf-8")
        yield str(path)


def predictions(rows: pd.DataFrame) -> pd.DataFrame:
    """``tpot_ms`` and ``ttft_ms`` of rows, and ``unfitted_tpot_ms`` with an engine that nothing was fitted to."""
    records = rows.to_dict("records")
    found = [served.serve(row) for row in records]
    with unfitted() as path:
        bare = [served.serve(row, UNTOUCHED, path).tpot_ms for row in records]
    return pd.DataFrame(
        {
            "tpot_ms": [f.tpot_ms for f in found],
            "ttft_ms": [f.ttft_ms for f in found],
            "unfitted_tpot_ms": bare,
        },
        index=rows.index,
    )


def calibrated(rows: pd.DataFrame) -> np.ndarray:
    """TPOT [ms] of every second row of a group, with the host's time and the scale fitted to the others; NaN for those.

    Both are found from how the logarithm of the simulated times changes with them, then the rows are simulated anew.
    """
    records = rows.to_dict("records")
    train, test = range(0, len(records), 2), range(1, len(records), 2)
    host_s, scale = _fit([records[i] for i in train])
    result = np.full(len(records), np.nan)
    for i in test:
        result[i] = served.serve(records[i], _options(host_s, scale)).tpot_ms
    return result


def _options(host_s: float, scale: float) -> dict[str, Any]:
    return {"host": f"{host_s} s", "scale": scale}


def _fit(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    measured = np.array([row["tpot_ms"] for row in records])
    host_s, scale = 0.5e-3, 1.0

    def simulated(host_s: float, scale: float) -> np.ndarray:
        return np.log([served.serve(row, _options(host_s, scale)).tpot_ms for row in records])

    for _ in range(2):
        base = simulated(host_s, scale)
        by_host = (simulated(host_s + HOST_STEP_S, scale) - base) / HOST_STEP_S
        by_scale = (simulated(host_s, scale + SCALE_STEP) - base) / SCALE_STEP
        known = np.isfinite(base + by_host + by_scale)
        error = (base - np.log(measured))[known]
        slopes = np.stack([by_host * 1e-3, by_scale], axis=1)[known]
        solved = least_squares(
            lambda x, error=error, slopes=slopes: error + slopes @ x,
            np.zeros(2),
            bounds=([-host_s * 1e3 - 1e-9, 0.5 - scale], [5.0, 1.0]),
            loss="soft_l1",
            f_scale=0.02,
        )
        host_s, scale = max(host_s + solved.x[0] * 1e-3, 0.0), scale + solved.x[1]
    return host_s, scale
