"""Tree search guided by a reward model: every depth of a problem's tree is a burst of requests that share their paths' tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetsim.errors import PolicyError
from fleetsim.scenario import schema
from fleetsim.workload.lengths import length_source
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.request import FINISHED, Request
from fleetsim.workload.searches.api import Leaves, Search
from fleetsim.workload.searches.rebase import balanced

if TYPE_CHECKING:
    from fleetsim.kernel.streams import Streams

_STEPS = 1 << 20
"""Content streams of one problem: the question and each step of its tree."""
_MEANINGS = 32
"""Dimensions of a step's embedding."""
_NEARNESS = 0.01
"""Noise on each dimension of an embedding around its cluster's unit vector: cosine distances of about 0.003 within a cluster, far
below any cut in use, and about 1 between clusters."""
_TEMPERATURE = 0.2
"""Of the softmax by which the share of reward that a policy keeps is told, whatever the policy."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of a tree: what one request writes."""

    number: int
    path: tuple[Step, ...]
    """Steps before it, from the question on."""
    tokens: int
    tokens_before: int
    """Of the question and the path: its prompt."""
    runs: tuple[tuple[int, int], ...]
    """The same as runs of content streams."""
    reward: float
    cluster: int
    embedding: np.ndarray[Any, np.dtype[np.float64]]
    final: bool
    """Whether it ends in an answer."""


@dataclass(slots=True)
class Problem:
    """A question, and the state of its search."""

    number: int
    started_s: float
    width: int
    rng: np.random.Generator
    question_tokens: int
    steps: int = 0
    writing: dict[int, Step] = field(default_factory=dict)
    """Steps that are being written, by request."""
    written: list[Step] = field(default_factory=list)


class TreeSearch:
    """Problems that are solved by searching a tree of steps, a fixed number of them at a time.

    Every depth sends one request per continuation; its prompt is the question and the steps above, so that the prefix cache holds
    each step once. When all of a depth have ended, the reward model scores them (one problem after the other: it is one server),
    the policy chooses, and the next depth starts. A step's reward is its parent's plus noise, its meaning one of as many clusters
    as a share of the leaves says. A request that is turned away or fails takes its leaf with it.
    """

    skipped_rows = 0

    def __init__(self, config: schema.TreeSearchWorkload, streams: Streams) -> None:
        self._config, self._streams = config, streams
        self._search: Search = config.search.create()
        self._questions = length_source(config.prompt_tokens, streams.get("workload.prompt_tokens"))
        self._contents = streams.contents
        self._live: dict[int, Problem] = {}
        self._started = self._sent = 0
        self._scorer_free_s = 0.0
        self._times_s: list[float] = []
        self._kept: list[tuple[float, float, float, float]] = []

    def requests(self) -> Iterator[Request]:
        """The first depth of the problems that are searched first."""
        for _ in range(self._config.concurrency):
            yield from self._start(0.0)

    def released_by(self, request: Request, now_s: float) -> list[Request] | None:
        """The problem's next depth, or the next problem's first, where `request` was the last of its depth."""
        problem = self._live[request.session]
        step = problem.writing.pop(request.id)
        if request.status == FINISHED:
            problem.written.append(step)
        return None if problem.writing else self._next_depth(problem, now_s)

    def figures(self) -> dict[str, float | int | None]:
        """What the summary says about the searches, beside the figures of their requests."""
        kept, rewards, coverage, leaves = np.mean(self._kept, axis=0).tolist() if self._kept else [None] * 4
        return {
            "search_problems": len(self._times_s),
            "search_problem_mean_s": float(np.mean(self._times_s)) if self._times_s else None,
            "search_depths": len(self._kept),
            "search_kept_kv_tokens_mean": kept,
            "search_kept_reward_mean_ratio": rewards,
            "search_kept_clusters_mean_ratio": coverage,
            "search_kept_leaves_mean": leaves,
        }

    # --- problems ----------------------------------------------------------------------------------------------------

    def _start(self, now_s: float) -> list[Request]:
        """First depth of the next problem, if there is one."""
        if self._started == self._config.problems:
            return []
        number = self._started
        self._started += 1
        rng = self._streams.get(f"workload.problem.{number}")
        problem = Problem(number, now_s, self._config.width, rng, int(self._questions(1)[0]))
        self._live[number] = problem
        return self._grow(problem, [(None, self._config.width)], now_s)

    def _next_depth(self, problem: Problem, now_s: float) -> list[Request]:
        """Score what was written, let the policy choose, and send the steps that it asks for."""
        leaves = sorted(problem.written, key=lambda step: step.number)
        problem.written = []
        scored_s = max(now_s, self._scorer_free_s) + sum(leaf.tokens for leaf in leaves) * self._config.reward_per_token
        self._scorer_free_s = scored_s
        open_leaves = [leaf for leaf in leaves if not leaf.final]
        problem.width -= len(leaves) - len(open_leaves)
        chosen: list[tuple[Step | None, int]] = []
        if open_leaves and problem.width > 0:
            scored_s += self._search.decision_s
            chosen = [(leaf, count) for leaf, count in self._choose(problem, open_leaves) if count]
        if chosen:
            return self._grow(problem, chosen, scored_s)
        del self._live[problem.number]
        self._times_s.append(scored_s - problem.started_s)
        return self._start(scored_s)

    def _choose(self, problem: Problem, leaves: list[Step]) -> list[tuple[Step, int]]:
        """Continuations of each leaf by the policy, which is held to the width; what it keeps is measured."""
        rewards = np.array([leaf.reward for leaf in leaves])
        paths = [tuple([step.number for step in leaf.path]) for leaf in leaves]
        seen = Leaves(rewards, paths, np.array([leaf.embedding for leaf in leaves]), problem.width)
        counts = list(self._search.continuations(seen))
        if len(counts) != len(leaves) or sum(counts) > problem.width or any(count < 0 for count in counts):
            raise PolicyError(
                f"search answered {sum(counts)} continuations of {len(counts)} leaves; "
                f"there are {len(leaves)} leaves and {problem.width} continuations"
            )
        kept = [leaf for leaf, count in zip(leaves, counts, strict=True) if count]
        shares = balanced(rewards, problem.width, _TEMPERATURE)
        share = sum(share for share, count in zip(shares, counts, strict=True) if count) / sum(shares)
        nodes = {step.number: step.tokens for leaf in kept for step in (*leaf.path, leaf)}
        tokens = problem.question_tokens + sum(nodes.values())
        clusters = len({leaf.cluster for leaf in kept}) / len({leaf.cluster for leaf in leaves})
        self._kept.append((tokens, share, clusters, len(kept)))
        return list(zip(leaves, counts, strict=True))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _grow(self, problem: Problem, chosen: list[tuple[Step | None, int]], now_s: float) -> list[Request]:
        """Requests for the next steps below each leaf, in order of leaves."""
        config, rng = self._config, problem.rng
        parents = [leaf for leaf, count in chosen for _ in range(count)]
        count = len(parents)
        lengths = length_source(config.step_tokens, rng)(count).tolist()
        noise = rng.standard_normal(count) * config.reward_noise
        ends = rng.random(count) < config.answer_ratio
        share = rng.uniform(config.clusters_min_ratio, config.clusters_max_ratio)
        clusters = rng.integers(max(1, round(share * count)), size=count)
        centres = rng.standard_normal((int(clusters.max()) + 1, _MEANINGS))
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        embeddings = centres[clusters] + rng.standard_normal((count, _MEANINGS)) * _NEARNESS
        requests = []
        for place, parent in enumerate(parents):
            before, path, runs = self._above(problem, parent)
            room = config.max_tokens - (before - problem.question_tokens)
            reward = (config.first_reward if parent is None else parent.reward) + noise[place]
            step = Step(
                number=problem.steps,
                path=path,
                tokens=min(lengths[place], room),
                tokens_before=before,
                runs=runs,
                reward=float(min(max(reward, 0.0), 1.0)),
                cluster=int(clusters[place]),
                embedding=embeddings[place],
                final=bool(ends[place]) or lengths[place] >= room,
            )
            problem.steps += 1
            requests.append(self._request(problem, step, now_s))
        return requests

    def _above(
        self, problem: Problem, parent: Step | None
    ) -> tuple[int, tuple[Step, ...], tuple[tuple[int, int], ...]]:
        """Tokens, steps and contents above the next step."""
        if parent is None:
            return problem.question_tokens, (), ((self._stream(problem, 0), problem.question_tokens),)
        runs = (*parent.runs, (self._stream(problem, parent.number + 1), parent.tokens))
        return parent.tokens_before + parent.tokens, (*parent.path, parent), runs

    def _request(self, problem: Problem, step: Step, now_s: float) -> Request:
        number = self._sent
        self._sent += 1
        problem.writing[number] = step
        content = Content((*step.runs, (self._stream(problem, step.number + 1), OPEN_END)))
        return Request(
            number,
            now_s,
            step.tokens_before,
            step.tokens,
            content,
            problem.number,
            len(step.path),
            None,
            None,
            self._config.model,
        )

    def _stream(self, problem: Problem, number: int) -> int:
        """Content stream of a step (from 1) or of the question (0)."""
        return self._contents + problem.number * _STEPS + number
