"""The fleet at run time: gateway, pools and replicas, wired to a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from fleetsim.engine.batch import Batch
from fleetsim.engine.replica import Replica
from fleetsim.errors import LawError, PolicyError
from fleetsim.fleet.pool import Pool, describe_pool
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.routing.api import FleetView, Reject, RequestView, Router
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import REJECTED, UNFINISHED, Request, Workload


class Group:
    """The replicas that serve one LLM, with the router in front of them."""

    __slots__ = ("capacity_tokens", "replicas", "router", "view")

    def __init__(self, replicas: Sequence[Replica], pools: Sequence[Pool], view: FleetView, router: Router) -> None:
        self.replicas = tuple(replicas)
        self.capacity_tokens = tuple(pool.capacity_tokens for pool in pools)
        self.view = view
        self.router: Any = router
        """Not trusted to keep its Protocol: where this module is compiled, a `Router` here would have its answers converted."""


class Fleet:
    """Takes requests from a workload, lets the router choose, and reports each request when it ends.

    Parameters
    ----------
    scenario : Scenario
        The validated scenario.
    base_dir : Path
        Where relative paths begin.
    clock : Clock
        The event queue.
    streams : Streams
        Named random streams; routers draw from ``router.<LLM>``.
    on_end : callable
        Called with every request that reached a terminal state.
    verify_every : int
        Recount all books at every n-th boundary of each replica; 0 never.
    """

    def __init__(
        self,
        scenario: Scenario,
        base_dir: Path,
        clock: Clock,
        streams: Streams,
        on_end: Callable[[Request], None],
        verify_every: int = 0,
    ) -> None:
        self.clock = clock
        self.on_end = on_end
        self.pools = [describe_pool(config, index, base_dir) for index, config in enumerate(scenario.pools)]
        self.replicas: list[Replica] = []
        self.pool_of: list[Pool] = []
        self.arrived = 0
        self.ended = 0
        self.last_end_s = 0.0
        self.exhausted = False
        """Whether the workload has no more arrivals of its own."""
        self.expected = 0
        """Later turns that have been released and have not arrived yet."""
        self.sent = [0] * len(self.pools)
        """Requests sent to each pool."""
        self.finished = [0] * len(self.pools)
        """Requests of each pool that finished."""
        self._verify_every = verify_every
        for pool in self.pools:
            self._build(pool)
        self._pool_index = [pool.index for pool in self.pool_of]
        self._groups: dict[str | None, Group] = {}
        self._views: list[list[tuple[FleetView, int]]] = [[] for _ in self.replicas]
        """The views in which each replica counts, and its number there."""
        self._scenario = scenario
        self._streams = streams
        self._workload: Workload | None = None
        self._source: Iterator[Request] = iter(())
        self._next: Request | None = None
        self._view = RequestView(Request(-1, 0.0, 1, 1))
        slo = scenario.slo
        self._ttft_limit_s = inf if slo is None or slo.ttft is None else slo.ttft
        classes = {} if slo is None else slo.classes
        self._priority = {name: block.priority for name, block in scenario.classes.items()}
        self._weight = {name: block.weight for name, block in scenario.tenants.items()}
        self._class_ttft_limit_s = {k: inf if limits.ttft is None else limits.ttft for k, limits in classes.items()}

    # --- construction ------------------------------------------------------------------------------------------------

    def _build(self, pool: Pool) -> None:
        config, engine = pool.config, pool.config.engine
        scheduler = engine.scheduler.create()
        for _ in range(config.replicas):
            batches = [
                Batch(pool.capacity_blocks, engine.kv.block_tokens, engine.prefix_cache, engine.kv.retain_unmatched)
                for _ in range(config.parallelism.dp)
            ]
            replica = Replica(
                len(self.replicas),
                self.clock,
                pool.model,
                scheduler,
                batches,
                pool.gaps,
                self._finished,
                engine.step_by_step,
                self._verify_every,
            )
            self.replicas.append(replica)
            self.pool_of.append(pool)
            pool.replicas.append(replica)

    def _group(self, model: str | None) -> Group:
        """Replicas for requests that ask for `model` (a catalogue name); all replicas where they ask for none."""
        group = self._groups.get(model)
        if group is None:
            chosen = [i for i, pool in enumerate(self.pool_of) if model is None or pool.llm.name == model]
            view = FleetView([self.pool_of[i].name for i in chosen], [self.pool_of[i].capacity_tokens for i in chosen])
            for position, i in enumerate(chosen):
                if self._views[i]:
                    view.begin_like(position, *self._views[i][0])
            rng = self._streams.get(f"router.{model or ''}")
            router = self._scenario.gateway.router.create(rng, view) if chosen else _NOBODY
            group = Group([self.replicas[i] for i in chosen], [self.pool_of[i] for i in chosen], view, router)
            self._groups[model] = group
            for position, i in enumerate(chosen):
                self._views[i].append((view, position))
                if view.by_work is not None:
                    self.replicas[i].on_first_token = self._started
        return group

    # --- arrivals ----------------------------------------------------------------------------------------------------

    def feed(self, workload: Workload) -> None:
        """Begin to take requests from `workload`: one pending arrival at a time."""
        self._workload = workload
        self._source = workload.requests()
        self.clock.on_arrival = self._arrival
        self._pull()

    def _pull(self) -> None:
        """Wait for the next arrival."""
        request = next(self._source, None)
        self._next = request
        if request is None:
            self.exhausted = True
            self.clock.arrival_s = inf
        else:
            self.clock.arrival_s = request.arrival_s

    def _arrival(self) -> None:
        request = self._next
        assert request is not None
        self._admit(request)
        self._pull()

    def _admit(self, request: Request) -> None:
        """Let the router choose a replica and send the request there."""
        self.arrived += 1
        group = self._groups.get(request.model) or self._group(request.model)
        view = group.view
        limit_s = self._ttft_limit_s
        if request.klass is not None:
            limit_s = self._class_ttft_limit_s.get(request.klass, limit_s)
        request.deadline_s = request.arrival_s + limit_s
        if self._priority:
            request.priority = self._priority.get(request.klass or "", 0)
        if self._weight:
            request.weight = self._weight.get(request.tenant or "", 1.0)
        self._view._request = request
        view.now_s = self.clock.now_s
        decision = group.router.route(self._view)
        if isinstance(decision, Reject):
            self._reject(request, decision.reason)
            return
        if type(decision) is not int or not 0 <= decision < len(group.replicas):
            raise PolicyError(
                f"router answered {decision!r} for request {request.id}; there are {len(group.replicas)} replicas"
            )
        prompt_tokens = request.prompt_tokens
        if prompt_tokens + request.output_tokens > group.capacity_tokens[decision]:
            self._reject(request, "longer than the KV cache")
            return
        replica = group.replicas[decision]
        index = replica.index
        request.replica = index
        self.sent[self._pool_index[index]] += 1
        for seen, position in self._views[index]:
            seen.sent(position, prompt_tokens)
        replica.enqueue(request, view.now_s + replica.model.frontend_s)

    # --- what happens to requests --------------------------------------------------------------------------------------

    def _started(self, request: Request) -> None:
        for view, position in self._views[request.replica]:
            view.started(position, request.prompt_tokens)

    def _finished(self, request: Request) -> None:
        index = request.replica
        for view, position in self._views[index]:
            view.ended(position, request.prompt_tokens)
        self.finished[self._pool_index[index]] += 1
        self._end(request)

    def _reject(self, request: Request, reason: str) -> None:
        request.status = REJECTED
        request.reason = reason
        request.end_s = self.clock.now_s
        self._end(request)

    def _end(self, request: Request) -> None:
        self.ended += 1
        self.last_end_s = self.clock.now_s
        self.on_end(request)
        if self._workload is not None:
            follower = self._workload.released_by(request, self.clock.now_s)
            if follower is not None:
                self.expected += 1
                self.clock.at(follower.arrival_s, partial(self._admit_later_turn, follower))

    def _admit_later_turn(self, request: Request) -> None:
        self.expected -= 1
        self._admit(request)

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that arrived and have not ended."""
        return self.arrived - self.ended

    def stop(self) -> None:
        """End the run here: what waits or runs is unfinished."""
        self._workload = None
        now_s = self.clock.now_s
        for replica in self.replicas:
            for request in replica.stop(now_s):
                request.status = UNFINISHED
                self.ended += 1
                self.on_end(request)

    def verify_conservation(self) -> None:
        """Check that every request that arrived has ended: always, since a row would be missing without a word.

        Raises
        ------
        LawError
            If a request was lost.
        """
        if self.in_flight:
            raise LawError(f"law 1 (conservation): {self.arrived} requests arrived, {self.ended} ended")

    def verify(self, end_s: float) -> None:
        """Check the laws that hold at the end of a run.

        Raises
        ------
        LawError
            If one does not.
        """
        self.verify_conservation()
        for replica in self.replicas:
            meter = replica.meter(end_s)
            if not -1e-9 <= meter.busy_s <= end_s * (1 + 1e-9) + 1e-9:
                raise LawError(f"law 4 (busy time): replica {replica.index} busy {meter.busy_s} s of {end_s} s")
            for batch in replica.batches:
                batch.verify()
                if batch.cache.used and not batch.running:
                    raise LawError(f"law 3 (KV blocks): replica {replica.index} leaks {batch.cache.used} blocks")


class _Nobody:
    """Stands where no pool serves the LLM that was asked for."""

    def route(self, request: RequestView) -> Reject:
        return Reject("no pool serves this model")


_NOBODY = _Nobody()
