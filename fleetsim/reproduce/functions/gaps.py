"""Figures of the gaps between tokens that the summary does not have."""

from __future__ import annotations

import numpy as np

from fleetsim.experiment.run import Result
from fleetsim.reproduce.functions import figure_of_run


@figure_of_run
def percentile(result: Result, ratio: float) -> float:
    """Gap that a share of all gaps between tokens does not exceed [s], to 1 %."""
    table = result.table("gaps").group_by("high_s").aggregate([("count", "sum")]).sort_by("high_s")
    reached = np.cumsum(table["count_sum"].to_numpy())
    return float(table["high_s"].to_numpy()[np.searchsorted(reached, ratio * reached[-1])])
