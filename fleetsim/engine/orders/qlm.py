"""Queue management by groups of requests, as QLM's for one model per replica."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, inf, sqrt
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from fleetsim.engine.orders.order import FAR, Key, Order, Outlook, Sorted
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class QlmConfig(PolicyConfig):
    """Parameters of the estimate of waiting times; deadlines stand in the scenario's `slo`."""

    output_mean_tokens: Annotated[float, Field(gt=0, allow_inf_nan=False, json_schema_extra={"unit": "tokens"})] = 200.0
    """Mean output length, taken where no predictor says more."""
    output_std_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False, json_schema_extra={"unit": "tokens"})] = 200.0
    """Standard deviation of output lengths about what is expected."""
    z: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.645
    """Standard deviations by which the estimate lies above the mean; 1.645 covers 95 % of a normal distribution."""
    evict: bool = True
    """Whether running requests of a looser group give way to a group that would miss its deadline."""


class _Group:
    """Waiting requests of one model and class."""

    __slots__ = ("dues", "limit_s", "queue", "tokens")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        """Time to first token that its class allows."""
        self.queue = Sorted()
        """By arrival."""
        self.dues = Sorted()
        """The same requests by deadline."""
        self.tokens = 0.0
        """Output that is expected of them."""


class _Plan(NamedTuple):
    """The queue as it stands at an instant."""

    sequence: list[_Group]
    late: list[_Group]
    """Groups that would miss their deadlines."""
    steps: int
    """Decode steps for which these stay late, however fast the steps are."""
    until_s: float
    """Last instant at which nobody else is late if nothing arrives, ends or is admitted."""


class Qlm(Order):
    """QLM's queue: groups of one class in order of slack, and who is looser is evicted for a group that would be late.

    Rule: waiting requests of the same model and SLO class are a group; within it first come, first served. A group's deadline is
    the earliest of its members' (arrival plus the limit on time to first token; who was evicted has the limit anew from then on).
    Waiting time is estimated for whole groups: n requests that run or go before take mu n + z sigma sqrt(n) tokens (mu their
    predicted, else the configured mean output) over the token throughput of the rank with as many sequences as run now. A group
    would be late if the running requests, the groups before it and it itself are estimated to take longer than its deadline
    leaves. Groups are served by slack (deadline less their own estimated time); if any would be late so, by earliest deadline. For
    requests of a group that would be late even then, running requests of groups with longer limits are preempted, the loosest and
    latest first, unless their own group is before it. Blocks lacking: the loosest, latest request gives way. Charged: preemption,
    as `engine.kv.preemption` says (the authors swap to the host); deciding costs nothing.

    This is the queue of a replica that has one model for good: slack, else earliest deadline, orders it. What QLM does over several
    replicas, with swaps of models, an integer program over their queues and groups that move, is the placement `qlm`.

    References
    ----------
    A. Patke et al., "Queue Management for SLO-Oriented Large Language Model Serving", SoCC 2024, arXiv:2407.00047.
    """

    Config: ClassVar = QlmConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True
    needs_deadlines: ClassVar[bool] = True

    def __init__(self, config: QlmConfig, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self._groups: dict[tuple[str | None, str | None], _Group] = {}
        self._tokens: dict[Request, float] = {}
        """Waiting requests, and the output that is expected of each."""
        self._due_s: dict[Request, float] = {}
        """And the instant by which each should run."""
        self._plan = _Plan([], [], FAR, inf)
        self._decode_s: dict[int, float] = {}

    def key(self, request: Request) -> Key:
        """The tighter limit first, then the earlier arrival; says who gives way, while groups say who is next."""
        return _limit_s(request), request.arrival_s

    def append(self, request: Request) -> None:
        """Let a request join its group."""
        due_s = request.queued_s + _limit_s(request) if request.generated else request.deadline_s
        self._join(request, due_s)

    def appendleft(self, request: Request) -> None:
        """Take back a request that was preempted; its limit counts from now on."""
        self._join(request, self.batch.now_s + _limit_s(request))

    def popleft(self) -> Request:
        """Take out the first of the first group."""
        request = self[0]
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Take a request out of its group."""
        group = self._groups[request.model, request.klass]
        group.queue.remove(request)
        group.dues.remove(request)
        group.tokens -= self._tokens.pop(request)
        del self._due_s[request]

    def refresh(self) -> None:
        """Estimate who would be late, and order the groups."""
        self._plan = self._planned()

    def gives_way(self, running: Request, waiting: Request) -> bool:
        """Whether `waiting` is of a group that would be late, and `running` of a looser one that is not before it."""
        group = self._groups[waiting.model, waiting.klass]
        if not self.config.evict or waiting.generated or group not in self._plan.late:
            return False
        if _limit_s(running) <= group.limit_s:
            return False
        own = self._groups.get((running.model, running.klass))
        if own is None:  # it never waited here
            return True
        sequence = self._in_sequence()
        return sequence.index(own) > sequence.index(group)  # else who gives way would be the next again

    def until_change(self) -> tuple[int, float]:
        """Until a group's deadline leaves less than it is estimated to need, or might leave enough again."""
        plan, last = self._planned(), self._plan
        if (plan.sequence, plan.late) != (_waiting(last.sequence), _waiting(last.late)):
            return 1, inf  # this step's admissions and preemptions have changed it
        return plan.steps, plan.until_s

    def __getitem__(self, index: int) -> Request:
        if index == 0:
            for group in self._in_sequence():
                if len(group.queue):
                    return group.queue.first()
        return list(self)[index]

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, request: Request) -> bool:
        return request in self._tokens

    def __iter__(self) -> Iterator[Request]:
        return (request for group in self._in_sequence() for request in group.queue)

    def in_turn(self) -> Iterator[Request]:
        """Waiting requests from the first on; nothing may change while they are looked at."""
        for group in self._in_sequence():
            yield from group.queue.in_turn()

    # --- groups --------------------------------------------------------------------------------------------------------

    def _join(self, request: Request, due_s: float) -> None:
        group = self._groups.get((request.model, request.klass))
        if group is None:
            group = self._groups[request.model, request.klass] = _Group(_limit_s(request))
        tokens = self._tokens[request] = max(self._expected(request) - request.generated, 1.0)
        group.tokens += tokens
        group.queue.push(request.arrival_s, request)
        group.dues.push(due_s, request)
        self._due_s[request] = due_s

    def _in_sequence(self) -> list[_Group]:
        """Groups as planned, then those that had nobody waiting then."""
        sequence = self._plan.sequence
        return sequence + [group for group in self._groups.values() if group not in sequence]

    def _expected(self, request: Request) -> float:
        """Output that is expected of a request [tokens]; whole where predicted, so that sums are exact."""
        if request.predicted_tokens >= 0:
            return float(round(request.predicted_tokens))
        return float(self.config.output_mean_tokens)

    def _step_s(self) -> float:
        """Time of a decode step with as many sequences as run now [s]."""
        size = max(len(self.batch.running), 1)
        step_s = self._decode_s.get(size)
        if step_s is None:
            step_s = self._decode_s[size] = self.outlook.decode_s(size)
        return step_s

    def _time_s(self, tokens: float, requests: int) -> float:
        """Upper bound of the time in which so many requests get so many tokens, as expected, at the present throughput [s]."""
        bound = tokens + self.config.z * self.config.output_std_tokens * sqrt(requests)
        return float(bound) * self._step_s() / max(len(self.batch.running), 1)

    def _planned(self) -> _Plan:
        """Order of the groups that have members, by slack; by deadline where somebody would be late so."""
        groups = [group for group in self._groups.values() if len(group.queue)]
        due_s = {id(group): self._due_s[group.dues.first()] for group in groups}

        def latest_start_s(group: _Group) -> tuple[float, float]:
            due = due_s[id(group)]
            return due - self._time_s(group.tokens, len(group.queue)), due

        def deadline_s(group: _Group) -> float:
            return due_s[id(group)]

        by_slack = self._walked(sorted(groups, key=latest_start_s), due_s)
        if not by_slack.late:
            return by_slack
        plan = self._walked(sorted(groups, key=deadline_s), due_s)
        return plan._replace(steps=min(plan.steps, by_slack.steps))

    def _walked(self, sequence: list[_Group], due_s: dict[int, float]) -> _Plan:
        """Add the groups' times up, behind the requests that run."""
        now_s, running, step_s = self.batch.now_s, self.batch.running, self._step_s()
        tokens = sum([max(self._expected(request) - self.answered(request), 1.0) for request in running])
        requests = len(running)
        late: list[_Group] = []
        steps, until_s = FAR, inf
        for group in sequence:
            tokens += group.tokens
            requests += len(group.queue)
            begin_by_s = due_s[id(group)] - self._time_s(tokens, requests)
            if begin_by_s < now_s:
                late.append(group)
                # a step takes at most its own estimated time off what is left of the running requests
                steps = min(steps, max(floor((now_s - begin_by_s) / step_s * (1 - 1e-9)), 1))
            else:
                until_s = min(until_s, begin_by_s)
        return _Plan(sequence, late, steps, until_s)


def _waiting(groups: list[_Group]) -> list[_Group]:
    """Those in which somebody waits."""
    return [group for group in groups if len(group.queue)]


def _limit_s(request: Request) -> float:
    """Time to first token that its class allows [s], rounded so that it is the same for all of a class."""
    return round(request.deadline_s - request.arrival_s, 6)
