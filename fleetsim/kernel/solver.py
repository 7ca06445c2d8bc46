"""Integer programs, solved so that equal programs have equal answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pulp


def solve(problem: pulp.LpProblem, nodes: int | None = None, gap: float | None = None) -> bool:
    """Solve a program by HiGHS on one thread, saying nothing; whether it found an answer.

    Parameters
    ----------
    problem : LpProblem
        The program; its variables have values afterwards.
    nodes : int, optional
        Nodes of the search at most. A limit of time would make answers depend on the machine.
    gap : float, optional
        Relative distance to the best answer that will do.
    """
    import pulp

    limits = {} if nodes is None else {"mip_max_nodes": nodes}
    with quiet():
        status = problem.solve(pulp.HiGHS(msg=False, threads=1, gapRel=gap, **limits))
    return bool(status == pulp.LpStatusOptimal)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what HiGHS prints about itself, whatever it is told, off the standard output, where answers are read from."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
