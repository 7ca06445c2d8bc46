"""Checker of search policies."""

from __future__ import annotations

from time import perf_counter_ns

import numpy as np

from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.searches.api import Leaves

_TREES = ((1, 1), (1, 16), (2, 1), (7, 16), (16, 16), (60, 40), (256, 256))
"""Numbers of leaves and widths that a policy must cope with."""
_COSTS = (16, 64, 256)
"""Widths at which its cost is measured, with as many leaves."""


def check_search(policy: type | str, config: Config = None) -> Report:
    """Try a search policy on trees of 1 to 256 leaves.

    Checked are: every answer has a number for each leaf, none below zero, and no more in all than the width; some leaf goes on;
    another instance gives equal answers about equal trees; what the policy is shown is left as it is.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per decision at widths of 16, 64 and 256.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("searches", policy, config, ["continuations"])
    decision_s = getattr(checked.create(), "decision_s", None)
    if not isinstance(decision_s, int | float) or not 0 <= decision_s < float("inf"):
        checked.fail(f"`decision_s` is {decision_s!r}: the seconds that a decision takes, 0 or more")
    for seed, (count, width) in enumerate(_TREES):
        answer = _answer(checked, tree(count, width, seed))
        if not sum(answer):
            checked.fail(f"gives up all {count} leaves of a tree with {width} continuations to hand out")
        if _answer(checked, tree(count, width, seed)) != answer:
            checked.fail(f"decides otherwise about the same tree of {count} leaves")
    checked.passed("every answer has a number for each leaf, within the width, and some leaf goes on")
    checked.passed("equal trees give equal answers")
    checked.passed("leaves are left as they are")
    return checked.report({f"width {width}": _us(checked, width) for width in _COSTS})


def tree(count: int, width: int, seed: int) -> Leaves:
    """Leaves at depth three of a random tree, in half as many clusters as there are leaves."""
    rng = np.random.default_rng([seed, 29])
    first = rng.integers(0, max(count // 4, 1), count)
    second = 1000 + first * 4 + rng.integers(0, 4, count)
    centres = np.linalg.qr(rng.standard_normal((max(count // 2, 8),) * 2))[0]
    embeddings = centres[rng.integers(0, max(count // 2, 1), count)] + 1e-3 * rng.standard_normal(len(centres))
    rewards = rng.random(count)
    for values in (rewards, embeddings):
        values.flags.writeable = False
    return Leaves(rewards, list(zip(first.tolist(), second.tolist(), strict=True)), embeddings, width)


def _answer(checked: Policy, leaves: Leaves) -> list[int]:
    """What a new instance says, held to the rules."""
    paths = list(leaves.paths)
    searching = checked.create()
    with checked.complaining(f"fails on a tree of {len(paths)} leaves"):
        answer = list(searching.continuations(leaves))
    checked.decisions += 1
    told = f"of {len(paths)} leaves with {leaves.width} continuations to hand out"
    if len(answer) != len(paths):
        checked.fail(f"answers {len(answer)} numbers {told}")
    if not all(isinstance(count, int | np.integer) and count >= 0 for count in answer):
        checked.fail(f"answers {answer[:10]} {told}: whole numbers, 0 or more, are meant")
    if sum(answer) > leaves.width:
        checked.fail(f"hands out {sum(answer)} continuations {told}")
    if leaves.paths != paths:
        checked.fail("changes the paths that it is shown")
    return [int(count) for count in answer]


def _us(checked: Policy, width: int) -> float:
    """Time of a decision about as many leaves as the width [µs]."""
    searching, leaves = checked.create(), tree(width, width, width)
    searching.continuations(leaves)
    started = perf_counter_ns()
    searching.continuations(leaves)
    return (perf_counter_ns() - started) / 1e3
