"""Carbon and accuracy of a fleet of several LLMs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetsim.reproduce.functions import figure_of_run

if TYPE_CHECKING:
    from fleetsim.experiment.run import Result


@figure_of_run
def accuracy(result: Result, table: Mapping[str, Mapping[str, float]]) -> float:
    """Mean chance of a right answer over the requests that were finished, in points of a hundred.

    Parameters
    ----------
    table : mapping
        Chance by pool and class.
    """
    rows = result.requests().select(["pool", "class", "status"]).to_pylist()
    chances = [table[row["pool"]][row["class"]] for row in rows if row["status"] == "finished"]
    return 100.0 * sum(chances) / len(chances)
