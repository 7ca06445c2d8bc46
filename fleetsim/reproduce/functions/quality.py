"""How good the answers of a fleet of several models were."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fleetsim.experiment.run import Result
from fleetsim.reproduce.functions import figure_of_run


@figure_of_run
def mean_quality(result: Result, pools: Mapping[str, float]) -> float:
    """Mean over all requests of the quality of the pool that answered; none for requests without an answer."""
    table = result.requests()
    names, states = table["pool"].cast("string").to_pylist(), table["status"].cast("string").to_pylist()
    return float(np.mean([pools[n] if s == "finished" else 0.0 for n, s in zip(names, states, strict=True)]))
