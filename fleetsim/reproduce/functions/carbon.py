"""Carbon and accuracy of a fleet of several LLMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@figure_of_run
def accuracy_by_llm(result: Result, table: Mapping[str, float]) -> float:
    """Mean chance of a right answer over the requests that were finished.

    Parameters
    ----------
    table : mapping
        Chance by LLM.
    """
    rows = result.requests().select(["model", "status"]).to_pylist()
    chances = [table[row["model"]] for row in rows if row["status"] == "finished"]
    return sum(chances) / len(chances)


@figure_of_run
def accuracy_by_grid(
    result: Result, table: Mapping[str, float], low_s: Sequence[float], high_s: Sequence[float]
) -> float:
    """Mean chance of a right answer between two times less that between two others, in points of a hundred: how it follows a grid.

    Parameters
    ----------
    table : mapping
        Chance by LLM.
    low_s, high_s : sequence of float
        Begin and end of the time with little carbon, and of that with much [s].
    """
    rows = result.requests().select(["arrival_s", "model", "status"]).to_pylist()
    means = []
    for begin_s, end_s in (low_s, high_s):
        came = [row for row in rows if begin_s <= row["arrival_s"] < end_s and row["status"] == "finished"]
        means.append(sum(table[row["model"]] for row in came) / len(came))
    return 100.0 * (means[0] - means[1])
