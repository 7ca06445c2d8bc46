"""Replicas that change their LLM: requests wait in front of them until a placement policy sends them or has an LLM loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.engine.replica import Meter, Replica
from fleetsim.errors import LawError, PolicyError
from fleetsim.fleet.pool import Pool
from fleetsim.kernel.clock import Clock, Timer
from fleetsim.network.flows import Flow, Network
from fleetsim.placement.api import Decision, Engine, Load, Place, Send, TakeBack
from fleetsim.plugins import Choice
from fleetsim.routing.api import RequestView
from fleetsim.workload.request import FINISHED, Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway

_NOTHING = Meter(0.0, 0.0, 0, 0, 0, 0)
_TOO_LONG = "longer than the KV cache"


class KeptKv:
    """Keys and values of a request that was taken back, in host memory: the `Carrier` that brings them to where it runs next."""

    __slots__ = ("_copied", "_flow", "_lacking", "_out", "_request", "_seat", "size_bytes", "tokens")

    def __init__(self, seat: Seat, request: Request, tokens: int, size_bytes: float) -> None:
        self._seat: Seat = seat
        self._out: Flow | None = None
        """The copy to the host, while it is under way."""
        self._request = request
        self.tokens = tokens
        self.size_bytes = size_bytes
        self._copied = False
        """Whether all of it is on the host."""
        self._lacking = 0
        """Tokens to bring once it is."""
        self._flow: Flow | None = None

    def begin(self) -> None:
        """Copy it to the host."""
        seat = self._seat
        self._out = seat.cell.network().transfer(seat.gpu, seat.host, self.size_bytes, partial(seat.copied, self))

    def lose(self) -> Request:
        """The replica has failed: a copy that is not whole is none. Returns its request."""
        assert self._out is not None
        self._seat.cell.network().cancel(self._out)
        return self._request

    def arrived(self) -> None:
        """The copy to the host is over."""
        self._copied = True
        if self._lacking:
            self.fetch(self._request, self._lacking)

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to bring the last `tokens` of the request's carried tokens, once they are on the host."""
        if not tokens:
            self._back(request)
            return
        self._lacking = tokens
        if self._copied:
            network, target = self._seat.cell.network(), self._seat.cell.replica(request.replica)
            size_bytes = tokens / self.tokens * self.size_bytes
            self._flow = network.transfer(self._seat.host, f"gpu:{target.index}", size_bytes, self._brought)

    def _brought(self) -> None:
        request = self._request
        self._flow = None
        self._lacking = 0
        self._back(request)
        self._seat.cell.replica(request.replica).loaded(request)

    def drop(self, request: Request) -> None:
        """Stop bringing them; the host's copy stays."""
        self._lacking = 0
        if self._flow is not None:
            self._seat.cell.network().cancel(self._flow)
            self._flow = None

    def release(self) -> None:
        """Give the host's room back."""
        self.drop(self._request)
        self._seat.kept.pop(self, None)

    def _back(self, request: Request) -> None:
        request.carrier = None
        self._seat.kept.pop(self, None)


class Seat:
    """One replica that changes its LLM: what it holds, how it gets another one, and what it did with each."""

    def __init__(self, cell: Swapping, number: int, replica: Replica, pool: Pool) -> None:
        self.cell = cell
        self.number = number
        self.replica = replica
        self.pool = pool
        self.variant = pool
        """What its pool is with the LLM that it holds, or loads."""
        self.host = ""
        self.place = Place(
            pool.name,
            {name: self._engine(other) for name, other in pool.variants.items()},
            self._answered,
            partial(cell.carbon_of, pool),
            self._all_answered,
        )
        self.kept: dict[KeptKv, None] = {}
        """Keys and values on its host."""
        self.copying: dict[KeptKv, None] = {}
        """What is on its way there, whether somebody still wants it or not."""
        self.loading_since_s = inf
        self._late_loads: list[tuple[float, float]] = []
        """When loads that ended after the last request did so far began and ended: the run may be over before they are [s]."""
        self._loaded_s = 0.0
        """Time that the others took, those under way not counted [s]."""
        self.loads = 0
        self.load_bytes = 0.0
        self.warm: dict[str, float] = {}
        """Weights kept on its host beside those that always lie there, by LLM [bytes]; the last used is last."""
        self._done: dict[str, Meter] = {}
        """What it did with each LLM until it gave it up."""
        self._mark = _NOTHING
        self.down = False
        """Whether it has failed, or is leaving, and has not come back."""
        self._lost: list[Request] = []
        """Requests that it kept keys and values for which are lost, while nobody has noticed."""
        self._flow: Flow | None = None
        """Weights on their way."""
        self._setup: Timer | None = None
        """What comes after them."""

    # --- what a policy sees ------------------------------------------------------------------------------------------

    def _engine(self, variant: Pool) -> Engine:
        scheduler = variant.config.engine.scheduler.config

        def decode_s(batch: float, tokens: float) -> float:
            fit = variant.decode_time()
            return fit.per_step_s + fit.per_request_s * batch + fit.per_token_s * tokens

        return Engine(
            seats=int(getattr(scheduler, "max_seqs", 1 << 30)) * variant.config.parallelism.dp,
            capacity_tokens=variant.capacity_tokens * variant.config.parallelism.dp,
            load_s=partial(self._load_s, variant, variant.weight_bytes),
            decode_s=decode_s,
            prefill_s=lambda tokens: variant.prefill_time().seconds(tokens, 0.0),
        )

    def _load_s(self, variant: Pool, size_bytes: float) -> float:
        network = self.cell.network()
        return network.estimate_s(self._source(variant), self.gpu, size_bytes) + self.pool.config.swap.setup

    def _answered(self, request_id: int) -> int:
        request = self.cell.requests[request_id]
        return self.replica.context_tokens(request) - request.prompt_tokens

    def _all_answered(self) -> list[int]:
        requests, replica = self.cell.requests, self.replica
        done = 0 if replica.has_chunks else replica.steps_done(self.cell.clock.now_s)
        steps = [batch.step + done for batch in replica.batches]
        found: list[int] = []
        for request_id in self.place.sent:
            request = requests[request_id]
            if request.finish_step < 0:
                found.append(request.generated)
            else:
                found.append(request.output_tokens - request.finish_step + steps[request.rank])
        return found

    # --- loading -----------------------------------------------------------------------------------------------------

    @property
    def gpu(self) -> str:
        """Its memory in the network."""
        return f"gpu:{self.replica.index}"

    def _source(self, variant: Pool) -> str:
        """Where the weights of an LLM are nearest."""
        if not self.host:
            self.host = str(self.cell.network().graph.nodes[self.gpu]["host"])
        where = self.pool.config.swap.weights
        if where == "host" or variant.llm.name in self.warm:
            return self.host
        return "store" if where == "store" else self.host.replace("host", "ssd")

    def begin_if_empty(self) -> None:
        """Begin the load that was decided, if nobody runs here any more and nothing is being copied out."""
        place = self.place
        if place.loads is not None and place.holds is not None and not place.sent and not self.copying:
            place.holds = None
            self.replica.at_boundary(self._begin)

    def _begin(self) -> None:
        """Give up the old LLM, and have the weights of the new one brought."""
        if self.down:
            return
        clock, model = self.cell.clock, self.place.loads
        assert model is not None
        self._note(clock.now_s)
        self.variant = variant = self.pool.variants[model]
        self.loading_since_s = clock.now_s
        source = self._source(variant)
        self._keep_warm(variant)
        self.load_bytes += variant.weight_bytes
        self.cell.note(self, "model_load_begun", model)
        self.hold(variant)
        self._flow = self.cell.network().transfer(source, self.gpu, variant.weight_bytes, self._brought)

    def _brought(self) -> None:
        clock = self.cell.clock
        self._flow = None
        self._setup = clock.at(clock.now_s + self.pool.config.swap.setup, self._loaded)

    def _loaded(self) -> None:
        place = self.place
        self._setup = None
        self._end_load()
        self.loads += 1
        place.holds, place.loads = place.loads, None
        assert place.holds is not None
        self.cell.note(self, "model_loaded", place.holds)
        self.cell.ask()

    def _end_load(self) -> None:
        """Count the time of a load that is over."""
        loads, self._late_loads = [*self._late_loads, (self.loading_since_s, self.cell.clock.now_s)], []
        self.loading_since_s = inf
        for began_s, ended_s in loads:
            if ended_s <= self.cell.last_end_s:
                self._loaded_s += ended_s - began_s
            else:
                self._late_loads.append((began_s, ended_s))

    # --- failing, leaving and coming back ------------------------------------------------------------------------------

    def leave(self) -> None:
        """The replica takes no more requests: what it was about to load it does not."""
        self.down = True
        if self._flow is not None:
            self.cell.network().cancel(self._flow)
            self._flow = None
        if self._setup is not None:
            self._setup.cancel()
            self._setup = None
        if self.loading_since_s < inf:
            self._end_load()
        self.away()

    def away(self) -> None:
        """Let the policy know that it is not there."""
        place = self.place
        if place.here:
            place.loads, place.holds, place.here = place.last, None, False
            self.cell.ask()

    def fail(self) -> None:
        """The replica loses its memory; nobody knows yet."""
        here, holds, loads = self.place.here, self.place.holds, self.place.loads
        self.leave()
        self.place.here, self.place.holds, self.place.loads = here, holds, loads
        for copy in self.copying:
            request = copy.lose()
            if self.kept.pop(copy, self) is not self:
                self._lost.append(request)
        self.copying.clear()

    def noticed(self) -> None:
        """The gateway notices that the replica has failed."""
        self.away()
        lost, self._lost = self._lost, []
        for request in lost:
            self.cell.begin_again(request)

    def start(self) -> Pool:
        """What it will be when it is there again."""
        return self.pool.variants[self.place.last]

    def back(self) -> None:
        """The replica is there again, with the LLM that it was to hold."""
        place = self.place
        model = place.last
        if model != self.variant.llm.name:
            self._note(self.cell.clock.now_s)
            self.hold(self.pool.variants[model])
        self._keep_warm(self.variant)
        self.down = False
        place.holds, place.loads, place.here = model, None, True
        self.cell.ask()

    def hold(self, variant: Pool) -> None:
        """Let the replica be what it is with an LLM: nothing is cached yet, counts of what it evicted go on."""
        self.variant = variant
        scheduler, batches = self.cell.engine_of(variant, self.replica.index)
        for old, new in zip(self.replica.batches, batches, strict=True):
            new.preemptions = old.preemptions
            new.cache.evicted = old.cache.evicted
        self.replica.hold(variant.model, scheduler, batches, variant.llm.layers, variant.suspended_tokens)

    def _keep_warm(self, variant: Pool) -> None:
        """Keep what comes from drives or the store on the host, if it has room; what was used longest ago goes."""
        swap, name = self.pool.config.swap, variant.llm.name
        room = swap.host_capacity or 0.0
        if swap.weights == "host" or variant.weight_bytes > room:
            return
        self.warm.pop(name, None)
        self.warm[name] = variant.weight_bytes
        while sum(self.warm.values()) > room:
            del self.warm[next(iter(self.warm))]

    # --- keys and values of who was taken back ---------------------------------------------------------------------------

    def keep(self, request: Request) -> None:
        """Copy the keys and values of a request that was just taken back to the host, if it has room."""
        if self.down:
            return  # what was computed is gone
        swap, chips = self.pool.config.swap, self.pool.config.parallelism.accelerators
        size_bytes = request.computed * self.variant.kv_bytes_per_token
        room = swap.kv_capacity * chips - sum(copy.size_bytes for copy in self.kept)
        if swap.kv != "host" or not request.computed or size_bytes > room:
            return
        self._source(self.variant)
        copy = KeptKv(self, request, request.computed, size_bytes)
        self.kept[copy] = None
        request.carrier = copy
        request.carried_tokens = request.computed
        self.copying[copy] = None
        copy.begin()

    def copied(self, copy: KeptKv) -> None:
        """A copy to the host is over."""
        del self.copying[copy]
        copy.arrived()
        self.begin_if_empty()

    # --- what it did -----------------------------------------------------------------------------------------------------

    def _note(self, now_s: float) -> None:
        """Add what was done since the last note to the LLM held."""
        meter = self.replica.meter(now_s)
        done = self._done.get(self.variant.llm.name, _NOTHING)
        self._done[self.variant.llm.name] = _sum(done, meter, self._mark)
        self._mark = meter

    def shares(self, now_s: float) -> Iterator[tuple[Pool, Meter]]:
        """What it did with each LLM until now."""
        meter = self.replica.meter(now_s)
        held = self.variant.llm.name
        for name, variant in self.pool.variants.items():
            done = self._done.get(name, _NOTHING)
            yield variant, _sum(done, meter, self._mark) if name == held else done

    def loading_s(self, now_s: float) -> float:
        """Time that it spent loading until now [s]."""
        late_s = sum([max(min(ended_s, now_s) - began_s, 0.0) for began_s, ended_s in self._late_loads])
        return self._loaded_s + late_s + max(now_s - self.loading_since_s, 0.0)

    def loading_j(self, now_s: float) -> float:
        """Energy above idle power that this took: a chip that copies is awake [J]."""
        model = self.replica.model
        return self.loading_s(now_s) * max(model.static_w - model.idle_w, 0.0)

    @property
    def state(self) -> str:
        """As the tables call it, while it is on."""
        return "ready" if self.place.loads is None else "draining" if self.place.holds is not None else "loading"


class Swapping:
    """The replicas of all pools with `models`, the requests that wait in front of them, and the policy that decides.

    Parameters
    ----------
    gateway : Gateway
        Sends requests, and takes them back.
    replicas, pools : sequence
        These replicas, and the pool of each.
    choice : Choice
        The policy.
    rng : Generator
        Its random stream.
    network : callable
        What weights, keys and values travel over.
    engine_of : callable
        A scheduler and empty batches for a replica that holds what a pool is with one LLM.
    carbon_of : callable
        Carbon intensity where a pool stands, now and with cooling [g/kWh].
    stranded : callable
        Whether all that is under way waits for replicas that are gone for good.
    """

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        replicas: Sequence[Replica],
        pools: Sequence[Pool],
        choice: Choice,
        rng: Any,
        network: Callable[[], Network],
        engine_of: Callable[[Pool, int], tuple[Any, Any]],
        carbon_of: Callable[[Pool], float],
        stranded: Callable[[], bool],
    ) -> None:
        self.clock = clock
        self.network = network
        self.engine_of = engine_of
        self.carbon_of = carbon_of
        self._stranded = stranded
        self._gateway = gateway
        self.requests: dict[int, Request] = {}
        """Those that wait or were sent, by id."""
        self._views: dict[int, RequestView] = {}
        self._waiting: dict[int, None] = {}
        self.events: list[tuple[float, str, str, int, int, str]] = []
        """Time, kind, pool, replica over the fleet, 1, LLM."""
        self._asked = False
        """Whether the policy will be asked at this instant."""
        self._busy = False
        """Whether it is still thinking."""
        self._again = False
        """Whether something happened meanwhile."""
        self._tick: Timer | None = None
        self.seats = [Seat(self, number, r, p) for number, (r, p) in enumerate(zip(replicas, pools, strict=True))]
        self.last_end_s = 0.0
        """When the last request so far ended [s]."""
        self._default_model = pools[0].llm.name
        self._answers: dict[int, str] = {}
        """LLM to whose replica each request that names none was sent last, where the policy chooses, by id."""
        self._by_index = {seat.replica.index: seat for seat in self.seats}
        for seat in self.seats:
            seat.pool.seats[seat.replica.index] = seat
        self.policy: Any = choice.create(rng, [seat.place for seat in self.seats])
        """Not trusted to keep its Protocol."""
        self._name = choice.name
        self._chooses = bool(getattr(self.policy, "chooses_model", False))
        self._period_s = float(getattr(self.policy, "period_s", inf))
        if not self._period_s > 0.0:
            raise PolicyError(f"placement {choice.name} wants to be asked every {self._period_s} s")
        self._start()

    def _start(self) -> None:
        """Let replicas hold what the policy wants them to begin with."""
        initial = getattr(self.policy, "initial", None)
        names = [seat.pool.llm.name for seat in self.seats] if initial is None else list(initial())
        if len(names) != len(self.seats):
            raise PolicyError(f"placement {self._name} names {len(names)} LLMs for {len(self.seats)} replicas")
        for seat, name in zip(self.seats, names, strict=True):
            if name not in seat.pool.variants:
                raise PolicyError(f'placement {self._name}: a replica of {seat.pool.name} cannot hold "{name}"')
            seat.place.holds = name
            if name != seat.variant.llm.name:
                seat.hold(seat.pool.variants[name])
            seat._keep_warm(seat.variant)

    def replica(self, index: int) -> Replica:
        """A replica by its number over the fleet."""
        return self._by_index[index].replica

    def note(self, seat: Seat, kind: str, model: str) -> None:
        """Note what happened to a replica."""
        self.events.append((self.clock.now_s, kind, seat.pool.name, seat.replica.index, 1, model))

    # --- requests ------------------------------------------------------------------------------------------------------

    @property
    def default_model(self) -> str | None:
        """LLM of requests that name none; None if the policy chooses one."""
        return None if self._chooses else self._default_model

    def name_answer(self, request: Request) -> bool:
        """Let a request that is over and named no LLM be of the one that answered it; whether it named none."""
        self.last_end_s = self.clock.now_s
        if request.model is not None:
            return False
        request.model = self._answers.pop(request.id, None)
        return True

    def take(self, request: Request) -> str | None:
        """Let a new request wait; why not, if no replica can serve it."""
        needed = request.prompt_tokens + request.output_tokens
        rooms = [
            variant.capacity_tokens
            for seat in self.seats
            for name, variant in seat.pool.variants.items()
            if request.model in (None, name)
        ]
        if needed > min(rooms):
            return _TOO_LONG  # wherever it were sent
        self.requests[request.id] = request
        self._wait(request)
        return None

    def waiting(self) -> list[Request]:
        """Requests that wait in front of the replicas."""
        return [self.requests[number] for number in self._waiting]

    def _wait(self, request: Request) -> None:
        if request.queued_s != request.queued_s:
            request.queued_s = self.clock.now_s
        self._gateway.outside[request] = None
        self._waiting[request.id] = None
        view = self._views[request.id] = RequestView(request)
        self.policy.arrived(view, self.clock.now_s)
        self.ask()

    def gone(self, request: Request) -> None:
        """A request is not waited for any more, or has left its replica."""
        if self.requests.pop(request.id, None) is None:
            return
        del self._views[request.id]
        self._waiting.pop(request.id, None)
        seat = self._by_index.get(request.replica)
        if seat is not None and seat.place.sent.pop(request.id, None) is not None and seat.place.loads is not None:
            self.clock.at(self.clock.now_s, seat.begin_if_empty)  # after what it leaves is being copied
        self.policy.left(request.id)
        self.ask()

    # --- decisions -----------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Have the policy asked at this instant, after all that happens at it."""
        if self._busy:
            self._again = True
        elif not self._asked:
            self._asked = True
            self.clock.at(self.clock.now_s, self._decide)

    def _decide(self) -> None:
        self._asked = False
        if self._busy:
            return
        now_s = self.clock.now_s
        decision = self.policy.decide(now_s)
        if not isinstance(decision, Decision) or not 0.0 <= decision.time_s < inf:
            raise PolicyError(f"placement {self._name} answered {decision!r}")
        if decision.time_s:
            self._busy = True
            self.clock.at(now_s + decision.time_s, partial(self._done, decision))
        else:
            self._act(decision)
        if self.requests and self._tick is None and self._period_s < inf:
            self._tick = self.clock.at(now_s + self._period_s, self._ticked)

    def _done(self, decision: Decision) -> None:
        """The policy has finished thinking."""
        self._busy = False
        self._act(decision)
        if self._again:
            self._again = False
            self.ask()

    def _ticked(self) -> None:
        self._tick = None
        if self.requests and not self._stranded():
            self.ask()

    def _act(self, decision: Decision) -> None:
        for action in decision.actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, TakeBack):
                self._take_back(action.request)
            elif isinstance(action, Load):
                self._load(action)
            else:
                raise PolicyError(f"placement {self._name} answered {action!r}")

    def _seat(self, number: int) -> Seat:
        if not (type(number) is int and 0 <= number < len(self.seats)):
            raise PolicyError(f"placement {self._name} names replica {number!r}; there are {len(self.seats)}")
        return self.seats[number]

    def _send(self, action: Send) -> None:
        seat, request = self._seat(action.replica), self.requests.get(action.request)
        if request is None or request.id not in self._waiting:
            return
        if request.model is not None and request.model not in seat.pool.variants:
            raise PolicyError(f'placement {self._name} sends a request for "{request.model}" to {seat.pool.name}')
        holds = seat.place.open
        gateways = self._gateway.presence.gateways
        if holds is None or request.model not in (None, holds) or (gateways is not None and gateways.lacks(request)):
            self.policy.arrived(self._views[request.id], self.clock.now_s)
            return
        if request.model is None:
            self._answer_by(request, holds)
        del self._waiting[request.id]
        del self._gateway.outside[request]
        seat.place.sent[request.id] = self._views[request.id]
        self._gateway.send(request, seat.replica)

    def _answer_by(self, request: Request, model: str) -> None:
        """Note which LLM answers a request; keys and values of another one are of no use to it."""
        if self._answers.get(request.id, model) != model and request.carrier is not None:
            request.carrier.release()
            request.carrier = None
            request.carried_tokens = 0
        self._answers[request.id] = model

    def begin_again(self, request: Request) -> None:
        """Keys and values of a request that was taken back are lost: it is computed anew, wherever it is by now."""
        if request.id not in self.requests or request.carrier is None:
            return
        if request.id in self._waiting:
            request.carrier = None
            request.carried_tokens = 0
        else:
            self._gateway.presence.send_again(request)

    def _take_back(self, request_id: int) -> None:
        request = self.requests.get(request_id)
        if request is None or request_id in self._waiting or request.reason is not None:
            return
        seat = self._by_index[request.replica]
        running = request in seat.replica.batches[request.rank].running
        self._gateway.take_back(request, partial(self._returned, seat, running))

    def _returned(self, seat: Seat, running: bool, request: Request) -> None:
        """A request is out of its replica."""
        if request.status == FINISHED:
            raise LawError(f"request {request.id} was taken back after its end")
        if running:
            request.preemptions += 1
            seat.keep(request)
        self.requests[request.id] = request
        self._wait(request)

    def _load(self, action: Load) -> None:
        seat = self._seat(action.replica)
        place = seat.place
        if action.model not in place.engines:
            raise PolicyError(f'placement {self._name}: {seat.pool.name} cannot hold "{action.model}"')
        if place.holds is None:
            return  # on its way to another one
        place.loads = None if place.holds == action.model else action.model
        if place.loads is not None and action.preempt:
            for request_id in list(place.sent):
                self._take_back(request_id)
        seat.begin_if_empty()

    # --- laws ------------------------------------------------------------------------------------------------------------

    def verify(self, end_s: float) -> None:
        """Check the books at the end of a run (laws 3 and 4).

        Raises
        ------
        LawError
            If copies are left over, a replica did more than there was time for, or what it did with each LLM does not add up.
        """
        for seat in self.seats:
            if any(copy.size_bytes <= 0 for copy in seat.kept):
                raise LawError(f"law 3 (keys and values on the host of replica {seat.replica.index})")
            meter, shares = seat.replica.meter(end_s), [share for _, share in seat.shares(end_s)]
            if abs(sum(share.busy_s for share in shares) - meter.busy_s) > 1e-9 * max(meter.busy_s, 1.0):
                raise LawError(f"law 4 (busy time): replica {seat.replica.index} by LLM")
            if meter.busy_s + seat.loading_s(end_s) > end_s * (1 + 1e-9) + 1e-9:
                raise LawError(f"law 4 (busy and loading): replica {seat.replica.index} beyond {end_s} s")


def _sum(done: Meter, meter: Meter, mark: Meter) -> Meter:
    """What was done before, and from one reading of a meter to another."""
    return Meter(
        done.busy_s + meter.busy_s - mark.busy_s,
        done.energy_j + meter.energy_j - mark.energy_j,
        done.steps + meter.steps - mark.steps,
        done.prompt_tokens + meter.prompt_tokens - mark.prompt_tokens,
        done.output_tokens + meter.output_tokens - mark.output_tokens,
        done.ctx_tokens_read + meter.ctx_tokens_read - mark.ctx_tokens_read,
    )
