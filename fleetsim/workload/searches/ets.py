"""Efficient tree search: which leaves go on is an integer program that rewards shared paths and different meanings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fleetsim.kernel.solver import solve
from fleetsim.plugins import PolicyConfig
from fleetsim.units import SecondsOrZero
from fleetsim.workload.searches.api import Floats, Leaves
from fleetsim.workload.searches.rebase import Temperature, balanced

Weight = Annotated[float, Field(ge=0, le=1000)]


class EtsConfig(PolicyConfig):
    """Parameters of efficient tree search."""

    sharing: Weight = 1.0
    """Weight of the share of the tree's steps that must be kept (lambda_c): larger prunes more."""
    diversity: Weight = 1.45
    """Weight of the share of clusters that keep a leaf (lambda_s). The authors took 1.5, 1.4 and 1.45 at widths 16, 64 and 256."""
    temperature: Temperature = 0.2
    """Of the softmax over rewards."""
    cut: Annotated[float, Field(ge=0, le=2)] = 0.05
    """Cosine distance below which leaves' last steps are the same in meaning."""
    embedding: SecondsOrZero = 0.02
    """Time to embed the last steps of a depth, in one batch."""
    solver: SecondsOrZero = 0.1
    """Time charged for solving the integer program; what this machine takes for it never enters a result."""


class Ets:
    """Efficient tree search: drops leaves whose paths cost KV cache, unless they alone mean something.

    Rule: with O the shares that reward-balanced search would give to the N leaves, M the steps on their paths and K clusters of
    leaves by the embedding of their last steps (average linkage, cosine distance below `cut`), an integer program maximises
    ``sum O_i x_i - sharing (sum y_j + sum x_i) / (M + N) + diversity / K sum c_k`` over which leaves x and steps y are kept and
    which clusters c are covered; a leaf needs all steps on its path, and one leaf at least is kept. Then reward-balanced search
    hands out the width among the leaves kept.

    Charged: `embedding` and `solver` after the last reward. The program is solved to optimality by HiGHS on one thread, so that
    equal scenarios give equal trees.

    References
    ----------
    C. Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", 2025, arXiv:2502.13575.
    """

    Config: ClassVar = EtsConfig

    def __init__(self, config: EtsConfig) -> None:
        self.config = config
        self.decision_s = config.embedding + config.solver

    def continuations(self, leaves: Leaves) -> list[int]:
        """How many next steps to sample from each leaf."""
        config = self.config
        shares = np.array(balanced(leaves.rewards, leaves.width, config.temperature), dtype=np.float64)
        clusters = clusters_of(leaves.embeddings, config.cut)
        kept = kept_leaves(shares / shares.sum(), leaves.paths, clusters, config.sharing, config.diversity)
        counts = [0] * len(leaves.rewards)
        for leaf, count in zip(kept, balanced(leaves.rewards[kept], leaves.width, config.temperature), strict=True):
            counts[leaf] = count
        return counts


def clusters_of(embeddings: Floats, cut: float) -> list[int]:
    """Cluster of each row, numbered from 0: average linkage on cosine distance, cut at `cut`."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(embeddings) == 1:
        return [0]
    numbers = fcluster(linkage(embeddings, method="average", metric="cosine"), t=cut, criterion="distance")
    clusters: list[int] = (numbers - 1).tolist()
    return clusters


def kept_leaves(
    shares: Floats, paths: Sequence[tuple[int, ...]], clusters: Sequence[int], sharing: float, diversity: float
) -> list[int]:
    """Leaves that the integer program keeps, by number.

    Parameters
    ----------
    shares : array
        O, one per leaf, of sum 1.
    paths : sequence of tuple
        Steps above each leaf.
    clusters : sequence of int
        Cluster of each leaf, from 0.
    sharing, diversity : float
        Weights of the terms.
    """
    import pulp

    below: defaultdict[int, list[int]] = defaultdict(list)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for leaf, (path, cluster) in enumerate(zip(paths, clusters, strict=True)):
        members[cluster].append(leaf)
        for step in path:
            below[step].append(leaf)
    problem = pulp.LpProblem("ets", pulp.LpMaximize)
    x = [problem.add_variable(f"x{leaf}", cat=pulp.LpBinary) for leaf in range(len(shares))]
    y = {step: problem.add_variable(f"y{step}", cat=pulp.LpBinary) for step in below}
    covered = {cluster: problem.add_variable(f"c{cluster}", cat=pulp.LpBinary) for cluster in members}
    price = sharing / (len(x) + len(y))
    gains = [(x[leaf], float(share) - price) for leaf, share in enumerate(shares)]
    gains += [(step, -price) for step in y.values()]
    gains += [(cluster, diversity / len(covered)) for cluster in covered.values()]
    problem += pulp.LpAffineExpression(gains)
    for step, leaves in below.items():
        for leaf in leaves:
            problem += x[leaf] <= y[step]
        problem += y[step] <= pulp.lpSum([x[leaf] for leaf in leaves])
    for cluster, leaves in members.items():
        problem += covered[cluster] <= pulp.lpSum([x[leaf] for leaf in leaves])
    problem += pulp.lpSum(x) >= 1
    if not solve(problem):
        raise RuntimeError(f"the integer program of a search ended as {pulp.LpStatus[problem.status]}")
    return [leaf for leaf, variable in enumerate(x) if variable.value() > 0.5]
