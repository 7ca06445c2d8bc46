"""Power of a fleet over time: how fast it rises, and its quantiles."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from fleetsim.reproduce.functions import figure_of_run

if TYPE_CHECKING:
    from fleetsim.experiment.run import Result


@figure_of_run
def largest_rise(result: Result, budget_w: float, warmup_s: float = 60.0) -> float:
    """Largest rise of the site's power from one interval of the fleet table to the next, over a row's budget.

    Parameters
    ----------
    result : Result
        With `run.interval` as long as the time over which the rise counts.
    budget_w : float
        Power that the row may take [W].
    warmup_s : float
        Left out at the beginning and at the end, where the fleet fills and empties [s].
    """
    watts = _watts(result, "site_power_w")
    end_s = max(watts) - warmup_s
    course = [power for start_s, power in sorted(watts.items()) if warmup_s <= start_s <= end_s]
    return max(after - before for before, after in itertools.pairwise(course)) / budget_w


@figure_of_run
def quantile(result: Result, level: float) -> float:
    """Quantile over the intervals of the fleet table of the accelerators' power [W].

    Parameters
    ----------
    level : float
        From 0 to 1.
    """
    return float(np.quantile(list(_watts(result, "power_w").values()), level))


def _watts(result: Result, column: str) -> dict[float, float]:
    """Power of all pools by the beginning of the interval."""
    watts: dict[float, float] = defaultdict(float)
    for row in result.table("fleet").select(["start_s", column]).to_pylist():
        watts[row["start_s"]] += row[column]
    return watts
