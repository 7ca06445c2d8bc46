"""The gateway: admission, routing and dispatch of requests, and what becomes of them until they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from heapq import heapreplace
from math import inf
from typing import Any

from fleetsim.engine.batch import Parked
from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.encoding import Encoding
from fleetsim.fleet.handover import Fetch, Handover, gpu
from fleetsim.fleet.holding import Holding
from fleetsim.fleet.lending import Lending
from fleetsim.fleet.migration import Migration
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.presence import Presence
from fleetsim.fleet.probe import ReplicaProbe
from fleetsim.fleet.windows import Windows
from fleetsim.kernel.clock import Clock, Timer
from fleetsim.kernel.streams import Streams
from fleetsim.network.flows import Network
from fleetsim.routing.api import (
    ADMIT,
    Borrow,
    Defer,
    FleetView,
    Freshness,
    Hold,
    Migrate,
    MoveQueued,
    Recall,
    Reject,
    RequestView,
    Route,
)
from fleetsim.routing.decisions import DecisionLog
from fleetsim.scenario.schema import Scenario, View
from fleetsim.workload.request import (
    FINISHED,
    LOCAL,
    REJECTED,
    RUNNING,
    TIMED_OUT,
    UNDECIDED,
    UNFINISHED,
    WAITING,
    Request,
)


class Side:
    """Replicas that a router chooses from, and what it sees of them."""

    __slots__ = ("capacity_tokens", "prefills_only", "replicas", "router", "view")

    def __init__(self, replicas: Sequence[Replica], pools: Sequence[Pool], view: FleetView) -> None:
        self.replicas = tuple(replicas)
        self.capacity_tokens = tuple(pool.capacity_tokens for pool in pools)
        self.prefills_only = tuple(pool.config.role == "prefill" for pool in pools)
        self.view = view
        self.router: Any = _NOBODY
        """Not trusted to keep its Protocol: where this module is compiled, a `Router` here would have its answers converted."""


class Group:
    """Where requests for one LLM go: to be admitted, to have their prompts computed, and to have their answers computed."""

    __slots__ = (
        "admission",
        "collects",
        "decode",
        "delay_s",
        "encoders",
        "energy_j",
        "entry",
        "held",
        "most",
        "swaps",
        "timer",
    )

    def __init__(self, entry: Side, decode: Side | None) -> None:
        self.entry = entry
        self.decode = decode
        """Only where prompts and answers may be computed apart."""
        self.encoders: tuple[Replica, ...] = ()
        """Replicas that encode images."""
        self.admission: Any = None
        self.delay_s = 0.0
        """Time that a decision takes."""
        self.energy_j = 0.0
        """Energy of a decision."""
        self.collects = False
        """Whether the router decides about several requests at once."""
        self.held: dict[Request, None] = {}
        """Those that wait for its next decision."""
        self.most = 0
        """How many it waits for."""
        self.timer: Timer | None = None
        """When it waits for no more; None while nobody has come."""
        self.swaps = False
        """Whether its replicas change their LLM: then a placement policy decides in the router's place."""


class Gateway:
    """Sends requests to replicas as the policies say, and takes them back where they are given up.

    Parameters
    ----------
    scenario : Scenario
        The validated scenario.
    clock : Clock
        The event queue.
    streams : Streams
        Named random streams; routers draw from ``router.<LLM>``.
    replicas, pools : sequence
        All replicas, and the pool of each.
    network : Network
        Where keys and values travel.
    on_end : callable
        Called with every request that reached a terminal state.
    """

    def __init__(
        self,
        scenario: Scenario,
        clock: Clock,
        streams: Streams,
        replicas: Sequence[Replica],
        pools: Sequence[Pool],
        network: Callable[[], Network],
        on_end: Callable[[Request], None],
    ) -> None:
        self.clock = clock
        self.on_end = on_end
        self.replicas = replicas
        self.pools = pools
        self.energy_j = 0.0
        """Energy of decisions so far."""
        self.sent = [0] * (1 + max((pool.index for pool in pools), default=0))
        """Requests sent to each pool."""
        self.sent_tokens = [0] * len(self.sent)
        """Prompt tokens of these."""
        self.finished = [0] * len(self.sent)
        """Requests of each pool that finished."""
        self.decisions: DecisionLog | None = None
        """Where decisions about some requests are explained, if anybody asked."""
        self.steered: dict[int, int] = {}
        """Replica, over the whole fleet, to which a request is sent whatever the router says, by its id."""
        self.by_id: dict[int, Request] | None = None
        """Requests under way, where somebody may want to move them."""
        self.answering: Any = None
        """Where a model router decides who answers (`fleet/answering.py`), if one does."""
        self.swapping: Any = None
        """Where requests wait for replicas that change their LLM (`fleet/swapping.py`), if there are any."""
        self.outside: dict[Request, None] = {}
        """Requests that are at no replica: put off, waiting for a decision, or between two replicas."""
        self.encoding: dict[Request, Encoding] = {}
        """Requests whose images are encoded, or on their way, before they join a queue."""
        self.encode_tokens = [0] * len(replicas)
        """Image tokens that each replica was given to encode and has not encoded yet."""
        self.migrating = [0] * len(replicas)
        """Migrations under way from or to each replica."""
        self.migrations = [0, 0]
        """Migrations completed, and given up."""
        self.migrated_bytes = 0.0
        """Copied by migrations."""
        self.migrated_in = [0] * len(replicas)
        """Migrations completed to each replica."""
        self.given_up_in = [0] * len(replicas)
        """Migrations to each replica that were given up."""
        self.paused_in_s = [0.0] * len(replicas)
        """Time from leaving their source to joining the queue of each replica, summed over the migrations completed."""
        self.on_the_move: dict[Request, Migration] = {}
        self.ledger: Any = None
        """What charges requests where prices change over time or from site to site (`fleet/ledger.py`)."""
        self.ways: Any = None
        """How far it is between sites, where there are any (`fleet/ways.py`)."""
        self.places: Any = None
        """What policies may know of where replicas stand: answers with a view for some of them."""
        self.network = network
        self.presence = Presence(self)
        """Which replicas take requests."""
        self.lending = Lending(self)
        """Loans of memory between them."""
        self.windows = Windows(self)
        """Requests that are decided about together."""
        self.holding = Holding(self)
        """Requests that a router holds."""
        self.config = config = scenario.gateway
        counted = config.router.says("holds") or scenario.autoscaler is not None
        self.classes: list[dict[str | None, int]] | None = [{} for _ in replicas] if counted else None
        """Requests sent to each replica and not ended, by class, where somebody wants to know."""
        self.seats = [_seats(pool) for pool in pools]
        """Requests that each replica runs at a time at most."""
        self._streams = streams
        self._pool_index = [pool.index for pool in pools]
        self.groups: dict[str | None, Group] = {}
        self._probes = [ReplicaProbe(r, p.prefill_time, p.decode_time) for r, p in zip(replicas, pools, strict=True)]
        self.views: list[list[tuple[FleetView, int]]] = [[] for _ in replicas]
        """The views in which each replica counts, and its number there."""
        self.view = RequestView(Request(-1, 0.0, 1, 1))
        slo = scenario.slo
        self._ttft_limit_s = inf if slo is None or slo.ttft is None else slo.ttft
        classes = {} if slo is None else slo.classes
        self._class_ttft_limit_s = {k: inf if limits.ttft is None else limits.ttft for k, limits in classes.items()}
        self._priority = {name: block.priority for name, block in scenario.classes.items()}
        self._weight = {name: block.weight for name, block in scenario.tenants.items()}
        self._predictor: Any = None
        if config.predictor is not None:
            self._predictor = config.predictor.create(streams.get("predictor"))
        self._knows_length = bool(getattr(self._predictor, "knows_length", False))
        self._timeout_s = config.timeout
        self._first_token_timeout_s = config.first_token_timeout
        workers = config.decision.workers
        self.free_s = [0.0] * workers if workers else []
        """When each process that decides is free again."""
        self._tells_ends = False
        """Whether some admission policy counts who ends."""
        self._careful = bool(config.admission or config.timeout or config.first_token_timeout or workers)
        self.on_first_token: Callable[[Request], None] | None = None
        """Told first tokens, where somebody counts them (`fleet/lifecycle.py`)."""
        self.on_done: Callable[[Request], None] | None = None
        """Told each request that ended or left its replica."""
        self.losers: dict[Request, None] = {}
        """Copies that are being taken back because their twin answered first."""
        self._heirs: dict[Request, Request] = {}
        """Who stands for a copy that was taken back."""
        self._patience: dict[Request, list[Timer]] = {}
        """Timers of hedges and retries of requests without a first token."""
        self.twins: dict[Request, Request] = {}
        """Requests that are at two replicas at once: both by each other."""
        self._won: dict[Request, int] = {}
        """How requests ended while their twins are still being taken back."""

    # --- construction ------------------------------------------------------------------------------------------------

    def group_of(self, model: str | None) -> Group:
        """Where requests for an LLM go."""
        return self.groups.get(model) or self._group(model)

    def _group(self, model: str | None) -> Group:
        """Replicas for requests that ask for `model` (a catalogue name); all replicas where they ask for none."""
        chosen = [i for i, pool in enumerate(self.pools) if model is None or model in pool.variants]
        roles = {self.pools[i].config.role for i in chosen}
        config = self.config
        apart = bool(roles - {"mixed", "encode"}) or config.decode_router is not None or config.router.says("pairs")
        encoders = [self.replicas[i] for i in chosen if self.pools[i].encoder is not None]
        chosen = [i for i in chosen if self.pools[i].config.role != "encode"]
        entry = self._side([i for i in chosen if not apart or self.pools[i].config.role != "decode"], model)
        decode = self._side([i for i in chosen if self.pools[i].config.role != "prefill"]) if apart else None
        group = Group(entry, decode)
        self._show_encoders(group, encoders)
        if decode is not None:
            entry.view.decode = decode.view
            for replica in entry.replicas:
                replica.on_prefilled = self.prefilled
        name = model or ""
        group.swaps = any(self.pools[i].swapping for i in chosen)
        if entry.replicas and not group.swaps:
            entry.router = config.router.create(self._streams.get(f"router.{name}"), entry.view)
            group.collects = hasattr(entry.router, "route_window")
        if decode is not None and decode.replicas:
            choice = config.decode_router or config.router
            decode.router = choice.create(self._streams.get(f"decode_router.{name}"), decode.view)
        if config.admission is not None:
            group.admission = config.admission.create(self._streams.get(f"admission.{name}"), entry.view)
            self._tells_ends = self._tells_ends or hasattr(group.admission, "ended")
        if getattr(entry.router, "moves", False) and self.by_id is None:
            self.by_id = {}
        policies = (entry.router, group.admission)
        time_s, energy_j = config.decision.time, config.decision.energy
        group.delay_s = sum(getattr(p, "decision_s", 0.0) for p in policies) if time_s is None else time_s
        group.energy_j = sum(getattr(p, "decision_j", 0.0) for p in policies) if energy_j is None else energy_j
        self.groups[model] = group
        for side in (entry, decode):
            if side is not None:
                self._attach(side)
        return group

    def _show_encoders(self, group: Group, encoders: Sequence[Replica]) -> None:
        """Let the routers of a group see who encodes images."""
        group.encoders = tuple(encoders)
        for side in (group.entry, group.decode):
            if side is not None:
                side.view.encoders = tuple(replica.index for replica in encoders)
                side.view.encode_tokens = self.encode_tokens

    def _attach(self, side: Side) -> None:
        """Keep a view up to date from now on."""
        for position, replica in enumerate(side.replicas):
            self.views[replica.index].append((side.view, position))
            if side.view.wants_first_tokens or self.on_first_token is not None:
                replica.on_first_token = self.started
            side.view.set_present(position, replica.present)

    def _side(self, chosen: Sequence[int], model: str | None = None) -> Side:
        pools = [self.pools[i].variants.get(model or "", self.pools[i]) for i in chosen]
        view = FleetView(
            [pool.name for pool in pools],
            [pool.capacity_tokens for pool in pools],
            [self._probes[i] for i in chosen],
            _freshness(self.config.view),
            self._time_s,
            chosen,
            self._transfer_s,
            lambda position: self.lending.side_of(self.replicas[chosen[position]]),
        )
        if self.places is not None:
            view.places = self.places(chosen)
        if self.classes is not None:
            view.classes, view.seats = self.classes, self.seats
        for position, i in enumerate(chosen):
            if self.views[i]:
                view.begin_like(position, *self.views[i][0])
        return Side([self.replicas[i] for i in chosen], pools, view)

    def _time_s(self) -> float:
        return self.clock.now_s

    def _transfer_s(self, source: int, target: int, tokens: int) -> float:
        size_bytes = tokens * self.pools[source].kv_bytes_per_token
        return self.network().estimate_s(gpu(self.replicas[source]), gpu(self.replicas[target]), size_bytes)

    def events(self) -> list[tuple[float, str, str, int, int]]:
        """What routers say has happened to replicas: time, kind, pool, replica over the fleet, count."""
        return [
            (time_s, kind, self.pools[index].name, index, 1)
            for group in self.groups.values()
            for time_s, kind, index in getattr(group.entry.router, "events", ())
        ]

    # --- decisions ---------------------------------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """Take a request that is sent now; it arrives here when it has come all the way."""
        if self.ways is None:
            self.receive(request)
            return
        self.ways.set_origin(request)
        way_s = self.ways.to_gateway_s(request.origin)
        if way_s > 0.0:
            self.outside[request] = None
            self.clock.at(self.clock.now_s + way_s, partial(self._receive_later, request))
        else:
            self.receive(request)

    def _receive_later(self, request: Request) -> None:
        if self.outside.pop(request, _GONE) is not _GONE:
            self.receive(request)

    def receive(self, request: Request) -> None:
        """Take a request that arrives now."""
        if self.swapping is not None and request.model is None:
            request.model = self.swapping.default_model
        group = self.group_of(request.model)
        request.deadline_s = request.arrival_s + self.limit_s(request)
        if self.by_id is not None:
            self.by_id[request.id] = request
        if self._priority:
            request.priority = self._priority.get(request.klass or "", 0)
        if self._weight:
            request.weight = self.weight_of(request)
        if self._predictor is not None:
            self._predict(request)
        if not self._careful:
            self.route(group, request)
            return
        if self._timeout_s is not None:
            expiry_s = max(request.arrival_s + self._timeout_s, self.clock.now_s)
            self.clock.at(expiry_s, partial(self._expire, request, False))
        if self._first_token_timeout_s is not None:
            expiry_s = max(request.arrival_s + self._first_token_timeout_s, self.clock.now_s)
            self.clock.at(expiry_s, partial(self._expire, request, True))
        self._decide(group, request)

    def limit_s(self, request: Request) -> float:
        """Longest time to its first token that keeps the limit of its class [s]."""
        if request.klass is None:
            return self._ttft_limit_s
        return self._class_ttft_limit_s.get(request.klass, self._ttft_limit_s)

    def weight_of(self, request: Request) -> float:
        """Its tenant's share where tenants compete."""
        return self._weight.get(request.tenant or "", 1.0)

    def seats_of(self, pool: Pool) -> int:
        """Requests that a replica of a pool runs at a time."""
        return _seats(pool)

    def _predict(self, request: Request) -> None:
        """Note what output length is expected."""
        self.view._request = request
        if self._knows_length:
            expected = self._predictor.predict_knowing(self.view, request.output_tokens)
        else:
            expected = self._predictor.predict(self.view)
        if not (isinstance(expected, float | int) and 0.0 <= expected < inf):
            raise PolicyError(f"predictor answered {expected!r} for request {request.id}")
        request.predicted_tokens = float(expected)

    def _decide(self, group: Group, request: Request) -> None:
        """Decide about a request as soon as somebody is free to."""
        now_s = self.clock.now_s
        if self.free_s and not group.collects:
            if self.free_s[0] > now_s:
                self.outside[request] = None
                start_s = self.free_s[0]
                heapreplace(self.free_s, start_s + group.delay_s)
                self.clock.at(start_s, partial(self._judge_later, group, request))
                return
            heapreplace(self.free_s, now_s + group.delay_s)
        self._judge(group, request)

    def _judge_later(self, group: Group, request: Request) -> None:
        if self.outside.pop(request, _GONE) is not _GONE:
            self._judge(group, request)

    def _judge(self, group: Group, request: Request) -> None:
        """Ask for admission."""
        if group.admission is not None:
            view = group.entry.view
            now_s = view.now_s = self.clock.now_s
            self.view._request = request
            answer = group.admission.decide(self.view)
            if isinstance(answer, Reject):
                self._reject(request, answer.reason)
                return
            if isinstance(answer, Defer):
                if not now_s < answer.until_s < inf:
                    raise PolicyError(f"admission put request {request.id} off to {answer.until_s} s at {now_s} s")
                self.outside[request] = None
                self.clock.at(answer.until_s, partial(self._decide_later, group, request))
                return
            if answer is not ADMIT:
                raise PolicyError(f"admission answered {answer!r} for request {request.id}")
        self.route(group, request)

    def _decide_later(self, group: Group, request: Request) -> None:
        if self.outside.pop(request, _GONE) is not _GONE:
            self._decide(group, request)

    def route(self, group: Group, request: Request) -> None:
        """Let the router choose a replica and send the request there."""
        if self.presence.gone and self.presence.must_wait(group, request):
            self.presence.wait(group, request)
            return
        if group.swaps:
            self._queue(group, request)
            return
        if group.collects:
            self.windows.collect(group, request)
            return
        side = group.entry
        view = side.view
        self.view._request = request
        now_s = view.now_s = self.clock.now_s
        ready_s = now_s + group.delay_s
        if group.decode is not None:
            group.decode.view.now_s = now_s
        decision = side.router.route(self.view) if self.decisions is None else self._explained(side, request)
        if group.energy_j:
            self.energy_j += group.energy_j
            self.charge_decision(request, group.energy_j)
        self.follow(group, request, decision, ready_s)

    def charge_decision(self, request: Request, energy_j: float) -> None:
        """Charge a request for the energy of deciding about it."""
        request.host_energy_j += energy_j
        if self.ledger is not None:
            self.ledger.charge_decision(request, energy_j)

    def follow(self, group: Group, request: Request, decision: Any, ready_s: float) -> None:
        """Do what the router answered; `ready_s` is when its decision is over."""
        side = group.entry
        route = _PLAIN
        if isinstance(decision, Route):
            route = decision
            ready_s += self._prepare(side, request, route)
            decision = route.replica
        elif isinstance(decision, Reject):
            self._reject(request, decision.reason)
            return
        elif isinstance(decision, Hold):
            if request in self.twins:
                self._reject(request, "")  # a copy is not worth waiting for
            else:
                self.holding.hold(group, request)
            return
        if type(decision) is not int or not 0 <= decision < len(side.replicas):
            raise PolicyError(
                f"router answered {decision!r} for request {request.id}; there are {len(side.replicas)} replicas"
            )
        if self.presence.gone:
            decision, route = self.presence.standing_in(group, decision, route)
        if self.steered and not request.attempt and request.id in self.steered:
            decision = _position(side, self.steered[request.id], decision)
        self._dispatch(group, request, decision, route, ready_s)

    def _queue(self, group: Group, request: Request) -> None:
        """Let a request wait for replicas that change their LLM, once it is decided about."""
        if group.energy_j:
            self.energy_j += group.energy_j
            self.charge_decision(request, group.energy_j)
        if group.delay_s:
            self.outside[request] = None
            self.clock.at(self.clock.now_s + group.delay_s, partial(self._queue_now, request))
        else:
            self._wait(request)

    def _queue_now(self, request: Request) -> None:
        if self.outside.pop(request, _GONE) is not _GONE:
            self._wait(request)

    def _wait(self, request: Request) -> None:
        reason = self.swapping.take(request)
        if reason is not None:
            self._reject(request, reason)

    def send(self, request: Request, replica: Replica) -> None:
        """Send a request that waited for a replica's LLM there."""
        for view, _ in self.views[replica.index]:
            view.now_s = self.clock.now_s
        way_s = 0.0 if self.ways is None else self.ways.to_replica_s(request, replica.index)
        self.forward(request, replica, self.clock.now_s + replica.model.frontend_s + way_s)

    def take_back(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back from its replica; `then` is not called if it ends before."""
        self.withdraw(request, partial(self._taken_back, then))

    def _taken_back(self, then: Callable[[Request], None], request: Request) -> None:
        if request.reason is not None:
            self._timed_out(request)  # its client has given up meanwhile
        else:
            then(request)

    def _explained(self, side: Side, request: Request) -> Any:
        """Ask the router, and keep what it knew if somebody wants to hear about this request."""
        log = self.decisions
        assert log is not None
        if request.id not in log.requests:
            return side.router.route(self.view)
        candidates = log.candidates(side.router, side.view, self.view)
        decision = side.router.route(self.view)
        log.note(side.router, side.view, self.view, candidates, decision)
        return decision

    # --- dispatch ------------------------------------------------------------------------------------------------------

    def _dispatch(self, group: Group, request: Request, position: int, route: Route, ready_s: float) -> None:
        """Send a request to the replica chosen, if that can hold it."""
        side = group.entry
        needed = request.prompt_tokens + (0 if side.prefills_only[position] else request.output_tokens)
        replica = side.replicas[position]
        if route.borrow:
            blocks = sum([blocks for _, blocks in route.borrow])
            block_tokens = replica.batches[0].block_tokens
            if not self.lending.can_borrow(side, position, route) or blocks * block_tokens >= request.prompt_tokens:
                route = replace(route, borrow=())
            else:
                needed -= blocks * block_tokens
        if needed > side.capacity_tokens[position]:
            self._reject(request, "longer than the KV cache")
            return
        if self.twins and replica.index == self._twin_at(request):
            self._reject(request, "")
            return
        if group.decode is not None:
            request.decode_at = self._decode_at(group.decode, side, position, route.decode)
        if request.images:
            encoder = self._encoder_for(group, request, replica, route.encode)
            if encoder is None:
                self._reject(request, "no pool has an encoder for its images")
                return
            request.encode_replica = encoder.index
        if route.fetch_tokens > 0:
            self._fetch(request, side, route, replica)
        if (route.hedge_after_s != inf or route.retry_after_s != inf) and request not in self.twins:
            self._watch(group, request, route.hedge_after_s, route.retry_after_s)
        ready_s += replica.model.frontend_s
        if self.ways is not None:
            ready_s += self.ways.to_replica_s(request, replica.index)
            back_s = self.ways.back_s(request.origin, replica.index)
            request.deadline_s = request.arrival_s + self.limit_s(request) - back_s
        if route.borrow and request not in self.twins:
            self.lending.borrow_ahead(group, request, replica, route, ready_s)
            return
        self.forward(request, replica, ready_s)

    def _prepare(self, side: Side, request: Request, route: Route) -> float:
        """Do what a route asks for besides sending the request; time until that may leave [s]."""
        if route.prompt_tokens >= 0:
            _compress(request, route.prompt_tokens)
        for move in route.moves:
            self.move_queued(move, side.replicas)
        return route.prepare_s

    def _fetch(self, request: Request, side: Side, route: Route, target: Replica) -> None:
        """Let a request bring the beginning of its prompt from another replica's cache, as far as that holds it now."""
        position = route.fetch_from
        if not 0 <= position < len(side.replicas):
            raise PolicyError(f"router fetches keys and values of request {request.id} from replica {position!r}")
        source = side.replicas[position]
        if source is target:
            return
        probe = self._probes[source.index]
        self.view._request = request
        held = min(route.fetch_tokens, probe.held_tokens(self.view.reusable(probe.block_tokens)))
        if held > 0:
            request.carried_tokens = held
            request.carrier = Fetch(self.network(), source, target, self.pools[source.index].kv_bytes_per_token)

    def _decode_at(self, decode: Side, side: Side, position: int, answer: int) -> int:
        """Index of the replica that gets a request after its first token."""
        if answer == LOCAL:
            return UNDECIDED if side.prefills_only[position] else LOCAL
        if type(answer) is not int or not 0 <= answer < len(decode.replicas):
            raise PolicyError(f"router answered decode={answer!r}; there are {len(decode.replicas)} decode replicas")
        index = decode.replicas[answer].index
        return LOCAL if index == side.replicas[position].index else index

    def forward(self, request: Request, replica: Replica, ready_s: float) -> None:
        """Send a request to a replica, whose queue it joins at `ready_s`; its images are encoded first."""
        index = replica.index
        request.replica = index
        prompt_tokens = request.prompt_tokens
        self.sent[self._pool_index[index]] += 1
        self.sent_tokens[self._pool_index[index]] += prompt_tokens
        for seen, position in self.views[index]:
            seen.sent(position, prompt_tokens, request)
        if self.classes is not None:
            self._came(request)
        if request.decode_at >= 0:
            self.promise(request, 1)
        if self.presence.copies is not None and request.attempt:
            self.presence.copies.attach(request, replica)
        if request.images and request.embedded_at != index:
            self._encode(request, replica, ready_s)
            return
        self.presence.deliver(replica, request, ready_s)

    # --- images --------------------------------------------------------------------------------------------------------

    def _encoder_for(self, group: Group, request: Request, replica: Replica, answer: int) -> Replica | None:
        """Where a request's images are encoded: where the router says, where its prompt is computed, or where least is to do."""
        if answer != LOCAL:
            if type(answer) is not int or not 0 <= answer < len(group.encoders):
                raise PolicyError(
                    f"router answered encode={answer!r} for request {request.id}; "
                    f"there are {len(group.encoders)} replicas with an encoder"
                )
            if self.presence.present[group.encoders[answer].index]:
                return group.encoders[answer]
        if replica.encoder is not None:
            return replica
        encoders = [encoder for encoder in group.encoders if encoder.present]
        return min(encoders, key=lambda encoder: self.encode_tokens[encoder.index], default=None)

    def _encode(self, request: Request, target: Replica, ready_s: float) -> None:
        """Have a request's images encoded, or what was made of them brought, before it joins its replica's queue."""
        encoded = request.embedded_at >= 0
        source = self.replicas[request.embedded_at if encoded else request.encode_replica]
        size_bytes = request.image_tokens * self.pools[target.index].embedding_bytes_per_token
        encoding = self.encoding[request] = Encoding(
            self.network, request, source, target, size_bytes, partial(self._embedded, target), self._no_longer_encoded
        )
        if encoded:
            encoding.send()
            return
        self.encode_tokens[source.index] += request.image_tokens
        encoding.begin(ready_s)

    def _embedded(self, target: Replica, request: Request) -> None:
        """What the encoder made of a request's images is where its prompt is computed."""
        del self.encoding[request]
        self.presence.deliver(target, request, self.clock.now_s)

    def _no_longer_encoded(self, request: Request) -> None:
        """Note that a request does not wait for an encoder any more."""
        self.encode_tokens[request.encode_replica] -= request.image_tokens

    def _give_up_encoding(self, then: Callable[[Request], None], request: Request) -> None:
        """A request was taken back before it joined a queue."""
        del self.encoding[request]
        if request.carrier is not None:
            request.carrier.release()
        request.carrier = None
        request.carried_tokens = 0
        if request.decode_at >= 0:
            self.promise(request, -1)
        self.leave(request, queued=False)
        then(request)

    def promise(self, request: Request, requests: int) -> None:
        """Count that a request will come to where its answer is computed, or with -1 that it will no more."""
        decode = self.groups[request.model].decode
        for view, position in self.views[request.decode_at]:
            if decode is not None and view is decode.view:
                view.promised(position, requests, request.prompt_tokens)

    # --- prompts and answers computed apart ----------------------------------------------------------------------------

    def prefilled(self, request: Request, parked: Parked) -> None:
        """The prompt of a request is computed where its answer is not to be: send it on."""
        source = self.replicas[request.replica]
        group = self.groups[request.model]
        if request.decode_at == UNDECIDED:
            decode = group.decode
            assert decode is not None
            gateways = self.presence.gateways
            if gateways is not None and gateways.holds_prefilled(request, source, parked):
                return
            decode.view.now_s = self.clock.now_s
            self.view._request = request
            answer = decode.router.route(self.view)
            if isinstance(answer, Route):
                answer = answer.replica
            if isinstance(answer, Reject) or type(answer) is not int or not 0 <= answer < len(decode.replicas):
                raise PolicyError(f"decode router answered {answer!r}; there are {len(decode.replicas)} replicas")
            target = decode.replicas[answer]
        else:
            target = self.replicas[request.decode_at]
            self.promise(request, -1)
        if self.presence.gone and not self.presence.present[target.index]:
            found = self.presence.decoder(request)
            if found is None:
                self.presence.strand(request, source, parked)
                return
            target = found
        request.decode_at = LOCAL
        request.prefill_replica = source.index
        self.leave(request)
        token_bytes = self.pools[source.index].kv_bytes_per_token
        handover = Handover(
            self.network(),
            source,
            request.rank,
            parked,
            target,
            token_bytes,
            self._hidden_bytes(request, source, target, request.computed * token_bytes),
        )
        request.carrier = handover
        request.carried_tokens = request.computed
        if request.prompt_tokens + request.output_tokens > self.pools[target.index].capacity_tokens:
            handover.release()
            request.reason = "longer than the KV cache where it decodes"
            self.end(request, REJECTED)
            return
        index = request.replica = target.index
        self.sent[self._pool_index[index]] += 1
        self.sent_tokens[self._pool_index[index]] += request.prompt_tokens
        for seen, position in self.views[index]:
            seen.sent(position, request.prompt_tokens)
            seen.started(position, request.prompt_tokens)
        if self.classes is not None:
            self._came(request)
        self.presence.deliver(target, request, self.clock.now_s)

    def _hidden_bytes(self, request: Request, source: Replica, target: Replica, size_bytes: float) -> float:
        """What was sent while the prompt was computed: of all layers but the last, as much as the way allows."""
        pool = self.pools[source.index]
        if pool.config.kv_transfer == "serial" or pool.llm.layers < 2:
            return 0.0
        sent_s = self.network().estimate_s(gpu(source), gpu(target), size_bytes)
        computed_s = self.clock.now_s - request.first_scheduled_s
        return size_bytes * min(1.0, computed_s / sent_s) * (1.0 - 1.0 / pool.llm.layers)

    # --- what happens to requests --------------------------------------------------------------------------------------

    def started(self, request: Request) -> None:
        """Note a first token (called by replicas in front of which somebody cares)."""
        if self.on_first_token is not None:
            self.on_first_token(request)
        seconds = self.clock.now_s - request.queued_s
        for view, position in self.views[request.replica]:
            view.started(position, request.prompt_tokens, seconds, request.id)
        self.calm(request)
        twin = self.twins.get(request)
        if twin is not None and request not in self.losers:
            self.calm(twin)
            self.losers[twin] = None
            self.withdraw(twin, self.settle_twin)

    def done(self, request: Request) -> None:
        """Note a last token."""
        index = request.replica
        if request.decode_at >= 0:
            self.promise(request, -1)
            request.decode_at = LOCAL
        for view, position in self.views[index]:
            view.ended(position, request.prompt_tokens)
        if self.classes is not None:
            self._went(request)
        if self.swapping is not None:
            self.swapping.gone(request)
        if request in self.twins:
            if request in self.losers:
                self.pay(request)
                self.settle_twin(request)
            else:
                self._won[request] = FINISHED
            return
        self._finish(request)

    def _finish(self, request: Request) -> None:
        self.finished[self._pool_index[request.replica]] += 1
        if self._predictor is not None:
            self.view._request = request
            self._predictor.observe(self.view, request.output_tokens)
        self.over(request)

    def over(self, request: Request) -> None:
        """Tell everybody that a request has ended."""
        if self.on_done is not None:
            self.on_done(request)
        if self.by_id is not None:
            del self.by_id[request.id]
        if self.presence.copies is not None:
            self.presence.copies.forget(request)
        if self._tells_ends:
            ended = getattr(self.groups[request.model].admission, "ended", None)
            if ended is not None:
                self.view._request = request
                ended(self.view)
        self.on_end(request)

    def leave(self, request: Request, queued: bool = True) -> None:
        """Note that a request leaves its replica for another one, or for good."""
        listener = self.replicas[request.replica].listener
        if listener is not None and queued:
            listener.left(request, False)
        for view, position in self.views[request.replica]:
            if request.first_token_s != request.first_token_s:
                view.started(position, request.prompt_tokens, request_id=request.id)
            view.ended(position, request.prompt_tokens)
        if self.classes is not None:
            self._went(request)
        if self.swapping is not None:
            self.swapping.gone(request)
        self.pay(request)

    def _came(self, request: Request) -> None:
        """Count a request, by class, at the replica where it is now."""
        assert self.classes is not None
        there = self.classes[request.replica]
        there[request.klass] = there.get(request.klass, 0) + 1

    def _went(self, request: Request) -> None:
        """Count it there no more: there may be room for one that is held."""
        assert self.classes is not None
        self.classes[request.replica][request.klass] -= 1
        self.holding.ask()

    def pay(self, request: Request) -> None:
        """Turn a request's share of its replica's time into money and energy, which other replicas' shares can be added to."""
        if self.ledger is not None:
            self.ledger.pay(request)
        else:
            pool = self.pools[request.replica]
            request.paid_usd += request.cost_share_s * (pool.price_usd_per_h / 3600.0)
            request.host_energy_j += request.cost_share_s * pool.host_busy_w
            request.cost_share_s = 0.0
        request.energy_before_j = request.energy_j

    def bear(self, winner: Request, loser: Request) -> None:
        """Let one of two copies bear what the other one cost."""
        winner.energy_j += loser.energy_j
        winner.paid_usd += loser.paid_usd
        winner.host_energy_j += loser.host_energy_j
        if self.ledger is not None:
            self.ledger.take_over(winner, loser)

    def _reject(self, request: Request, reason: str) -> None:
        twin = self.twins.get(request)
        if twin is not None and twin not in self.losers:
            # a copy that nobody wants, or the same replica again: the first one goes on alone
            del self.twins[request], self.twins[twin]
            request.status = UNFINISHED
            self.bear(twin, request)
            return
        request.reason = reason
        self.end(request, REJECTED)

    def end_unseen(self, request: Request, status: int) -> None:
        """Note the terminal state of a request that never came in."""
        if self.swapping is not None and request.model is None:
            request.model = self.swapping.default_model
        if request.model not in self.groups:
            self._group(request.model)
        if self.by_id is not None:
            self.by_id[request.id] = request
        self.end(request, status)

    def end(self, request: Request, status: int) -> None:
        """Note the terminal state of a request that is at no replica."""
        if request in self.twins:  # its copy is on its way out and will be charged to it
            self._won[request] = status
            return
        request.status = status
        request.end_s = self.clock.now_s
        self.calm(request)
        self.over(request)

    def withdraw(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back from its replica, or from who waits to be sent; `then` is not called if it ends before."""
        encoding = self.encoding.get(request)
        if encoding is not None:
            encoding.cancel(partial(self._give_up_encoding, then))
            return
        if self.windows.let_go(request):
            then(request)
            return
        if self.outside.pop(request, _GONE) is not _GONE:  # a copy that waits for a replica to come
            self.presence.waiting_room.pop(request, None)
            then(request)
            return
        lost = self.presence._lost.get(request.replica)
        if lost is not None and request in lost:
            lost.remove(request)
            self.withdrawn(then, request)
            return
        gateways, outages = self.presence.gateways, self.presence.outages
        if gateways is not None and gateways.let_go(request):
            self.withdrawn(then, request)
            return
        if outages is not None and request.replica in outages.behind:
            outages.take_from(request, then)
            return
        self.replicas[request.replica].withdraw(request, partial(self.withdrawn, then))

    def withdrawn(self, then: Callable[[Request], None], request: Request) -> None:
        """Note that a request has left its replica without having ended there."""
        outages = self.presence.outages
        if outages is not None and request in outages.ghosts:
            outages.bury_unfinished(request)  # it was given up while its replica could not be reached
            return
        if request.carrier is not None:
            request.carrier.release()
        request.carrier = None
        request.carried_tokens = 0
        if request.lenders:
            self.replicas[request.replica].batches[request.rank].forget_loans(request, True)
        if request.decode_at >= 0:
            self.promise(request, -1)
        self.leave(request)
        then(request)

    # --- time-outs ---------------------------------------------------------------------------------------------------

    def inherit(self, request: Request, heir: Request) -> None:
        """Let another object stand for a request from now on, whose replica cannot be told to give it back."""
        self._heirs[request] = heir
        if self.by_id is not None and self.by_id.get(request.id) is request:
            self.by_id[request.id] = heir
        twin = self.twins.pop(request, None)
        if twin is not None:
            self.twins[heir], self.twins[twin] = twin, heir
        if request in self.losers:
            del self.losers[request]
            self.losers[heir] = None
        if request in self._patience:
            self._patience[heir] = self._patience.pop(request)
        if request in self.on_the_move:
            self.on_the_move[request].call_off(self.presence.recover)

    def _heir(self, request: Request) -> Request:
        """Who stands for a request now."""
        while request in self._heirs:
            request = self._heirs[request]
        return request

    def _expire(self, request: Request, first_token: bool) -> None:
        """The client has waited for long enough."""
        request = self._heir(request)
        if request in self.losers:
            request = self.twins[request]
        if request.status > RUNNING or request in self._won:
            return
        if first_token and request.first_token_s == request.first_token_s:
            return
        if request.reason is not None:
            return  # being taken back already
        request.reason = "no first token in time" if first_token else "not finished in time"
        if request in self.twins:
            twin = self.twins[request]
            if twin not in self.losers:
                self.losers[twin] = None
                self.withdraw(twin, self.settle_twin)
            self.withdraw(request, self._won_by_nobody)
        elif self.windows.let_go(request) or self.outside.pop(request, _GONE) is not _GONE:
            self.presence.waiting_room.pop(request, None)
            if self.swapping is not None:
                self.swapping.gone(request)
            self.end(request, TIMED_OUT)
        else:
            self.withdraw(request, self._timed_out)

    def _timed_out(self, request: Request) -> None:
        self.end(request, TIMED_OUT)

    def _won_by_nobody(self, request: Request) -> None:
        if request in self.twins:
            self._won[request] = TIMED_OUT  # until its twin is out too
        else:
            self._timed_out(request)

    # --- hedges and retries --------------------------------------------------------------------------------------------

    def _watch(self, group: Group, request: Request, hedge_after_s: float, retry_after_s: float) -> None:
        """Wait for the first token of a request no longer than its router wants to."""
        if hedge_after_s == inf and retry_after_s == inf:
            return
        if request.first_token_s == request.first_token_s:
            return  # it came while the request was being taken back
        for side in (group.entry, group.decode):
            for replica in side.replicas if side is not None else ():
                replica.on_first_token = self.started
        now_s = self.clock.now_s
        timers = self._patience.setdefault(request, [])
        for after_s, act in ((hedge_after_s, self._hedge), (retry_after_s, self._retry)):
            if not after_s > 0.0:
                raise PolicyError(f"router gives request {request.id} {after_s} s until its first token")
            if after_s < inf:
                timers.append(self.clock.at(now_s + after_s, partial(act, group, request)))

    def calm(self, request: Request) -> None:
        """Stop waiting for its first token."""
        for timer in self._patience.pop(request, ()):
            timer.cancel()

    def _hedge(self, group: Group, request: Request) -> None:
        """Send a copy of a request without a first token to another replica too; the first of both to answer goes on."""
        request = self._heir(request)
        if request in self.twins or request.reason is not None:
            return
        twin = request.copy()
        twin.attempt = request.attempt + 1
        twin.replica = request.replica
        self.twins[request] = twin
        self.twins[twin] = request
        self.route(group, twin)

    def _retry(self, group: Group, request: Request) -> None:
        """Take a request without a first token back and send it once more; not one that was sent twice already."""
        request = self._heir(request)
        if request in self.twins or request.reason is not None or request in self.windows.held:
            return
        self.withdraw(request, partial(self._again, group))

    def _again(self, group: Group, request: Request) -> None:
        request.attempt += 1
        request.cached_tokens = 0
        self.route(group, request)

    def _twin_at(self, request: Request) -> int:
        """Replica where the other copy of a request is; -2 if there is none."""
        twin = self.twins.get(request)
        return -2 if twin is None or twin in self.losers else twin.replica

    def settle_twin(self, loser: Request) -> None:
        """One of two copies is out: the other one bears its cost, and ends if it was waiting for this."""
        winner = self.twins.pop(loser)
        del self.twins[winner]
        self.losers.pop(loser, None)
        loser.status = UNFINISHED
        self.pay(winner)
        self.bear(winner, loser)
        self._heirs[loser] = winner
        if winner in self._won:
            status = self._won.pop(winner)
            if status == FINISHED:
                self._finish(winner)
            else:
                self.end(winner, status)

    # --- moves -------------------------------------------------------------------------------------------------------

    def movable(self, move: MoveQueued | Migrate | Borrow | Recall, replicas: Sequence[Replica]) -> Request | None:
        """The request of a move, if it still is where the policy thinks."""
        count = len(replicas)
        if not (0 <= move.source < count and 0 <= move.target < count and move.source != move.target):
            raise PolicyError(f"cannot do {move!r}: there are {count} replicas")
        assert self.by_id is not None
        outages = self.presence.outages
        if outages is not None and {replicas[move.source].index, replicas[move.target].index} & outages.behind.keys():
            return None  # what it is told does not arrive
        request = self.by_id.get(move.request)
        if request is None or request in self.outside or request.reason is not None:
            return None
        return request if request.replica == replicas[move.source].index else None

    def move_queued(self, move: MoveQueued, replicas: Sequence[Replica]) -> None:
        """Let a waiting request wait elsewhere; nothing, if it does not wait any more."""
        request = self.movable(move, replicas)
        if request is None or request.status != WAITING or request.generated or request.carrier is not None:
            return
        if request in self.encoding:
            return
        target = replicas[move.target]
        if (
            request.prompt_tokens + request.output_tokens > self.pools[target.index].capacity_tokens
            or not target.present
        ):
            return
        self.withdraw(request, partial(self._resend, target))

    def _resend(self, target: Replica, request: Request) -> None:
        if not self.presence.present[target.index]:
            self.route(self.groups[request.model], request)
            return
        request.migrations += 1
        way_s = 0.0 if self.ways is None else self.ways.between_s(request.replica, target.index)
        self.forward(request, target, max(self.clock.now_s, request.ready_s) + way_s)

    def migrate(self, move: Migrate, replicas: Sequence[Replica]) -> None:
        """Begin to move a decoding request; nothing, if it does not decode any more or is on the move."""
        request = self.movable(move, replicas)
        if request is None or request in self.on_the_move or request in self.twins or self.lending.of(request):
            return
        source, target = replicas[move.source], replicas[move.target]
        if not source.is_decoding(request, request.rank) or not target.present:
            return
        if request.prompt_tokens + request.output_tokens > self.pools[target.index].capacity_tokens:
            return
        token_bytes = self.pools[source.index].kv_bytes_per_token
        for replica in (source, target):
            self.migrating[replica.index] += 1
        self.on_the_move[request] = Migration(
            self.network(), request, source, target, token_bytes, self._left, partial(self._join, target), self._moved
        )

    def _left(self, request: Request) -> None:
        self.outside[request] = None
        self.leave(request)

    def _join(self, target: Replica, request: Request, rank: int) -> bool:
        """A request that has been copied joins its new replica, unless it was given up meanwhile."""
        if self.outside.pop(request, _GONE) is _GONE:
            return False
        if not self.presence.present[target.index]:
            request.carried_tokens = 0
            self.presence.recover(request)
            return False
        request.migrations += 1
        self.arrive(request, target, rank)
        return True

    def arrive(self, request: Request, target: Replica, rank: int) -> None:
        """Let a decoding request that has left its replica go on at another one: on this rank, or on any (-1)."""
        request.replica = target.index
        for view, position in self.views[target.index]:
            view.sent(position, request.prompt_tokens)
            view.started(position, request.prompt_tokens)
        if self.classes is not None:
            self._came(request)
        self.presence.deliver(target, request, self.clock.now_s, rank)

    def _moved(self, migration: Migration) -> None:
        del self.on_the_move[migration.request]
        for replica in (migration.source, migration.target):
            self.migrating[replica.index] -= 1
        index = migration.target.index
        if migration.completed:
            self.migrations[0] += 1
            self.migrated_in[index] += 1
            self.paused_in_s[index] += self.clock.now_s - migration.left_s
        else:
            self.migrations[1] += 1
            self.given_up_in[index] += 1
        self.migrated_bytes += migration.bytes

    # --- the end -----------------------------------------------------------------------------------------------------

    def left(self) -> list[Request]:
        """Requests that are at no replica when the run ends, and those that ended but wait for a copy to be taken back."""
        left = [*self.outside, *self.encoding, *self._won, *self.presence.in_doubt()]
        return left if self.presence.gateways is None else [*left, *self.presence.gateways.held()]

    def without_copies(self, left: Sequence[Request]) -> list[Request]:
        """Of the requests that are left, those that stand for themselves in the tables; they bear the cost of their copies."""
        alone = []
        for request in left:
            twin = self.twins.get(request)
            if twin is None or twin in self.losers or (request not in self.losers and request.attempt < twin.attempt):
                alone.append(request)
                continue
            self.pay(request)
            self.pay(twin)
            self.bear(twin, request)
        return alone


def _compress(request: Request, tokens: int) -> None:
    """Shorten a prompt: what is left of it matches no prefix."""
    if not 1 <= tokens <= request.prompt_tokens:
        raise PolicyError(f"router compresses {request.prompt_tokens} tokens of request {request.id} to {tokens}")
    request.dropped_tokens += request.prompt_tokens - tokens
    request.prompt_tokens = tokens
    request.content = None


def _freshness(config: View) -> Freshness:
    age_s = config.period if config.freshness == "sampled" else config.delay
    return Freshness(config.freshness, age_s, config.own_counts)


def _seats(pool: Pool) -> int:
    """Requests that a replica runs at a time, as its scheduler says."""
    return int(getattr(pool.config.engine.scheduler.config, "max_seqs", 1 << 30)) * pool.config.parallelism.dp


def _position(side: Side, index: int, otherwise: int) -> int:
    """Number of a replica in a view."""
    for position, replica in enumerate(side.replicas):
        if replica.index == index:
            return position
    return otherwise


class _Nobody:
    """Stands where no pool serves the LLM that was asked for."""

    def route(self, request: RequestView) -> Reject:
        return Reject("no pool serves this model")


_NOBODY = _Nobody()
_GONE: Any = object()
_PLAIN = Route(-1)
"""What a router that answers with a number means."""
