"""One replica: a step loop that leaps over the boundaries at which nothing can change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf, sqrt
from typing import Any, NamedTuple

from fleetsim.engine.api import LowerTiers, Scheduler, StepTimeModel, SwapSpace
from fleetsim.engine.batch import Batch, Parked, Suspended
from fleetsim.engine.encoding import EncodeStage
from fleetsim.engine.gaps import GapHistogram, RunningMaximum
from fleetsim.engine.loans import chunk_costs, remote_wait_s
from fleetsim.engine.stops import Stops
from fleetsim.errors import LawError, PolicyError
from fleetsim.kernel.clock import BOUNDARY, Clock, Timer
from fleetsim.workload.request import FINISHED, LOCAL, Request

_FAR = 1 << 60
_PRUNE_AT = 512


class Meter(NamedTuple):
    """What a replica has done up to an instant."""

    busy_s: float
    energy_j: float
    """Energy of steps, without idle power."""
    steps: int
    prompt_tokens: int
    """Prompt tokens computed."""
    output_tokens: int
    ctx_tokens_read: int
    """Context tokens read by attention in decode, summed over steps."""


class Replica:
    """One copy of an LLM on one or more accelerators, driven by exact leaps.

    While the batch does not change, the duration of its k-th next step is ``first + k * slope``, so the replica sleeps until the
    first boundary at which anything can change and computes all steps before it by formula. An arrival that could run ends the leap
    at the boundary of the step under way. `step_by_step` makes every leap one step long: the same code, the same results.

    Parameters
    ----------
    clock : Clock
        The event queue.
    model : StepTimeModel
        Physics of a step.
    scheduler : Scheduler
        Plans each step.
    batches : sequence of Batch
        One per attention data-parallel rank; they step together.
    gaps : GapHistogram
        Where inter-token gaps are counted.
    on_finish : callable
        Called with each request that got its last token.
    layers : int
        Layers of the LLM: where a step can be stopped if the model does not say. ≥ 1.
    suspended_tokens : float
        Tokens of KV cache whose room the activations of one token take while its step is suspended. ≥ 0.

    Raises
    ------
    PolicyError
        If the scheduler stops steps and there are several ranks.
    """

    def __init__(
        self,
        index: int,
        clock: Clock,
        model: StepTimeModel,
        scheduler: Scheduler,
        batches: Sequence[Batch],
        gaps: GapHistogram,
        on_finish: Callable[[Request], None],
        step_by_step: bool = False,
        verify_every: int = 0,
        layers: int = 32,
        suspended_tokens: float = 0.0,
    ) -> None:
        self.index = index
        self.clock = clock
        self.wake_s = inf
        """Instant at which the order of a queue may change by itself."""
        self.gaps = gaps
        self.on_finish = on_finish
        self.on_first_token: Callable[[Request], None] | None = None
        """Called with each request that got its first token, if anybody cares."""
        self.on_prefilled: Callable[[Request, Parked], None] | None = None
        """Called with each request that got its first token and gets the others elsewhere, and the blocks that it left."""
        self.tiers: LowerTiers | None = None
        """Where keys and values are kept below its memory."""
        self.swap: SwapSpace | None = None
        """Where those of preempted requests go."""
        self.present = True
        """Whether the gateway sends requests here."""
        self.lost_tokens = 0
        """Tokens whose keys and values were lost when it failed."""
        self.dead = False
        """Whether it has failed and nobody has noticed."""
        self.paused = False
        """Whether a step is planned that waits for copies."""
        self.paused_s = 0.0
        """Since when."""
        self.paused_limit = 0
        """Steps after which the scheduler must be asked again."""
        self.held: dict[Request, None] = {}
        """Requests that join the queue when their keys and values are near."""
        self.errands: list[Callable[[], None]] = []
        """What to do at the next boundary, before the scheduler is asked."""
        self.turning = False
        """Whether a boundary is being handled now: what comes meanwhile is looked at before it ends."""
        self.encoder: EncodeStage | None = None
        """Where images are encoded, if this replica has an encoder."""
        self.listener: Any = None
        """Told before it changes, and of requests that come and leave, if anybody cares (`fleet/probe.py`)."""
        self.stops: Stops | None = None
        """Where steps are stopped for requests that come; None if the scheduler never wants that."""
        self.hold(model, scheduler, batches, layers, suspended_tokens)
        self.step_limit = 1 if step_by_step else _FAR
        self.verify_every = verify_every
        self.boundaries = 0
        # the leap under way: step k (from 0) takes first_s + k * slope_s
        self.inbox: deque[Request] = deque()
        """Requests that will join the queue when their `ready_s` comes."""
        self.timer: Timer | None = None
        self.leap_steps = 0
        self.leap_start_s = 0.0
        self.first_s = 0.0
        self.slope_s = 0.0
        self.first_j = 0.0
        self.slope_j = 0.0
        self.remote_j = 0.0
        """What each step takes on replicas that hold blocks of this one's requests."""
        self.factor = 1.0
        """How many times as long as usual steps last."""
        self.owed_s = 0.0
        """Attention over other replicas' blocks for their prompts, that the next step must do besides [s]."""
        self.remote_bytes = 0.0
        """Queries and partial results that went to and fro so far [bytes]."""
        self.leap_s = 0.0
        """Duration of the whole leap."""
        self.ctx_first = 0
        """Context tokens that decode attention reads in the first step."""
        self.ctx_per_step = 0
        """Context tokens by which that grows with each step."""
        self.tokens_per_step = 0
        self.has_chunks = False
        # meters
        self.busy_s = 0.0
        self.energy_j = 0.0
        self.steps = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ctx_tokens_read = 0
        # what one token's share of energy and time has cost since the start
        self.energy_per_token_j = 0.0
        self.time_per_token_s = 0.0
        self.longest = RunningMaximum()
        self.prune_at = _PRUNE_AT

    def hold(
        self,
        model: StepTimeModel,
        scheduler: Scheduler,
        batches: Sequence[Batch],
        layers: int,
        suspended_tokens: float,
    ) -> None:
        """Hold an LLM from now on: the first one, or between two steps another one while nobody waits or runs here."""
        self.model = model
        self.scheduler = scheduler
        self.batches = list(batches)
        for batch in self.batches:
            batch.seats = getattr(scheduler, "max_seqs", _FAR)
            batch.keep_blocks = int(getattr(scheduler, "watermark_ratio", 0.0) * batch.cache.capacity)
        self.refills = bool(getattr(scheduler, "refills", True))
        self.match_s = max([0.0 if batch.reuse is None else batch.reuse.match_s for batch in self.batches])
        """Time before a request of agents joins the queue, to look for what it can reuse [s]."""
        if hasattr(scheduler, "interrupts"):
            if len(self.batches) > 1:
                raise PolicyError(
                    f"scheduler {type(scheduler).__name__} stops steps, which only replicas of one rank can do: "
                    "set parallelism.dp to 1"
                )
            self.batches[0].interruptible = True
            self.batches[0].suspended_tokens = suspended_tokens
            self.stops = self.stops or Stops()
            self.stops.layers = layers
            self.stops.use(scheduler)
        prepare: Callable[[StepTimeModel], None] | None = getattr(scheduler, "prepare", None)
        if prepare is not None:
            prepare(model)

    def use_scheduler(self, scheduler: Scheduler) -> None:
        """Have this scheduler plan steps from now on, between two steps; of the kind of the one before."""
        self.scheduler = scheduler
        if self.stops is not None:
            self.stops.use(scheduler)
        prepare: Callable[[StepTimeModel], None] | None = getattr(scheduler, "prepare", None)
        if prepare is not None:
            prepare(self.model)

    # --- from outside ------------------------------------------------------------------------------------------------

    def enqueue(self, request: Request, ready_s: float, rank: int = -1) -> None:
        """Let a request join the queue at `ready_s` (not before now), of the least loaded rank or of the one given."""
        if self.match_s and request.content is not None and request.content.segments:
            ready_s += self.match_s
        if self.tiers is not None and self.tiers.prefetch(request, ready_s):
            if request.queued_s != request.queued_s:
                request.queued_s = ready_s
            if self.listener is not None:
                self.listener.changing(self.clock.now_s)
                self.listener.arrived(request)
            self.held[request] = None
            return
        self._enqueue(request, ready_s, rank)

    def join(self, request: Request) -> None:
        """Let a request that was held back join the queue."""
        if request in self.held:
            del self.held[request]
            self._enqueue(request, self.clock.now_s, -1)

    def _enqueue(self, request: Request, ready_s: float, rank: int) -> None:
        request.ready_s = ready_s
        if request.queued_s != request.queued_s:
            request.queued_s = ready_s
        if self.listener is not None:
            self.listener.changing(self.clock.now_s)
            self.listener.arrived(request)
        if rank >= 0:
            request.rank = rank
        elif len(self.batches) > 1:
            request.rank = self.next_rank()
        else:
            request.rank = 0
        self.batches[request.rank].coming += 1
        if self.stops is not None:
            self.clock.at(ready_s, self._look, BOUNDARY)
        inbox = self.inbox
        if rank >= 0:
            self.at_boundary(_nothing)  # it may go before those that wait
        if inbox and ready_s < inbox[-1].ready_s:
            self._enqueue_earlier(request, ready_s)
            return
        if self.turning:
            pass
        elif self.timer is None:
            self.leap_steps = 0
            self.timer = self.clock.at(ready_s, self._boundary, BOUNDARY)
        elif self.leap_steps > 1 and not inbox and self._admits():
            self._cut(ready_s)
        inbox.append(request)

    def _enqueue_earlier(self, request: Request, ready_s: float) -> None:
        """Put a request before others that are on their way into the queue already."""
        inbox = self.inbox
        place = len(inbox)
        while place and inbox[place - 1].ready_s > ready_s:
            place -= 1
        inbox.insert(place, request)
        if place or self.turning:
            return
        if not self.leap_steps:
            assert self.timer is not None
            self.timer.cancel()
            self.timer = self.clock.at(ready_s, self._boundary, BOUNDARY)
        elif self.leap_steps > 1 and self._admits():
            self._cut(ready_s)

    def at_boundary(self, errand: Callable[[], None]) -> None:
        """Do something between two steps: now if none is under way, else at the end of the one that is.

        Afterwards the scheduler is asked. A forward pass is never torn apart.
        """
        self.errands.append(errand)
        if not self.turning:
            self._end_leap()

    def look_soon(self) -> None:
        """Have a boundary now, or at the end of the step under way."""
        self.at_boundary(_nothing)

    def last_step_s(self) -> float:
        """Duration of the step that has just ended [s]; 0 if the last boundary came without one."""
        return self.first_s + self.slope_s * (self.leap_steps - 1) if self.leap_steps else 0.0

    @property
    def in_step(self) -> bool:
        """Whether a step, or a pass of the encoder, is under way."""
        return (self.timer is not None and self.leap_steps > 0) or (
            self.encoder is not None and bool(self.encoder.current)
        )

    def charge_running(self) -> None:
        """Charge requests that decode for what they have used until now (between two steps)."""
        for batch in self.batches:
            for request in batch.running:
                if request.segment_mark >= 0:
                    request.energy_j += self.energy_per_token_j - request.energy_mark
                    request.cost_share_s += self.time_per_token_s - request.cost_mark
                    request.energy_mark = self.energy_per_token_j
                    request.cost_mark = self.time_per_token_s

    def _end_leap(self) -> None:
        """Bring the next boundary here: now, or at the end of the step under way."""
        now_s = self.clock.now_s
        if self.timer is None or not self.leap_steps:
            if self.timer is not None:
                self.timer.cancel()
            self.leap_steps = 0
            self.timer = self.clock.at(now_s, self._boundary, BOUNDARY)
        elif self.leap_steps > 1:
            self._cut(now_s)

    def withdraw(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back: at once while it waits, at the end of the step under way where it runs.

        `then` is called when it is out, and never if it ends before.
        """
        if self.listener is not None:
            self.listener.changing(self.clock.now_s)
        batch = self.batches[request.rank]
        if self.tiers is not None:
            self.tiers.forget(request)
        if request in self.held:
            del self.held[request]
            then(request)
            return
        if request in self.inbox:
            self.inbox.remove(request)
            batch.coming -= 1
            if request in batch.reserved:  # who decodes may have taken others meanwhile
                self.at_boundary(lambda: self._give_up_reserved(request, then))
                return
            self._look_again()
            then(request)
            return
        if request in batch.running or request in batch.reserved:
            self.at_boundary(lambda: self._withdraw_running(request, then))
            return
        batch.withdraw(request)
        self._look_again()
        then(request)

    def _look_again(self) -> None:
        """Have the scheduler asked at the next boundary, since who waits behind a request that left may fit."""
        if self.inbox or any(batch.waiting for batch in self.batches):
            self.at_boundary(_nothing)

    def loaded(self, request: Request) -> None:
        """The keys and values that a request waited for have arrived."""
        self.at_boundary(lambda: self._take_loaded(request))

    def depart(self, request: Request) -> Parked:
        """Let a running request go to another replica, between two steps (in an errand); its blocks stay until unparked."""
        parked = self.batches[request.rank].park(request)
        if request.segment_mark >= 0:
            self._settle(request)
            self._note_last_token(request)
        return parked

    def unpark(self, rank: int, parked: Parked) -> None:
        """Give back the blocks of a request that left: who waits may fit."""
        self.at_boundary(lambda: self.batches[rank].unpark(parked))

    def is_decoding(self, request: Request, rank: int) -> bool:
        """Whether a request gets tokens here."""
        return request.finish_step >= 0 and request in self.batches[rank].running

    def context_tokens(self, request: Request) -> int:
        """Tokens of prompt and answer of a request of this replica by now; a step under way does not count."""
        if request.finish_step < 0:
            return request.prompt_tokens + request.generated
        step = self.batches[request.rank].step
        if not self.has_chunks:
            step += self.steps_done(self.clock.now_s)
        return request.prompt_tokens + request.output_tokens - (request.finish_step - step)

    def wanted_blocks(self) -> int:
        """KV blocks that requests in its queues, or on their way there, will take when they run, without those kept for them."""
        wanted = 0
        for batch in self.batches:
            for request in batch.waiting:
                wanted += batch.wanted_blocks(request)
        for request in self.inbox:
            wanted += self.batches[request.rank].wanted_blocks(request)
        return wanted

    def first_wanted_blocks(self) -> int:
        """The same of those that run next, one of each rank, if need be of those that are on their way."""
        wanted = 0
        for rank, batch in enumerate(self.batches):
            first = self.first_waiting(rank, inf)
            if first is not None:
                wanted += batch.wanted_blocks(first)
        return wanted

    def urgent_count(self) -> int:
        """Running requests of a priority above 0."""
        return sum(request.priority > 0 for batch in self.batches for request in batch.running)

    def free_blocks(self) -> list[int]:
        """KV blocks of each rank that are not in use."""
        done = 0 if self.has_chunks else self.steps_done(self.clock.now_s)
        return [batch.cache.capacity - batch.used_blocks(done) for batch in self.batches]

    def roomiest_rank(self) -> int:
        """The rank with the most KV blocks that are not in use."""
        free = self.free_blocks()
        return free.index(max(free))

    def first_waiting(self, rank: int, now_s: float) -> Request | None:
        """The request of a rank that runs next, of those that have come by now; None if none waits."""
        for request in self.batches[rank].waiting:
            return request
        for request in self.inbox:  # who came during a leap is looked at at the next boundary only
            if request.rank == rank and request.ready_s <= now_s:
                return request
        return None

    def meter(self, now_s: float) -> Meter:
        """Totals up to `now_s`, a step under way counted by its elapsed share; changes nothing."""
        busy, energy, steps = self.busy_s, self.energy_j, self.steps
        prompt, output, ctx = self.prompt_tokens, self.output_tokens, self.ctx_tokens_read
        if self.timer is not None and self.leap_steps:
            elapsed = now_s - self.leap_start_s
            done = self.steps_done(now_s)
            rest = elapsed - self._leap_s(done)
            share = rest / (self.first_s + self.slope_s * done)
            busy += elapsed
            energy += self._leap_j(done) + share * (self._leap_j(done + 1) - self._leap_j(done))
            steps += done
            if not self.has_chunks:
                batch = self.tokens_per_step
                output += done * batch
                ctx += done * self.ctx_first + self.ctx_per_step * done * (done - 1) // 2
        elif self.encoder is not None and self.encoder.current:
            elapsed = now_s - self.encoder.started_s
            busy += elapsed
            energy += self.encoder.energy_j(elapsed / self.encoder.pass_s)
        return Meter(busy, energy, steps, prompt, output, ctx)

    def books(self) -> Meter:
        """Totals up to the last boundary: what `meter` says between two steps, in an errand too."""
        return Meter(
            self.busy_s, self.energy_j, self.steps, self.prompt_tokens, self.output_tokens, self.ctx_tokens_read
        )

    def steps_done(self, now_s: float) -> int:
        """Whole steps of the leap under way that are over at `now_s`."""
        if self.timer is None or not self.leap_steps:
            return 0
        elapsed = now_s - self.leap_start_s
        steps = self._steps_to_reach(elapsed)
        if self._leap_s(steps) > elapsed:
            steps -= 1
        return min(max(steps, 0), self.leap_steps - 1)

    def kv_used_blocks(self, now_s: float) -> int:
        """KV blocks in use at `now_s`, over all ranks."""
        done = 0 if self.has_chunks else self.steps_done(now_s)
        blocks = 0
        for batch in self.batches:
            blocks += batch.used_blocks(done)
        return blocks

    def stop(self, now_s: float) -> list[Request]:
        """End the run here: whole steps count, a step under way is charged by its share. Returns what waits or runs."""
        if self.encoder is not None:
            self._stop_encoding(self.encoder, now_s)
        self._break_off(now_s)
        left = [r for batch in self.batches for r in (*batch.running, *batch.waiting)] + [*self.inbox, *self.held]
        self.errands.clear()
        for batch in self.batches:
            for request in batch.running:
                if request.segment_mark >= 0:
                    self._settle(request)
                    request.generated = request.output_tokens - (request.finish_step - batch.step)
                    batch.note_approximate(request, request.prompt_tokens + request.generated - 1)
        return left

    def crash(self) -> list[Request]:
        """Lose everything: what was computed, what waits, and the cache. Returns the requests, which hold nothing here any more.

        Whole steps count, a step under way is charged by its share and lost. Blocks that others look after (of requests that have
        left, that are to come, or of other replicas' requests) stay until they give them back.
        """
        now_s = self.clock.now_s
        if self.listener is not None:
            self.listener.changing(now_s)
        if self.encoder is not None:
            self._stop_encoding(self.encoder, now_s)
        self._break_off(now_s)
        self.paused = self.turning = False
        self.owed_s = 0.0
        self.has_chunks = False
        self.leap_steps = 0
        for batch in self.batches:
            batch.clear_plan()
        self._run_errands()
        lost = [*self.inbox, *self.held]
        for request in self.held:
            if self.tiers is not None:
                self.tiers.forget(request)
        for request in self.inbox:
            self.batches[request.rank].coming -= 1
            self.batches[request.rank].unreserve(request)
        self.inbox.clear()
        self.held.clear()
        for batch in self.batches:
            batch.now_s = now_s
            for request in (*batch.running, *batch.waiting):
                lost.append(request)
                if self.tiers is not None:
                    self.tiers.forget(request)
                runs = request in batch.running
                batch.withdraw(request)
                if runs:
                    self.lost_tokens += request.computed
                if request.segment_mark >= 0:
                    self._settle(request)
                    self._note_last_token(request)
            batch.stalled.clear()
            batch.to_load = []
            batch.preempted = []
            batch.cache.forget_all()
        lost.sort(key=_by_arrival)  # who came during a leap has not joined the queue in the books
        return lost

    def _break_off(self, now_s: float) -> None:
        """Count the whole steps of the leap under way, charge the step under way by its share, and go no further."""
        total_j, total_s = self.meter(now_s).energy_j, self.meter(now_s).busy_s
        done = self.steps_done(now_s)
        if done:
            self.leap_steps = done
            self.leap_s = self._leap_s(done)
            self._finish_leap()
        size = self.tokens_per_step
        if self.timer is not None and size:
            share_j, share_s = (total_j - self.energy_j) / size, (total_s - self.busy_s) / size
            self.energy_per_token_j += share_j
            self.time_per_token_s += share_s
            for batch in self.batches:
                for request, tokens in batch.chunks:
                    request.energy_j += tokens * share_j
                    request.cost_share_s += tokens * share_s
                if batch.held:
                    self._stall(batch, 0.0, share_j, share_s)
            self.energy_j, self.busy_s = total_j, total_s
            self.timer.cancel()
        self.timer = None
        if self.stops is not None:
            self.stops.at = -1

    @property
    def empty(self) -> bool:
        """Whether no request is here or on its way into its queue, and nobody wants anything of its blocks."""
        if self.inbox or self.held or self.errands or (self.encoder is not None and not self.encoder.idle):
            return False
        return not any(b.running or b.waiting or b.parked or b.reserved or b.hosted for b in self.batches)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """A leap is over: do its steps, then begin the next."""
        if self.listener is not None:
            self.listener.changing(self.clock.now_s)
        self.turning = True
        if self.leap_steps:
            if self.stops is not None and self.stops.at >= 0:
                self._suspend(self.stops)
            elif self.has_chunks:
                self._finish_mixed()
            else:
                self._finish_leap()
        self._begin()
        if self.paused or (self.encoder is not None and self.encoder.current):
            return
        self.turning = False
        if self.errands:
            self._end_leap()

    def _begin(self) -> None:
        now_s = self.clock.now_s
        inbox = self.inbox
        if self.errands:
            self._run_errands()
        if inbox:
            self._take_in(now_s)
        if self.encoder is not None and self._encodes(self.encoder.due(now_s)):
            return
        has_chunks = False
        tokens = 0
        step_limit = self.step_limit
        self.wake_s = inf
        for batch in self.batches:
            cache = batch.cache
            needed = batch.phases[-batch.step % batch.block_tokens]  # blocks for the decoding requests' next tokens
            if (
                batch.waiting
                or batch.prefilling
                or batch.suspended
                or needed > cache.capacity - cache.used
                or batch.step >= batch.ask_at
            ):
                limit = self._schedule(batch, now_s)
                if limit < step_limit:
                    step_limit = limit
                if batch.chunks:
                    has_chunks = True
                    tokens += batch.prefill_tokens
                    if batch.held:
                        continue
            tokens += batch.decoding
        if self.verify_every:
            self._verify()
        if self.encoder is not None and self._encodes(not tokens and self.encoder.begin()):
            return
        if self.swap is not None and tokens and self.swap.must_wait:
            self._pause(now_s, step_limit)
            return
        self._start(now_s, has_chunks, tokens, step_limit)

    def _start(self, now_s: float, has_chunks: bool, tokens: int, step_limit: int) -> None:
        """Begin the steps that are planned, if any are."""
        inbox = self.inbox
        self.has_chunks = has_chunks
        self.tokens_per_step = tokens
        self.leap_start_s = now_s
        if self.owed_s:
            step_limit = 1
        if has_chunks:
            self._plan_mixed(tokens)
            self.timer = self.clock.at(now_s + self.first_s, self._boundary, BOUNDARY)
        elif tokens:
            self._plan_leap(tokens, step_limit)
            self.first_s += self.owed_s
            if self.leap_steps > 1:
                self._shorten_leap(now_s)
            self.leap_s = self._leap_s(self.leap_steps)
            self.timer = self.clock.at(now_s + self.leap_s, self._boundary, BOUNDARY)
        else:
            self.leap_steps = 0
            self.timer = self.clock.at(inbox[0].ready_s, self._boundary, BOUNDARY) if inbox else None
        self.owed_s = 0.0  # without a step there was nobody to wait for it

    def slow_down(self, factor: float) -> None:
        """Have steps last `factor` times as long from now on, between two steps."""
        self.factor = factor

    def owe(self, work_s: float) -> None:
        """Let the next step last longer by work for another replica."""
        self.owed_s += work_s

    def _shorten_leap(self, now_s: float) -> None:
        """End the leap where a request that is on its way could run, or where the order of a queue may change by itself."""
        inbox = self.inbox
        if inbox and self._admits():
            self.leap_steps = min(self.leap_steps, self._steps_to_reach(max(inbox[0].ready_s - now_s, 0.0)))
        if self.encoder is not None and self.encoder.waiting:
            self.leap_steps = 1  # it is looked at again behind each step
        if self.wake_s < inf:
            self.leap_steps = min(self.leap_steps, self._steps_to_reach(max(self.wake_s - now_s, 0.0)))

    def _take_in(self, now_s: float) -> None:
        """Let those whose time has come join the queues."""
        inbox = self.inbox
        while inbox and inbox[0].ready_s <= now_s:
            request = inbox.popleft()
            batch = self.batches[request.rank]
            batch.coming -= 1
            if batch.reserved and request in batch.reserved:
                batch.welcome(request)
            else:
                batch.waiting.append(request)

    def _admits(self) -> bool:
        """Whether a request that joins the queue could run next."""
        return any(
            [  # a list is faster
                self.scheduler.admits(batch) or (batch.order is not None and batch.order.notices())
                for batch in self.batches
            ]
        )

    def _schedule(self, batch: Batch, now_s: float) -> int:
        """Let the scheduler plan the next step of a rank; steps after which it must be asked again at the latest."""
        batch.now_s = now_s
        batch.recheck = False
        limit = _FAR
        order = batch.order
        if order is not None and batch.waiting:
            order.refresh()
            if order.preemptive and self.refills:
                order.make_way()
                limit = self._settle_preempted(batch)
        self.scheduler.schedule(batch)
        limit = min(limit, self._settle_preempted(batch))
        if batch.reserved and batch.waiting:
            limit = min(limit, self._let_reserved_go_first(batch))
        if batch.to_load:
            self._fetch_admitted(batch)
            if batch.waiting:
                limit = 1  # the budget of a step may be all that kept the next one out, although this step computes nothing of them
        if batch.recheck or (self.tiers is not None and batch.waiting):
            limit = 1  # tiers change while somebody waits, and what they offer is asked at each try
        if order is not None and batch.waiting and limit > 1:
            steps, at_s = order.settled_until()
            limit = min(limit, steps)
            self.wake_s = min(self.wake_s, at_s)
        if batch.held and not batch.chunks:
            raise PolicyError(
                f"scheduler {type(self.scheduler).__name__} holds decodes back in a step that computes no prompts"
            )
        if batch.spare_blocks() < 0:
            raise PolicyError(f"scheduler {type(self.scheduler).__name__} left decoding requests without KV blocks")
        if batch.suspended and not batch.chunks and not batch.decoding:
            raise PolicyError(f"scheduler {type(self.scheduler).__name__} plans nothing although steps are suspended")
        if batch.waiting and not (batch.running or batch.parked or batch.reserved or batch.hosted):
            raise PolicyError(
                f"scheduler {type(self.scheduler).__name__} admits nothing on an empty rank although request "
                f"{batch.waiting[0].id} waits"
            )
        return limit

    def _let_reserved_go_first(self, batch: Batch) -> int:
        """Have those for whom room is kept not blocked by who lacks it; steps after which the scheduler must be asked again."""
        changed = batch.prefer_reserved()
        if not batch.running:
            # whoever ran was preempted just now, or was before somebody for whom room is kept
            self.scheduler.schedule(batch)
            if not batch.running and all(request in batch.waiting for request in batch.reserved):
                batch.give_up_reserved()
                self.scheduler.schedule(batch)
            self._settle_preempted(batch)
        return 1 if changed or not batch.running else _FAR

    def _fetch_admitted(self, batch: Batch) -> None:
        """Begin to bring what the requests that were just admitted lack."""
        for request, lacking in batch.to_load:
            if request in batch.loading:  # not preempted again
                assert request.carrier is not None
                request.carrier.fetch(request, lacking)
        batch.to_load = []

    def _settle_preempted(self, batch: Batch) -> int:
        """Charge requests that were preempted for what they decoded; steps after which the scheduler must be asked again."""
        if not batch.preempted:
            return _FAR
        for request in batch.preempted:
            if request.segment_mark >= 0:
                self._settle(request)
                self._note_last_token(request)
        batch.preempted = []
        return 1  # what was preempted may come back

    def _plan_mixed(self, group_tokens: int) -> None:
        """One step with prompt chunks: as long as its slowest rank's."""
        model = self.model
        slowest = dynamic_j = 0.0
        for batch in self.batches:
            group_tokens += batch.extra_tokens
        if self.stops is not None:
            self.stops.operators = None
        self.remote_j = 0.0
        for batch in self.batches:
            if batch.resumed is not None:
                plan = batch.resumed
                slowest, dynamic_j = plan.operators.resume_s + plan.left_s, plan.dynamic_j
                continue
            decoding = 0 if batch.held else batch.decoding
            tokens = decoding + batch.prefill_tokens + batch.extra_tokens
            if not tokens:
                continue
            time_s, energy_j = model.mixed(
                tokens,
                batch.sampled + decoding,
                batch.prefill_pairs,
                batch.prefill_ctx_tokens,
                len(batch.chunks),
                decoding,
                batch.ctx_tokens - batch.remote_tokens + decoding if decoding else 0,
                group_tokens,
            )
            dynamic_j += energy_j
            if batch.remote_chunks or (decoding and batch.borrowed):
                time_s = max(time_s, self._remote_mixed_s(batch, decoding, tokens, group_tokens))
            if batch.hosted:
                time_s += batch.hosted_s
            if time_s > slowest:
                slowest = time_s
        if not 0.0 < slowest < inf:
            raise PolicyError(f"step-time model {type(model).__name__} gave a step of {slowest} s")
        self.leap_steps = 1
        self.first_s = slowest * self.factor + self.owed_s
        self.slope_s = self.slope_j = 0.0
        self.first_j = dynamic_j

    def _plan_leap(self, group_tokens: int, steps: int) -> None:
        """As many decode steps, up to `steps`, as can be done before anything changes."""
        first_s = slope_s = first_j = slope_j = remote_j = 0.0
        ctx_first = ctx_per_step = 0
        lines = []
        for batch in self.batches:
            steps = batch.steps_until_change(steps)
            size = batch.decoding
            if size:
                ctx = batch.ctx_tokens + size
                read = ctx - batch.remote_tokens
                time_s, time_per_ctx_s, energy_j, energy_per_ctx_j, ctx_end = self.model.decode(
                    size, read, group_tokens
                )
                growing = batch.growing
                if ctx_end != inf and growing:
                    steps = min(steps, max(1, ceil((ctx_end - read) / growing)))
                first, slope = time_s + time_per_ctx_s * read, time_per_ctx_s * growing
                if batch.borrowed or batch.hosted:
                    remote_j += batch.remote_j
                    first, slope, steps = self._with_loans(batch, first, slope, steps, group_tokens)
                if first > first_s or (first == first_s and slope > slope_s):
                    first_s, slope_s = first, slope
                first_j += energy_j + energy_per_ctx_j * read
                slope_j += energy_per_ctx_j * growing
                ctx_first += ctx
                ctx_per_step += growing
                lines.append((first, slope))
        if len(lines) > 1:
            # another rank becomes the slowest one where its line crosses: the leap ends there
            for first, slope in lines:
                if slope > slope_s:
                    steps = min(steps, max(1, int((first_s - first) / (slope - slope_s)) + 1))
        if not (0.0 < first_s < inf and 0.0 <= slope_s < inf):
            raise PolicyError(f"step-time model {type(self.model).__name__} gave steps of {first_s} + k * {slope_s} s")
        if steps < 1:
            raise LawError("a leap without steps")
        self.leap_steps = steps
        self.ctx_first = ctx_first
        self.ctx_per_step = ctx_per_step
        self.first_s = first_s * self.factor
        self.slope_s = slope_s * self.factor
        self.first_j = first_j
        self.slope_j = slope_j
        self.remote_j = remote_j

    def _with_loans(
        self, batch: Batch, first_s: float, slope_s: float, steps: int, group_tokens: int
    ) -> tuple[float, float, int]:
        """A rank's line and for how many steps it holds, with attention over blocks elsewhere and over other replicas' blocks."""
        if batch.borrowed:
            floor_s = self._without_context_s(batch.decoding, group_tokens) + batch.remote_s
            if first_s < floor_s:  # it waits for attention elsewhere until its own takes as long
                if slope_s:
                    steps = min(steps, int((floor_s - first_s) / slope_s) + 1)
                first_s, slope_s = floor_s, 0.0
        return first_s + batch.hosted_s, slope_s, steps

    def _without_context_s(self, size: int, group_tokens: int) -> float:
        """A decode step of `size` requests but for their attention over what came before [s]."""
        line = self.model.decode(size, size, group_tokens)
        return line.time_s + line.time_per_ctx_s * size

    def _remote_mixed_s(self, batch: Batch, decoding: int, tokens: int, group_tokens: int) -> float:
        """How long the step planned takes at least because of what lies on other replicas; charges for that.

        All but attention over what lies here, and beside that the way there and back and the attention there.
        """
        costs = [(loan.creditor, loan.terms) for loans in batch.borrowed.values() for loan in loans] if decoding else []
        pairs, ctx_tokens, write_s = batch.prefill_pairs, batch.prefill_ctx_tokens, 0.0
        if batch.remote_chunks:
            pairs = sum([n * (n + 1) // 2 for _, n in batch.chunks])
            ctx_tokens = batch.prefill_tokens
            chunk_terms, write_s = chunk_costs(batch.remote_chunks, batch.block_tokens)
            costs += chunk_terms
            self.remote_bytes += sum([terms.wire_bytes for _, terms in chunk_terms])
        self.remote_j += sum([terms.energy_j for _, terms in costs])
        sampled = batch.sampled + decoding
        base_s = self.model.mixed(
            tokens, sampled, pairs, ctx_tokens, len(batch.chunks), decoding, decoding, group_tokens
        )[0]
        return max(base_s + remote_wait_s(costs), write_s)

    def _finish_leap(self) -> None:
        steps, size = self.leap_steps, self.tokens_per_step
        first_s, slope_s = self.first_s, self.slope_s
        pairs = steps * (steps - 1) // 2
        duration_s, energy_j = self.leap_s, self._leap_j(steps)
        self.ctx_tokens_read += steps * self.ctx_first + self.ctx_per_step * pairs
        self.busy_s += duration_s
        self.energy_j += energy_j
        self.steps += steps
        self.output_tokens += steps * size
        self.energy_per_token_j += energy_j / size
        self.time_per_token_s += duration_s / size
        self.gaps.add_run(first_s, slope_s, steps, size)
        self.longest.push(first_s + slope_s * (steps - 1))
        for batch in self.batches:
            if batch.stalled:
                self._resume(batch, first_s)
            if batch.borrowed:
                self.remote_bytes += steps * batch.remote_bytes
            batch.decode(steps)
            heap = batch.by_finish
            while heap and heap[0][0] <= batch.step:
                request = batch.pop_finished()
                if request is not None:
                    self._finish(request)

    def _finish_mixed(self) -> None:
        step_s, tokens = self.first_s, self.tokens_per_step
        model = self.model
        energy_j = min(model.static_w * step_s + self.first_j, model.limit_w * step_s) + self.remote_j
        self.busy_s += step_s
        self.energy_j += energy_j
        self.steps += 1
        per_token_j, per_token_s = energy_j / tokens, step_s / tokens
        self.energy_per_token_j += per_token_j
        self.time_per_token_s += per_token_s
        self.longest.push(step_s)
        for batch in self.batches:
            if batch.held:
                self._stall(batch, step_s, per_token_j, per_token_s)
                self._finish_chunks(batch, per_token_j, per_token_s)
                continue
            if batch.stalled:
                self._resume(batch, step_s)
            if batch.borrowed:
                self.remote_bytes += batch.remote_bytes
            decoding = batch.decoding
            if decoding:
                self.gaps.add(step_s, decoding)
                self.output_tokens += decoding
                self.ctx_tokens_read += batch.ctx_tokens + decoding
            batch.decode(1)
            heap = batch.by_finish
            while heap and heap[0][0] <= batch.step:
                request = batch.pop_finished()
                if request is not None:
                    self._finish(request)
            if batch.chunks:
                self._finish_chunks(batch, per_token_j, per_token_s)

    def _finish_chunks(self, batch: Batch, per_token_j: float, per_token_s: float) -> None:
        now_s = self.clock.now_s
        self.prompt_tokens += batch.prefill_tokens
        for request, tokens in batch.chunks:
            request.energy_j += tokens * per_token_j
            request.cost_share_s += tokens * per_token_s
            if request.decode_at != LOCAL and self._hands_over(batch, request, tokens):
                continue
            if not batch.finish_chunk(request, tokens):
                continue
            self.output_tokens += 1
            if request.generated == 1:
                request.first_token_s = now_s
                if self.on_first_token is not None:
                    self.on_first_token(request)
                if self.listener is not None:
                    self.listener.left(request, True)
            else:
                gap_s = now_s - request.last_token_s
                self.gaps.add(gap_s, 1)
                if gap_s > request.itl_max_s:
                    request.itl_max_s = gap_s
            if request.generated >= request.output_tokens:
                self._finish(request)
            else:
                request.energy_mark = self.energy_per_token_j
                request.cost_mark = self.time_per_token_s
                request.segment_mark = self.longest.number
        batch.clear_plan()

    def _hands_over(self, batch: Batch, request: Request, tokens: int) -> bool:
        """Note the last chunk of a request that gets its other tokens elsewhere; False if this is not one."""
        on_prefilled = self.on_prefilled
        if (
            on_prefilled is None
            or request.generated
            or request.computed + tokens < request.target
            or request.output_tokens == 1
        ):
            return False
        now_s = self.clock.now_s
        parked = batch.finish_prefill(request, tokens)
        self.output_tokens += 1
        request.first_token_s = request.last_token_s = request.stopped_s = now_s
        if self.on_first_token is not None:
            self.on_first_token(request)
        if self.listener is not None:
            self.listener.left(request, True)
        on_prefilled(request, parked)
        return True

    def _stall(self, batch: Batch, step_s: float, per_token_j: float, per_token_s: float) -> None:
        """Note a step in which a rank's decoding requests were held back: they take no part in its cost, and their gaps grow."""
        stalled = batch.stalled
        for request in batch.running:
            if request.segment_mark >= 0:
                stalled[request] = stalled.get(request, 0.0) + step_s
                request.energy_mark += per_token_j
                request.cost_mark += per_token_s

    def _resume(self, batch: Batch, step_s: float) -> None:
        """Requests that were held back get a token at the end of this step, which counts as a gap of `step_s` for everyone."""
        gaps = self.gaps
        for request, stall_s in batch.stalled.items():
            gap_s = stall_s + step_s
            gaps.add(gap_s, 1)
            if gap_s > request.itl_max_s:
                request.itl_max_s = gap_s
        gaps.add(step_s, -len(batch.stalled))
        batch.stalled = {}

    def _finish(self, request: Request) -> None:
        if request.segment_mark >= 0:
            self._settle(request)
        if self.swap is not None:
            self.swap.forget(request)
        request.end_s = self.clock.now_s
        request.status = FINISHED
        self.on_finish(request)

    def _settle(self, request: Request) -> None:
        """Charge a request for the tokens it decoded since it joined."""
        request.energy_j += self.energy_per_token_j - request.energy_mark
        request.cost_share_s += self.time_per_token_s - request.cost_mark
        longest = self.longest
        gap_s = longest.since(request.segment_mark)
        if gap_s > request.itl_max_s:
            request.itl_max_s = gap_s
        request.segment_mark = -1
        if len(longest.numbers) > self.prune_at:
            marks = [r.segment_mark for batch in self.batches for r in batch.running if r.segment_mark >= 0]
            longest.forget_before(min(marks, default=longest.number))
            self.prune_at = max(_PRUNE_AT, 2 * len(longest.numbers))

    def _note_last_token(self, request: Request) -> None:
        """Note when a request that stops decoding at this boundary got its last token."""
        request.last_token_s = self.clock.now_s - self.batches[request.rank].stalled.pop(request, 0.0)

    # --- steps that are stopped --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """A request is ready to join the queue: where a step of prompt chunks is under way, ask whether to stop it."""
        batch, inbox, now_s, stops = self.batches[0], self.inbox, self.clock.now_s, self.stops
        assert stops is not None
        if not (inbox and inbox[0].ready_s <= now_s and self.leap_steps and self.has_chunks) or stops.at >= 0:
            return  # it was looked at, or will be at the boundary that is near
        elapsed_s = now_s - self.leap_start_s
        if (batch.decoding and not batch.held) or elapsed_s >= self.first_s:
            return
        batch.now_s = now_s
        batch.share_left = stops.left_s(batch, self.first_s, elapsed_s) / stops.whole_s(batch, self.first_s)
        stop = False
        while inbox and inbox[0].ready_s <= now_s:
            request = inbox.popleft()
            batch.coming -= 1
            batch.waiting.append(request)
            stop = stops.wanted(batch, request) or stop
        if stop:
            ends_s = stops.choose(batch, self.model, self.first_s, elapsed_s)
            if ends_s < inf:
                assert self.timer is not None
                self.timer.cancel()
                self.timer = self.clock.at(self.leap_start_s + ends_s, self._boundary, BOUNDARY)

    def _suspend(self, stops: Stops) -> None:
        """Charge what was done of the step under way, and lay it aside."""
        batch, model = self.batches[0], self.model
        operators = stops.operators
        assert operators is not None
        position, stops.at = stops.at, -1
        ran_s = stops.until_s(batch, self.first_s, position)
        share = ran_s / self.first_s
        dynamic_j = min(self.first_j, (model.limit_w - model.static_w) * self.first_s)
        energy_j = model.static_w * ran_s + dynamic_j * share
        self.busy_s += ran_s
        self.energy_j += energy_j
        per_token_j, per_token_s = energy_j / self.tokens_per_step, ran_s / self.tokens_per_step
        self.energy_per_token_j += per_token_j
        self.time_per_token_s += per_token_s
        if batch.held:
            self._stall(batch, ran_s, per_token_j, per_token_s)
        for request, tokens in batch.chunks:
            request.energy_j += tokens * per_token_j
            request.cost_share_s += tokens * per_token_s
        batch.suspend(
            Suspended(
                batch.chunks,
                (batch.sampled, batch.prefill_tokens, batch.prefill_pairs, batch.prefill_ctx_tokens),
                stops.whole_s(batch, self.first_s),
                operators,
                position,
                stops.left_s(batch, self.first_s, ran_s),
                dynamic_j * (1.0 - share),
                batch.blocks_to_suspend(),
            )
        )

    # --- errands -----------------------------------------------------------------------------------------------------

    def _run_errands(self) -> None:
        if self.errands:
            for batch in self.batches:
                batch.now_s = self.clock.now_s
        while self.errands:
            errands, self.errands = self.errands, []
            for errand in errands:
                errand()

    def _give_up_reserved(self, request: Request, then: Callable[[Request], None]) -> None:
        self.batches[request.rank].unreserve(request)
        then(request)

    def _withdraw_running(self, request: Request, then: Callable[[Request], None]) -> None:
        batch = self.batches[request.rank]
        if request not in batch.running:
            if request not in batch.waiting:
                return  # it ended
            batch.withdraw(request)  # preempted meanwhile
        else:
            batch.withdraw(request)
            if request.segment_mark >= 0:
                self._settle(request)
                self._note_last_token(request)
        then(request)

    def _take_loaded(self, request: Request) -> None:
        batch = self.batches[request.rank]
        if request not in batch.loading:
            return
        if self.swap is None or not request.generated or request.carried_tokens < request.target - 1:
            batch.loaded(request)
            return
        batch.rejoin(request)
        batch.stalled[request] = (self.paused_s if self.paused else self.clock.now_s) - request.last_token_s
        request.energy_mark = self.energy_per_token_j
        request.cost_mark = self.time_per_token_s
        request.segment_mark = self.longest.number

    # --- images ------------------------------------------------------------------------------------------------------

    def _encodes(self, chosen: bool) -> bool:
        """Begin the pass of the encoder that was chosen, if one was; what comes meanwhile is looked at afterwards."""
        if not chosen:
            return False
        encoder, now_s = self.encoder, self.clock.now_s
        assert encoder is not None
        self.leap_steps = 0
        self.tokens_per_step = 0
        self.has_chunks = False
        self.timer = self.clock.at(now_s + encoder.start(now_s), self._encoded, BOUNDARY)
        return True

    def _encoded(self) -> None:
        """A pass of the encoder is over: those that decode were held back for it."""
        encoder = self.encoder
        assert encoder is not None
        now_s = self.clock.now_s
        if self.listener is not None:
            self.listener.changing(now_s)
        self.timer = None
        self.busy_s += encoder.pass_s
        self.energy_j += encoder.energy_j(1.0)
        for batch in self.batches:
            stalled = batch.stalled
            for request in batch.running:
                if request.segment_mark >= 0:
                    stalled[request] = stalled.get(request, 0.0) + encoder.pass_s
        encoder.finish(now_s)
        self._begin()
        if self.paused or encoder.current:
            return
        self.turning = False
        if self.errands:
            self._end_leap()

    def _stop_encoding(self, encoder: EncodeStage, now_s: float) -> None:
        """The run ends here: a pass under way is charged by its share."""
        if encoder.current:
            assert self.timer is not None
            self.timer.cancel()
            self.timer = None
            share = (now_s - encoder.started_s) / encoder.pass_s
            self.busy_s += now_s - encoder.started_s
            self.energy_j += encoder.energy_j(share)
            encoder.charge(share)
        encoder.stop()

    # --- steps that wait for copies ----------------------------------------------------------------------------------

    def _pause(self, now_s: float, step_limit: int) -> None:
        """Keep what is planned until copies are over; what comes meanwhile is looked at afterwards."""
        self.paused = True
        self.paused_s = now_s
        self.paused_limit = step_limit
        self.timer = None
        self.leap_steps = 0

    def swapped_in(self, request: Request) -> None:
        """The keys and values of a preempted request are back: it goes on in the next step, even if that is planned already."""
        if self.paused and not self.batches[request.rank].interruptible:
            self.paused_limit = 1
            self._take_loaded(request)
        else:
            self.loaded(request)

    def go_on(self) -> None:
        """The copies that the next step waited for are over."""
        now_s = self.clock.now_s
        if self.listener is not None:
            self.listener.changing(now_s)
        self.paused = False
        waited_s = now_s - self.paused_s
        assert self.swap is not None
        self.swap.waited_s += waited_s
        has_chunks = False
        tokens = 0
        for batch in self.batches:
            stalled = batch.stalled
            for request in batch.running:
                if request.segment_mark >= 0:
                    stalled[request] = stalled.get(request, 0.0) + waited_s
            if batch.chunks:
                has_chunks = True
                tokens += batch.prefill_tokens
                if batch.held:
                    continue
            tokens += batch.decoding
        self._start(now_s, has_chunks, tokens, self.paused_limit)
        self.turning = False
        if self.errands:
            self._end_leap()

    # --- leap arithmetic ---------------------------------------------------------------------------------------------

    def _cut(self, now_s: float) -> None:
        """End the leap at the boundary of the step under way."""
        steps = self._steps_to_reach(now_s - self.leap_start_s)
        if steps < self.leap_steps:
            assert self.timer is not None
            self.timer.cancel()
            self.leap_steps = steps
            self.leap_s = self._leap_s(steps)
            self.timer = self.clock.at(self.leap_start_s + self.leap_s, self._boundary, BOUNDARY)

    def _leap_s(self, steps: int) -> float:
        """Duration of the first `steps` steps [s]."""
        return steps * self.first_s + self.slope_s * (steps * (steps - 1) // 2)

    def _leap_j(self, steps: int) -> float:
        """Energy of the first `steps` steps [J], each capped at the power limit, and what they take elsewhere."""
        if not steps:
            return 0.0
        if self.remote_j:
            return steps * self.remote_j + self._own_leap_j(steps)
        return self._own_leap_j(steps)

    def _own_leap_j(self, steps: int) -> float:
        model = self.model
        first_s, slope_s = self.first_s, self.slope_s
        room_w = model.limit_w - model.static_w
        over, over_slope = self.first_j - room_w * first_s, self.slope_j - room_w * slope_s
        over_last = over + over_slope * (steps - 1)
        pairs = steps * (steps - 1) // 2
        duration_s = steps * first_s + slope_s * pairs
        if over <= 0 and over_last <= 0:
            return model.static_w * duration_s + steps * self.first_j + self.slope_j * pairs
        if over > 0 and over_last > 0:
            return model.limit_w * duration_s
        # the cap is reached or left on the way: sum the part above the limit and take it off
        split = int(-over / over_slope) + 1
        head, head_pairs = split, split * (split - 1) // 2
        excess_head = head * over + over_slope * head_pairs
        excess = (steps * over + over_slope * pairs) - excess_head if over <= 0 else excess_head
        return model.static_w * duration_s + steps * self.first_j + self.slope_j * pairs - excess

    def _steps_to_reach(self, elapsed_s: float) -> int:
        """Fewest steps (≥ 1) that last at least `elapsed_s`."""
        first_s, slope_s = self.first_s, self.slope_s
        linear = first_s - 0.5 * slope_s
        steps = ceil(2.0 * elapsed_s / (linear + sqrt(linear * linear + 2.0 * slope_s * elapsed_s)))
        while steps > 1 and self._leap_s(steps - 1) >= elapsed_s:
            steps -= 1
        while self._leap_s(steps) < elapsed_s:
            steps += 1
        return max(steps, 1)

    def next_rank(self) -> int:
        """The rank that gets the next request: fewest there, waiting ones counting four times, as in vLLM."""
        loads = [4 * (len(batch.waiting) + batch.coming) + len(batch.running) for batch in self.batches]
        return loads.index(min(loads))

    def _verify(self) -> None:
        self.boundaries += 1
        for batch in self.batches:
            cache = batch.cache
            if cache.free < 0 or cache.used < 0 or cache.cached < 0:
                raise LawError(
                    f"law 3 (KV blocks): used {cache.used}, cached {cache.cached}, capacity {cache.capacity}"
                )
            if self.boundaries % self.verify_every == 0:
                batch.verify()


def _by_arrival(request: Request) -> tuple[float, int, int]:
    return request.arrival_s, request.id, request.attempt


def _nothing() -> None:
    """An errand for the sake of the boundary."""
