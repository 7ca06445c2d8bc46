"""Queue management by groups of requests over replicas that change their LLM, as QLM's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import inf, sqrt
from typing import Annotated, ClassVar, NamedTuple

from numpy.random import Generator
from pydantic import Field

from fleetsim.placement.api import Action, Decision, Engine, Load, Place, RequestView, Send, TakeBack
from fleetsim.placement.queue_search import Program, assigned
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds, SecondsOrZero

Count = Annotated[int, Field(ge=1, strict=True)]


class QlmConfig(PolicyConfig):
    """Parameters of QLM; deadlines stand in the scenario's `slo`."""

    output_mean_tokens: Annotated[float, Field(gt=0, allow_inf_nan=False, json_schema_extra={"unit": "tokens"})] = 200.0
    """Mean output length, taken where no predictor says more."""
    output_std_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False, json_schema_extra={"unit": "tokens"})] = 200.0
    """Standard deviation of output lengths about what is expected."""
    z: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.645
    """Standard deviations by which the estimate lies above the mean; 1.645 covers 95 % of a normal distribution."""
    group_requests: Count = 64
    """Requests of one group at most; an assumption."""
    check: Seconds = 1.0
    """Time between two looks at who would be late, while no group comes."""
    solver: SecondsOrZero = 0.1
    """Time charged for solving the integer program; what this machine takes for it never enters a result."""
    solver_groups: Annotated[int, Field(ge=2, le=32, strict=True)] = 10
    """Groups that the program assigns: those with the earliest deadlines that can be kept; the others stay behind them."""
    solver_nodes: Count = 1000
    """Groups that the search for the program's answer places, over all branches, until the best so far counts, or none: a count,
    so that equal scenarios give equal results."""
    evict: bool = True
    """Whether running requests of looser groups give way to a group that would be late."""
    balance: bool = True
    """Whether a replica with nothing to do takes over the last group of another one's queue."""


class Group:
    """Waiting requests of one LLM and class."""

    __slots__ = ("_due_s", "limit_s", "members", "model", "number", "prompt_tokens", "taken", "tokens")

    def __init__(self, number: int, model: str, limit_s: float) -> None:
        self.number = number
        self.model = model
        self.limit_s = limit_s
        """Time to first token that its class allows [s]."""
        self.members: dict[int, tuple[RequestView, float, float]] = {}
        """By id: the request, the instant by which it should run [s], and the output that is expected of it [tokens]."""
        self.taken = 0
        """Requests that have joined it, those that have left again included."""
        self.tokens = 0.0
        """Output that is expected of its members."""
        self.prompt_tokens = 0
        self._due_s = inf

    def join(self, request: RequestView, due_s: float, tokens: float) -> None:
        """Take a request in."""
        self.members[request.id] = (request, due_s, tokens)
        self._due_s = min(self.due_s, due_s)
        self.taken += 1
        self.tokens += tokens
        self.prompt_tokens += request.prompt_tokens

    def leave(self, request: int) -> None:
        """Let a request go."""
        view, due_s, tokens = self.members.pop(request)
        if due_s <= self._due_s:
            self._due_s = -inf  # found anew when somebody asks
        self.tokens -= tokens
        self.prompt_tokens -= view.prompt_tokens

    @property
    def due_s(self) -> float:
        """The earliest of its members' deadlines [s]."""
        if self._due_s == -inf:
            self._due_s = min([due_s for _, due_s, _ in self.members.values()], default=inf)
        return self._due_s


class Waits(NamedTuple):
    """When the groups of a queue would be done."""

    end_s: float
    """The last of them [s from now]."""
    late: bool
    """Whether any of them would be late."""


class Qlm:
    """QLM: groups of requests in one virtual queue per replica; who would be late has an integer program rearrange them.

    Rule: waiting requests of the same LLM and class are a group, up to `group_requests`; each replica has a queue of groups, served
    one after the other. A new group goes to the queue in which it would be done first. The waiting time of n requests is estimated
    as mu n + z sigma sqrt(n) tokens over the token throughput that the replica has with their LLM and a full batch, and their
    prompts; changing the LLM between two groups adds the swap. Whenever groups come, and every `check`, each queue is added up like
    this, behind what runs; if a group would end after its deadline (the earliest of its members'), an integer program assigns
    groups to places in the queues so that none does and the queues end as early as they can; where there is no such assignment,
    each queue is put in order of deadlines. Who would be late even alone on the best replica is left out of the program and comes
    after those that it placed.

    Then each replica pulls from its first group as many requests as its cache has room for; changes to the group's LLM once what
    runs has ended; takes back running requests of classes with longer limits where the group would be late otherwise, the loosest
    and latest first, for another LLM all of them (`evict`; what becomes of their keys and values is the pool's `swap.kv`; they have
    their limit anew from then on); and, with nothing to do, takes the last group of the queue that ends last (`balance`).

    Groups in the queue of a replica that is not there any more go to others like new ones.

    Charged: swaps and what is taken back, as the pool's `swap` says; `solver` per program, during which nothing else is decided.
    The program is solved by branch and bound, to 5 % of the least sum of ends unless `solver_nodes` stops it. The demo of the
    authors draws the first queue of a group at random.

    References
    ----------
    A. Patke et al., "Queue Management for SLO-Oriented Large Language Model Serving", SoCC 2024, arXiv:2407.00047.
    """

    Config: ClassVar = QlmConfig

    def __init__(self, config: QlmConfig, rng: Generator, places: Sequence[Place]) -> None:  # noqa: ARG002
        self.config = config
        self.places = places
        self.period_s = config.check
        self._numbers = count()
        self.queues: list[list[Group]] = [[] for _ in places]
        self._open: dict[tuple[str | None, str | None], Group] = {}
        """The group that a request joins, by LLM and class."""
        self._group_of: dict[int, Group] = {}
        self._expected: dict[int, float] = {}
        """Output that is expected of requests that wait or were sent [tokens]."""
        self._out: dict[int, float] = {}
        """The same of those that ended or were taken back at this instant."""
        self._sent_to: dict[int, int] = {}
        """Replica that each request was sent to."""
        self._changed = set(range(len(places)))
        """Replicas to look at: their queue or who runs there is not what it was."""
        self._seen: list[tuple[str | None, str | None]] = [(None, None)] * len(places)
        """LLM that each held and changed to when it was looked at last."""
        self._check_s = 0.0
        """When to look again at who would be late."""
        self._runs: dict[int, float] = {}
        """Times until those who run are done, as far as they were asked for at this instant."""
        self._runs_at_s = -inf
        self._tried: frozenset[int] = frozenset()
        """Groups that a program has been made of last."""
        self._rates: dict[tuple[str, str], tuple[float, float]] = {}

    # --- what happens --------------------------------------------------------------------------------------------------

    def arrived(self, request: RequestView, now_s: float) -> None:
        """Let a request join the open group of its kind, or begin one in the queue where that would be done first."""
        limit_s = _limit_s(request)
        due_s = round(
            request.deadline_s, 6
        )  # what is due at once is so to the last bit, whichever way times were added up
        key = (request.model, request.klass)
        self._sent_to.pop(request.id, None)
        if self._out.pop(request.id, None) is not None:  # taken back: its limit counts anew, in a group of such ones
            due_s = round(now_s + limit_s, 6)
            key = (request.model, f"{request.klass} again")
        predicted = request.predicted_tokens
        tokens = self._expected[request.id] = float(predicted if predicted >= 0 else self.config.output_mean_tokens)
        group = self._open.get(key)
        fresh = group is None or group.taken >= self.config.group_requests or not group.members
        if group is None or fresh:
            assert request.model is not None
            group = self._open[key] = Group(next(self._numbers), request.model, limit_s)
        group.join(request, due_s, tokens)
        self._group_of[request.id] = group
        if fresh:
            self._append(group, now_s)
        else:
            self._changed.add(next((number for number, queue in enumerate(self.queues) if group in queue), 0))

    def _append(self, group: Group, now_s: float) -> None:
        """Put a group into the queue in which it would be done first, of replicas that are there if any are."""
        able = [number for number, place in enumerate(self.places) if group.model in place.engines]
        able = [number for number in able if self.places[number].here] or able
        best = min(able, key=lambda number: self._walk(number, [*self.queues[number], group], now_s).end_s)
        self.queues[best].append(group)
        self._check_s = now_s
        self._changed.add(best)

    def _leave_absent(self, now_s: float) -> None:
        """Take groups out of the queues of replicas that are not there, where another one can hold their LLM."""
        known = {name for place in self.places if place.here for name in place.engines}
        for number, place in enumerate(self.places):
            if not place.here:
                moved = [group for group in self.queues[number] if group.model in known]
                self.queues[number] = [group for group in self.queues[number] if group.model not in known]
                for group in moved:
                    self._append(group, now_s)

    def left(self, request: int) -> None:
        """Forget a request; one that was sent may be back in a moment."""
        tokens = self._expected.pop(request)
        place = self._sent_to.pop(request, -1)
        if place >= 0:
            self._changed.add(place)
        group = self._group_of.pop(request, None)
        if group is None:
            self._out[request] = tokens
        else:
            group.leave(request)

    def decide(self, now_s: float) -> Decision:
        """Rearrange the queues if anybody would be late, then let every replica pull."""
        for queue in self.queues:
            queue[:] = [group for group in queue if group.members]
        if not all([place.here for place in self.places]):
            self._leave_absent(now_s)
        self._out.clear()
        self._runs.clear()
        thought_s = 0.0
        if now_s >= self._check_s:
            self._check_s = now_s + self.config.check
            self._changed.update(range(len(self.places)))
            thought_s = self._rearrange(now_s)
        actions: list[Action] = []
        for number, place in enumerate(self.places):
            held = place.holds, place.loads
            if number in self._changed or held != self._seen[number] or not (self.queues[number] or place.sent):
                self._seen[number] = held
                self._serve(number, now_s, actions)
        self._changed.clear()
        return Decision(actions, thought_s)

    # --- waiting times ---------------------------------------------------------------------------------------------------

    def _rate(self, place: Place, model: str) -> tuple[float, float]:
        """Seconds per output token of a full batch, and requests in it."""
        key = place.pool, model
        known = self._rates.get(key)
        if known is None:
            engine, mean = place.engines[model], self.config.output_mean_tokens
            context = 2.0 * mean
            size = max(1.0, min(float(engine.seats), engine.capacity_tokens / context))
            known = self._rates[key] = engine.decode_s(size, size * context) / size, size
        return known

    def _time_s(self, place: Place, model: str, requests: int, tokens: float, prompt_tokens: int) -> float:
        """Upper bound of the time in which so many requests get so many tokens, as expected [s]."""
        config, engine = self.config, place.engines[model]
        bound = tokens + config.z * config.output_std_tokens * sqrt(requests)
        prompts_s = requests * engine.prefill_s(prompt_tokens / requests) if requests else 0.0
        return bound * self._rate(place, model)[0] + prompts_s

    def _group_s(self, place: Place, group: Group) -> float:
        return self._time_s(place, group.model, len(group.members), group.tokens, group.prompt_tokens)

    def _running_s(self, place: Place) -> float:
        """Time until those that were sent to a replica are done [s]."""
        if not place.sent or place.holds is None:
            return place.engines[place.last].load_s() if place.holds is None else 0.0
        tokens = 0.0
        for request, answered in zip(place.sent, place.all_answered(), strict=True):
            tokens += max(self._expected[request] - answered, 1.0)
        running_s = self._time_s(place, place.holds, len(place.sent), tokens, 0)
        return running_s + (place.engines[place.last].load_s() if place.loads is not None else 0.0)

    def _expected_of(self, request: int) -> float:
        return self._expected[request]

    def _walk(self, number: int, queue: Sequence[Group], now_s: float) -> Waits:
        """Add the times of a queue's groups up, behind what runs."""
        place = self.places[number]
        if now_s != self._runs_at_s:
            self._runs.clear()
            self._runs_at_s = now_s
        runs_s = self._runs.get(number)
        if runs_s is None:
            runs_s = self._runs[number] = self._running_s(place)
        end_s, model, late = runs_s, place.last, False
        for group in queue:
            if group.model != model:
                end_s += place.engines[group.model].load_s()
                model = group.model
            end_s += self._group_s(place, group)
            late = late or now_s + end_s > group.due_s
        return Waits(round(end_s, 6), late)

    # --- who goes where ----------------------------------------------------------------------------------------------------

    def _rearrange(self, now_s: float) -> float:
        """Have nobody late, if that can be done; time that this took [s]."""
        if not any([self._walk(number, queue, now_s).late for number, queue in enumerate(self.queues)]):
            return 0.0
        groups = sorted(
            [group for queue in self.queues for group in queue], key=lambda group: (group.due_s, group.number)
        )
        if len(groups) < 2 and len(self.places) < 2:
            return 0.0
        tried = frozenset([group.number for group in groups])
        if tried <= self._tried:
            return 0.0  # no group has come since: what could be done was done
        self._tried = tried
        chosen = [group for group in groups if now_s + self._best_s(group) <= group.due_s][: self.config.solver_groups]
        queues = self._assigned(chosen, now_s) if chosen else None
        if queues is None:
            for queue in self.queues:
                queue.sort(key=lambda group: (group.due_s, group.number))
        else:
            placed = {group.number for group in chosen}
            for queue, first in zip(self.queues, queues, strict=True):
                queue[:] = [*first, *[group for group in queue if group.number not in placed]]
        return float(self.config.solver) if chosen else 0.0

    def _best_s(self, group: Group) -> float:
        """Time that a group would take on the replica that suits it best, were that free [s]."""
        times = []
        for place in self.places:
            if group.model in place.engines:
                swap_s = 0.0 if place.last == group.model else place.engines[group.model].load_s()
                times.append(self._group_s(place, group) + swap_s)
        return min(times)

    def _assigned(self, groups: Sequence[Group], now_s: float) -> list[list[Group]] | None:
        """Queues in which none of `groups` is late, as the integer program has it; None if it finds none."""
        # whole milliseconds: programs that differ in the last bit of a time may have other answers that are as good
        runs_s = [round(self._running_s(place), 3) for place in self.places]
        place_s = [
            [
                round(self._group_s(place, group), 3) if place.here and group.model in place.engines else -1.0
                for place in self.places
            ]
            for group in groups
        ]
        models = [group.model for group in groups]
        swaps_s = [
            {name: round(place.engines[name].load_s(), 3) for name in sorted(set(models)) if name in place.engines}
            for place in self.places
        ]
        lasts = [place.last for place in self.places]
        slack_s = [round(group.due_s - now_s, 3) for group in groups]
        found = assigned(Program(models, place_s, slack_s, runs_s, lasts, swaps_s), self.config.solver_nodes)
        return None if found is None else [[groups[number] for number in queue] for queue in found]

    # --- what a replica does -------------------------------------------------------------------------------------------------

    def _serve(self, number: int, now_s: float, actions: list[Action]) -> None:
        """Pull, swap, evict, or take over a group."""
        place, queue = self.places[number], self.queues[number]
        if place.holds is None:
            return
        if not queue and not place.sent and self.config.balance:
            self._take_over(number, now_s)
        if not queue:
            return
        head = queue[0]
        if place.loads is not None:
            if place.loads != head.model:
                actions.append(Load(number, head.model))  # the queue was rearranged
            elif self._should_evict(place, head, now_s):
                actions.append(Load(number, head.model, preempt=True))
            return
        room = self._room(place)
        seats = place.engines[place.holds].seats - len(place.sent)
        for group in queue:
            if group.model != place.holds:
                break
            for request, _, tokens in list(group.members.values()):
                needed = request.prompt_tokens + tokens
                if seats <= 0 or (needed > room and (place.sent or seats < place.engines[place.holds].seats)):
                    self._make_way(place, group, now_s, actions)
                    return
                room -= needed
                seats -= 1
                self._pull(group, request, number, actions)
        following = next((group for group in queue if group.members), None)
        if following is not None:
            evict = self._should_evict(place, following, now_s)
            actions.append(Load(number, following.model, preempt=evict))

    def _pull(self, group: Group, request: RequestView, number: int, actions: list[Action]) -> None:
        group.leave(request.id)
        del self._group_of[request.id]
        self._sent_to[request.id] = number
        actions.append(Send(request.id, number))

    def _room(self, place: Place) -> float:
        """Tokens that the cache has room for beside those who were sent."""
        assert place.holds is not None
        engine: Engine = place.engines[place.holds]
        taken = sum([view.prompt_tokens + self._expected_of(request) for request, view in place.sent.items()])
        return engine.capacity_tokens - taken

    def _should_evict(self, place: Place, group: Group, now_s: float) -> bool:
        """Whether all who run are of looser classes than a group for another LLM that would be late if they ended first."""
        if not self.config.evict or not place.sent:
            return False
        wait_s = self._drain_s(place) + place.engines[group.model].load_s() + self._group_s(place, group)
        return now_s + wait_s > group.due_s and all([_limit_s(view) > group.limit_s for view in place.sent.values()])

    def _drain_s(self, place: Place) -> float:
        """Time until the last of those who run is expected to end [s]."""
        assert place.holds is not None
        longest = max([self._expected_of(request) - place.answered(request) for request in place.sent])
        token_s, size = self._rate(place, place.holds)
        return float(max(longest, 1.0) * token_s * size)

    def _make_way(self, place: Place, group: Group, now_s: float, actions: list[Action]) -> None:
        """Take back who is of a looser class than a group of the same LLM that would be late without their room."""
        if not self.config.evict or now_s + self._running_s(place) + self._group_s(place, group) <= group.due_s:
            return
        looser = [(_limit_s(view), request) for request, view in place.sent.items() if _limit_s(view) > group.limit_s]
        wanted = len(group.members)
        for _, request in sorted(looser, reverse=True)[:wanted]:
            actions.append(TakeBack(request))

    def _take_over(self, number: int, now_s: float) -> None:
        """Let a replica with nothing to do have the last group of the queue that ends last, if it would be done earlier."""
        place = self.places[number]
        ends_s = [self._walk(other, queue, now_s).end_s if queue else 0.0 for other, queue in enumerate(self.queues)]
        other = max(range(len(ends_s)), key=ends_s.__getitem__)
        queue = self.queues[other]
        if other == number or not queue or (len(queue) == 1 and not self.places[other].sent):
            return
        group = queue[-1]
        if group.model in place.engines and self._walk(number, [group], now_s).end_s < ends_s[other]:
            self.queues[number].append(queue.pop())


def _limit_s(request: RequestView) -> float:
    """Time to first token that its class allows [s], rounded so that it is the same for all of a class."""
    return round(request.deadline_s - request.arrival_s, 6)
