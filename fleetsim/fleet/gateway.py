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
from fleetsim.fleet.handover import Fetch, Handover, gpu
from fleetsim.fleet.holding import Holding
from fleetsim.fleet.images import Images
from fleetsim.fleet.lending import Lending
from fleetsim.fleet.moves import Moves
from fleetsim.fleet.patience import Patience
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.presence import Presence
from fleetsim.fleet.probe import ReplicaProbe
from fleetsim.fleet.sides import Group, Side
from fleetsim.fleet.windows import Windows
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.network.flows import Network
from fleetsim.routing.api import (
    ADMIT,
    Defer,
    FleetView,
    Freshness,
    Hold,
    Reject,
    RequestView,
    Route,
)
from fleetsim.routing.decisions import DecisionLog
from fleetsim.scenario.schema import Scenario, View
from fleetsim.workload.request import (
    LOCAL,
    REJECTED,
    UNDECIDED,
    Request,
)


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
        self.answering: Any = None
        """Where a model router decides who answers (`fleet/answering.py`), if one does."""
        self.swapping: Any = None
        """Where requests wait for replicas that change their LLM (`fleet/swapping.py`), if there are any."""
        self.outside: dict[Request, None] = {}
        """Requests that are at no replica: put off, waiting for a decision, or between two replicas."""
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
        self.images = Images(self)
        """Requests whose images are encoded first."""
        self.moves = Moves(self)
        """Requests that change their replica."""
        self.config = config = scenario.gateway
        self.patience = Patience(self)
        """Requests that somebody waits for no longer, and copies of them."""
        counted = config.router.says("holds") or scenario.autoscaler is not None
        self.classes: list[dict[str | None, int]] | None = [{} for _ in replicas] if counted else None
        """Requests sent to each replica and not ended, by class, where somebody wants to know."""
        self.seats = [_seats(pool) for pool in pools]
        """Requests that each replica runs at a time at most."""
        self._streams = streams
        self._pool_index = [pool.index for pool in pools]
        self._gpus = [gpu(replica) for replica in replicas]
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
        workers = config.decision.workers
        self.free_s = [0.0] * workers if workers else []
        """When each process that decides is free again."""
        self._tells_ends = False
        """Whether some admission policy counts who ends."""
        self._careful = bool(config.admission or self.patience.times_out or workers)
        self.on_first_token: Callable[[Request], None] | None = None
        """Told first tokens, where somebody counts them (`fleet/lifecycle.py`)."""
        self.on_done: Callable[[Request], None] | None = None
        """Told each request that ended or left its replica."""

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
        if getattr(entry.router, "moves", False):
            self.moves.follow()
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
                side.view.encode_tokens = self.images.encode_tokens

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
        return self.network().estimate_s(self._gpus[source], self._gpus[target], size_bytes)

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
        if self.moves.by_id is not None:
            self.moves.by_id[request.id] = request
        if self._priority:
            request.priority = self._priority.get(request.klass or "", 0)
        if self._weight:
            request.weight = self.weight_of(request)
        if self._predictor is not None:
            self._predict(request)
        if not self._careful:
            self.route(group, request)
            return
        self.patience.begin(request)
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
            if request in self.patience.twins:
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
            decision = side.position(self.steered[request.id], decision)
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
            self.patience.timed_out(request)  # its client has given up meanwhile
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
        if self.patience.twins and replica.index == self.patience.twin_at(request):
            self._reject(request, "")
            return
        if group.decode is not None:
            request.decode_at = self._decode_at(group.decode, side, position, route.decode)
        if request.images:
            encoder = self.images.encoder_for(group, request, replica, route.encode)
            if encoder is None:
                self._reject(request, "no pool has an encoder for its images")
                return
            request.encode_replica = encoder.index
        if route.fetch_tokens > 0:
            self._fetch(request, side, route, replica)
        if route.hedge_after_s != inf or route.retry_after_s != inf:
            self.patience.watch(group, request, route.hedge_after_s, route.retry_after_s)
        ready_s += replica.model.frontend_s
        if self.ways is not None:
            ready_s += self.ways.to_replica_s(request, replica.index)
            back_s = self.ways.back_s(request.origin, replica.index)
            request.deadline_s = request.arrival_s + self.limit_s(request) - back_s
        if route.borrow and request not in self.patience.twins:
            self.lending.borrow_ahead(group, request, replica, route, ready_s)
            return
        self.forward(request, replica, ready_s)

    def _prepare(self, side: Side, request: Request, route: Route) -> float:
        """Do what a route asks for besides sending the request; time until that may leave [s]."""
        if route.prompt_tokens >= 0:
            _compress(request, route.prompt_tokens)
        for move in route.moves:
            self.moves.move_queued(move, side.replicas)
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
            self.images.encode(request, replica, ready_s)
            return
        self.presence.deliver(replica, request, ready_s)

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
        self.patience.answered(request)

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
        if self.patience.twins and self.patience.finishes_later(request):
            return
        self.finish(request)

    def finish(self, request: Request) -> None:
        """Tell everybody that a request is finished."""
        self.finished[self._pool_index[request.replica]] += 1
        if self._predictor is not None:
            self.view._request = request
            self._predictor.observe(self.view, request.output_tokens)
        self.over(request)

    def over(self, request: Request) -> None:
        """Tell everybody that a request has ended."""
        if self.on_done is not None:
            self.on_done(request)
        if self.moves.by_id is not None:
            del self.moves.by_id[request.id]
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
        if self.patience.is_spare(request):
            return  # a copy that nobody wants, or the same replica again
        request.reason = reason
        self.end(request, REJECTED)

    def end_unseen(self, request: Request, status: int) -> None:
        """Note the terminal state of a request that never came in."""
        if self.swapping is not None and request.model is None:
            request.model = self.swapping.default_model
        if request.model not in self.groups:
            self._group(request.model)
        if self.moves.by_id is not None:
            self.moves.by_id[request.id] = request
        self.end(request, status)

    def end(self, request: Request, status: int) -> None:
        """Note the terminal state of a request that is at no replica."""
        if self.patience.ends_later(request, status):
            return  # its copy is on its way out and will be charged to it
        request.status = status
        request.end_s = self.clock.now_s
        self.patience.calm(request)
        self.over(request)

    def withdraw(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back from its replica, or from who waits to be sent; `then` is not called if it ends before."""
        if self.images.let_go(request, then):
            return
        if self.forget_outside(request):
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
        if request.lenders:
            self.replicas[request.replica].batches[request.rank].forget_loans(request, True)
        self.drop_burdens(request)
        self.leave(request)
        then(request)

    def drop_burdens(self, request: Request) -> None:
        """Forget what a request was going to bring along, and where it was going to be answered."""
        if request.carrier is not None:
            request.carrier.release()
        request.carrier = None
        request.carried_tokens = 0
        if request.decode_at >= 0:
            self.promise(request, -1)

    def forget_outside(self, request: Request) -> bool:
        """Take a request out of where it waits before it is sent to a replica; whether it was there."""
        if self.windows.let_go(request):
            return True
        if self.outside.pop(request, _GONE) is _GONE:
            return False
        self.presence.waiting_room.pop(request, None)
        return True

    def inherit(self, request: Request, heir: Request) -> None:
        """Let another object stand for a request from now on, whose replica cannot be told to give it back."""
        by_id = self.moves.by_id
        if by_id is not None and by_id.get(request.id) is request:
            by_id[request.id] = heir
        self.patience.inherit(request, heir)
        self.moves.call_off(request)

    def arrive(self, request: Request, target: Replica, rank: int) -> None:
        """Let a decoding request that has left its replica go on at another one: on this rank, or on any (-1)."""
        request.replica = target.index
        for view, position in self.views[target.index]:
            view.sent(position, request.prompt_tokens)
            view.started(position, request.prompt_tokens)
        if self.classes is not None:
            self._came(request)
        self.presence.deliver(target, request, self.clock.now_s, rank)

    # --- the end -----------------------------------------------------------------------------------------------------

    def left(self) -> list[Request]:
        """Requests that are at no replica when the run ends, and those that ended but wait for a copy to be taken back."""
        left = [*self.outside, *self.images.encoding, *self.patience.in_doubt(), *self.presence.in_doubt()]
        return left if self.presence.gateways is None else [*left, *self.presence.gateways.held()]


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


_GONE: Any = object()
_PLAIN = Route(-1)
"""What a router that answers with a number means."""
