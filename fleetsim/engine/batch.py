"""The running set of one rank: who waits, who runs, how far each is, and the KV blocks they hold.

Requests that decode are never touched step by step: what changes with every step (context sum, blocks, progress) is kept as
counts for the whole batch, and a request's own figures follow from the step number at which it joined.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil, nan
from typing import TYPE_CHECKING, Any

from fleetsim.engine.api import Compression, LowerTiers, Reuse, SwapSpace
from fleetsim.engine.loans import Loan, RemoteChunk, remote_wait_s
from fleetsim.engine.prefix_cache import Node, PrefixCache
from fleetsim.errors import LawError, PolicyError
from fleetsim.workload.prefixes import Content, Path, private_path
from fleetsim.workload.request import RUNNING, WAITING, Request

if TYPE_CHECKING:
    from fleetsim.engine.api import Operators, Queue
    from fleetsim.engine.orders.order import Order

_MANY = 1 << 60
NEVER = _MANY
"""A step that does not come."""


class Parked:
    """Blocks whose request went elsewhere, kept until its keys and values have been copied."""

    __slots__ = ("node", "own_blocks", "shared_blocks")

    def __init__(self, node: Node, shared_blocks: int, own_blocks: int) -> None:
        self.node = node
        self.shared_blocks = shared_blocks
        self.own_blocks = own_blocks


class Suspended:
    """A step of prompt chunks that was stopped between two operators, and goes on there once it is resumed."""

    __slots__ = (
        "blocks",
        "chunks",
        "dynamic_j",
        "left_s",
        "operators",
        "position",
        "prefill_ctx_tokens",
        "prefill_pairs",
        "prefill_tokens",
        "sampled",
        "time_s",
    )

    def __init__(
        self,
        chunks: list[tuple[Request, int]],
        counts: tuple[int, int, int, int],
        time_s: float,
        operators: Operators,
        position: int,
        left_s: float,
        dynamic_j: float,
        blocks: int,
    ) -> None:
        self.chunks = chunks
        """Requests and how many prompt tokens of each it computes."""
        self.sampled, self.prefill_tokens, self.prefill_pairs, self.prefill_ctx_tokens = counts
        self.time_s = time_s
        """Duration of the whole step [s]."""
        self.operators = operators
        self.position = position
        """Operators that are done, counted through all layers."""
        self.left_s = left_s
        """Of the duration, what is still to do [s]."""
        self.dynamic_j = dynamic_j
        """Energy above static power that the rest will take [J]."""
        self.blocks = blocks
        """KV blocks whose room its activations take while it waits."""

    @property
    def share_left(self) -> float:
        """Share of the step that is still to do."""
        return self.left_s / self.time_s


class Batch:
    """State of one attention data-parallel rank between two steps, and the verbs by which a scheduler changes it.

    A scheduler reads `waiting`, `prefilling`, `running`, `decoding`, `spare_blocks` and `answered`, and acts by `extend`, `admit`
    and `preempt`; one that computes prompts and decodes in separate steps sets `held`; one that stops steps goes on with them by
    `resume`. Each verb checks that it can be done, so that no policy can break the books.

    Parameters
    ----------
    capacity_blocks : int
        KV blocks of this rank. ≥ 1.
    block_tokens : int
        Tokens per block. ≥ 1.
    prefix_cache : bool
        Whether blocks outlive their request.
    retain_unmatched : bool
        Whether that holds for blocks too that no other request can ever match.
    order : Order, optional
        Order of the queue; without one it is first come, first served.
    eviction : Eviction, optional
        Chooses which cached blocks go first; None is least recently used.
    view : CacheView, optional
        What that sees.
    compression : Compression, optional
        Bounds the tokens that a decoding request holds. Only without a prefix cache: what it leaves is nobody else's prefix.
    reuse : Reuse, optional
        Takes keys and values from behind other starts. Only with a prefix cache.
    """

    __slots__ = (
        "ask_at",
        "block_tokens",
        "borrowed",
        "by_cap",
        "by_finish",
        "cache",
        "capped",
        "chunks",
        "coming",
        "compression",
        "ctx_tokens",
        "decoding",
        "extra_tokens",
        "held",
        "hosted",
        "hosted_s",
        "interruptible",
        "keep_blocks",
        "kept_tokens",
        "leaving",
        "loading",
        "now_s",
        "order",
        "parked",
        "phases",
        "preempted",
        "preemptions",
        "prefill_ctx_tokens",
        "prefill_pairs",
        "prefill_tokens",
        "prefilling",
        "recheck",
        "remote_bytes",
        "remote_chunks",
        "remote_j",
        "remote_s",
        "remote_tokens",
        "reserved",
        "resumed",
        "retain_unmatched",
        "reuse",
        "running",
        "sampled",
        "seats",
        "share_left",
        "stale",
        "stalled",
        "step",
        "suspended",
        "suspended_tokens",
        "swap",
        "tiers",
        "to_load",
        "unbacked",
        "user",
        "waiting",
    )

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        prefix_cache: bool,
        retain_unmatched: bool = False,
        order: Order | None = None,
        eviction: Any = None,
        view: Any = None,
        compression: Compression | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        if compression is not None and prefix_cache:
            raise PolicyError("compressed keys and values are no prefix of other requests: no prefix cache beside them")
        if reuse is not None and not prefix_cache:
            raise PolicyError("keys and values from behind other starts are reused beside a prefix cache only")
        self.reuse = reuse
        self.compression = compression
        self.kept_tokens = _MANY if compression is None else compression.kept_tokens
        """Tokens that a decoding request holds at most."""
        self.capped: dict[Request, None] = {}
        """Decoding requests that hold so many: they need no more blocks, and their share of `ctx_tokens` stays."""
        self.by_cap: list[tuple[int, int, Request]] = []
        """Heap of (step after which it holds so many, order of ids, request); some are of requests that have left."""
        self.retain_unmatched = retain_unmatched
        self.cache = PrefixCache(capacity_blocks, prefix_cache, eviction)
        self.user: Any = None if view is None else view.user
        """Whom the eviction policy sees."""
        self.block_tokens = block_tokens
        self.now_s = 0.0
        self.step = 0
        """Steps in which this rank decoded, or would have if it had had requests to decode."""
        self.ask_at = NEVER
        """Number of such steps after which the scheduler wants to be asked again although nothing else may have changed."""
        self.order = order
        self.waiting: Queue = deque() if order is None else order
        """Requests in the queue; the head is next."""
        if order is not None:
            order.batch = self
        self.seats = _MANY
        """Requests that may run at a time, as far as the scheduler says."""
        self.keep_blocks = 0
        """Blocks that the scheduler keeps free when it admits a request."""
        self.coming = 0
        """Requests on their way into the queue."""
        self.running: dict[Request, None] = {}
        """Requests that hold blocks, in order of admission."""
        self.prefilling: list[Request] = []
        """Running requests whose prompt is not computed yet, in order of admission, but for those in suspended steps."""
        self.loading: dict[Request, None] = {}
        """Running requests whose keys and values are on their way here; they compute nothing yet."""
        self.to_load: list[tuple[Request, int]] = []
        """Of these, the ones admitted while planning this step, and how many tokens each lacks."""
        self.tiers: LowerTiers | None = None
        """Where keys and values are kept below this memory."""
        self.swap: SwapSpace | None = None
        """Where those of preempted requests go; without it they are computed again."""
        self.leaving = 0
        """Blocks that are not in use but may not be written yet, since what they hold is being copied out."""
        self.unbacked = 0
        """Blocks in use whose content will come once those have left."""
        self.parked: dict[Parked, None] = {}
        """Blocks of requests that have left, until they are copied."""
        self.reserved: dict[Request, int] = {}
        """Blocks kept for requests that will come."""
        self.borrowed: dict[Request, list[Loan]] = {}
        """Decoding requests of which some blocks lie on other replicas."""
        self.remote_tokens = 0
        """Tokens in these blocks: part of `ctx_tokens`, not of what attention reads here."""
        self.remote_s = 0.0
        """How long a step waits for attention over them [s]."""
        self.remote_j = 0.0
        """What that takes, on the replicas where they lie, per step [J]."""
        self.remote_bytes = 0.0
        """Queries and partial results that a step sends to and fro for it [bytes]."""
        self.remote_chunks: list[RemoteChunk] = []
        """Of the prompt chunks planned, those that follow on keys and values elsewhere."""
        self.hosted: dict[Loan, None] = {}
        """Blocks here that belong to requests of other replicas."""
        self.hosted_s = 0.0
        """Time that attention over them adds to each step here [s]."""
        self.decoding = 0
        """Running requests that get one token per step."""
        self.ctx_tokens = 0
        """Tokens whose keys and values the decoding requests hold, summed."""
        self.phases = [0] * block_tokens
        """Decoding requests that grow, by (tokens covered - step) modulo block size: who needs a new block when."""
        self.held = False
        """Whether the decoding requests get no token in the step being planned, and no blocks: it computes prompt chunks only."""
        self.stalled: dict[Request, float] = {}
        """Decoding requests that were held back since their last token, and for how long [s]."""
        self.by_finish: list[tuple[int, int, Request]] = []
        """Heap of (step after which it is done, order of ids, request); some are of requests that stopped decoding before."""
        self.stale = False
        """Whether there may be such entries."""
        self.chunks: list[tuple[Request, int]] = []
        """Prompt chunks of the step being planned: (request, tokens)."""
        self.sampled = 0
        self.prefill_tokens = 0
        self.extra_tokens = 0
        """Tokens computed beside those of the planned chunks, to choose what stays of them."""
        self.prefill_pairs = 0
        self.prefill_ctx_tokens = 0
        self.suspended: list[Suspended] = []
        """Steps that were stopped and wait to be resumed, in the order in which they were stopped last."""
        self.resumed: Suspended | None = None
        """The one that the step being planned, or under way, goes on with."""
        self.suspended_tokens = 0.0
        """Tokens of cache whose room the activations of one token take while its step is suspended."""
        self.share_left = 0.0
        """While a scheduler is asked whether to stop the step under way: share of it that is still to do."""
        self.interruptible = False
        """Whether steps may be stopped: then blocks can be found in the cache only once they are computed."""
        self.preempted: list[Request] = []
        """Requests preempted while planning this step."""
        self.preemptions = 0
        self.recheck = False
        """Whether a request that was just refused may fit one step later although nothing ended."""

    # --- what a scheduler may ask ---------------------------------------------------------------------------------

    def spare_blocks(self) -> int:
        """Blocks that may be allocated in this step beside those that the decoding requests need; below zero if they lack some."""
        cache = self.cache
        return cache.capacity - cache.used - (0 if self.held else self.phases[-self.step % self.block_tokens])

    def blocks_to_suspend(self) -> int:
        """Blocks whose room the activations of the step planned, or under way, would take if it were stopped."""
        return ceil(self.prefill_tokens * self.suspended_tokens / self.block_tokens)

    def newest(self) -> Request:
        """The running request that was admitted last."""
        return next(reversed(self.running))

    def lacks_until_copied(self) -> bool:
        """Whether the step planned needs blocks that are still being copied out."""
        cache = self.cache
        needed = 0 if self.held else self.phases[-self.step % self.block_tokens]
        return cache.used - self.unbacked + self.leaving + needed > cache.capacity

    def victim(self) -> Request:
        """The running request to preempt for lack of blocks: the newest, unless the queue's order says otherwise.

        Requests of which a chunk was planned for this step are left out where the order chooses.
        """
        order = self.order
        if order is None:
            return next(reversed(self.running))
        planned = {chunk[0].id for chunk in self.chunks}
        return order.victim([request for request in self.running if request.id not in planned])

    def answered(self, request: Request) -> int:
        """Tokens that a request has got so far."""
        if request.finish_step >= 0:
            return request.output_tokens - (request.finish_step - self.step)
        return request.generated

    @property
    def growing(self) -> int:
        """Decoding requests whose keys and values grow with every token."""
        return self.decoding - len(self.capped)

    def wanted_blocks(self, request: Request) -> int:
        """KV blocks that a waiting request will take, cached ones included, and those kept for it not."""
        if request in self.reserved:
            return 0
        room = request.prompt_tokens + request.generated
        if self.compression is not None:
            room = self.compression.chunk_room(room)
        return -(-room // self.block_tokens)

    # --- verbs of a scheduler ----------------------------------------------------------------------------------------

    def extend(self, request: Request, tokens: int) -> bool:
        """Compute the next `tokens` prompt tokens of a running request in this step; False if blocks are lacking."""
        block_tokens = self.block_tokens
        room = request.computed + tokens
        if self.compression is not None:
            room = self.compression.chunk_room(room)
        needed = -(-room // block_tokens) - request.blocks - request.remote_blocks
        if needed > 0:
            cache = self.cache
            if needed > cache.capacity - cache.used - (0 if self.held else self.phases[-self.step % block_tokens]):
                return False
            cache.allocate(needed)
            request.blocks += needed
        self._plan_chunk(request, tokens)
        return True

    def admit(self, request: Request, max_tokens: int, whole: bool, keep_free: int = 0) -> int:
        """Let the head of the queue run, with up to `max_tokens` prompt tokens in this step.

        Parameters
        ----------
        request : Request
            The head of `waiting`.
        max_tokens : int
            Largest chunk [tokens]. ≥ 1.
        whole : bool
            Require room for the whole prompt now, not for the first chunk only.
        keep_free : int
            Blocks to leave available.

        Returns
        -------
        int
            Tokens planned for this step; 0 if blocks are lacking, and then nothing has changed.
        """
        cache, block_tokens = self.cache, self.block_tokens
        if self.tiers is not None:
            self._ask_below(self.tiers, request)
        if request.carried_tokens:
            return self._admit_carried(request, max_tokens, keep_free)
        preempted = request.preemptions or request.generated
        target = request.prompt_tokens + request.generated if preempted else request.prompt_tokens
        computed = hits = idle = reused = 0
        content = request.content
        remote = request.remote_blocks
        if cache.enabled and not remote and (content is not None or preempted):
            if self.user is not None:
                self.user._request = request
            path = self._path(request) if preempted or content is None else content.path(block_tokens)
            hits = cache.lookup(path, (target - 1) // block_tokens)
            idle = cache.hit_idle
            computed = hits * block_tokens
        if self.reuse is not None and content is not None and content.segments:
            reused = min(self.reuse.reused(request, computed), target - 1 - computed)
            computed += reused
        tokens = target - computed
        if tokens > max_tokens:
            tokens = max_tokens
            room = computed + tokens
            most = target
            if self.compression is not None:
                room, most = self.compression.chunk_room(room), self.compression.chunk_room(most)
            planned = -(-room // block_tokens)
            needed = -(-most // block_tokens) if whole else planned
        else:
            room = target if self.compression is None else self.compression.prompt_room(target)
            planned = needed = -(-room // block_tokens)
        # with its beginning where room is kept for it elsewhere
        planned, needed = (max(planned - remote, 0), max(needed - remote, 0)) if remote else (planned, needed)
        kept = keep_free if self.held else keep_free + self.phases[-self.step % block_tokens]
        if needed - hits + idle + kept > cache.capacity - cache.used:
            # a first chunk needs fewer blocks once cached ones before it are evicted; a whole prompt never does
            self.recheck = idle > 0 and not whole
            return 0
        self.waiting.popleft()
        request.node = cache.acquire_hit() if hits else cache.root
        if planned > hits:
            cache.allocate(planned - hits)
        request.shared_blocks = hits
        request.blocks = planned
        request.computed = computed
        request.target = target
        request.status = RUNNING
        if not preempted:
            self._begin(request)
            request.cached_tokens = hits * block_tokens
        else:
            self._resume(request)
        if self.reuse is not None:
            request.approximate_tokens = reused
        self.running[request] = None
        self.prefilling.append(request)
        self._plan_chunk(request, tokens)
        return tokens

    def extend_all(self) -> None:
        """Plan the whole rest of prompts that have begun, where no scheduler cuts them: their beginnings came from elsewhere."""
        for request in list(self.prefilling):
            self.extend(request, request.target - request.computed)

    def preempt(self, request: Request) -> None:
        """Stop a running request now: its blocks are released and it waits, first in the queue.

        It will be computed again, or what was computed comes back from the host.
        """
        if any(planned is request for planned, _ in self.chunks):
            raise PolicyError(
                f"request {request.id} cannot be preempted after a chunk of it was planned for the same step"
            )
        self._stop(request)
        used = self.cache.used
        borrows = request.remote_blocks > 0
        self._release(request, finished=False)
        if self.swap is not None and request.carrier is None and not borrows:
            self.swap.take(self, request, used - self.cache.used)
        request.preemptions += 1
        request.status = WAITING
        self.preemptions += 1
        self.preempted.append(request)
        self.waiting.appendleft(request)

    def resume(self, plan: Suspended) -> None:
        """Go on with a suspended step where it was stopped. It is all that this step computes: decodes are held back."""
        if self.chunks:
            raise PolicyError(
                "a suspended step cannot be merged with other prompt chunks: nothing else may be planned with it"
            )
        if plan not in self.suspended:
            raise PolicyError("a step can be resumed only where and while it is suspended")
        self.suspended.remove(plan)
        self.cache.used -= plan.blocks
        self.chunks = plan.chunks
        self.sampled, self.prefill_tokens = plan.sampled, plan.prefill_tokens
        self.prefill_pairs, self.prefill_ctx_tokens = plan.prefill_pairs, plan.prefill_ctx_tokens
        self.prefilling.extend([request for request, _ in plan.chunks])
        self.resumed = plan
        self.held = True

    # --- verbs of the replica ----------------------------------------------------------------------------------------

    def suspend(self, plan: Suspended) -> None:
        """Lay the step under way aside; its requests keep their blocks, its activations take the room of some more."""
        self.cache.allocate(plan.blocks)
        for request, _ in plan.chunks:
            self.prefilling.remove(request)
        self.suspended.append(plan)
        self.clear_plan()

    def withdraw(self, request: Request) -> None:
        """Let a request go that waits or runs here, between two steps, and give back its blocks."""
        if request in self.running:
            self._stop(request)
            self._tell_order(request)
            self._release(request, finished=True)
        else:
            self.waiting.remove(request)
            self.forget_loans(request, True)
        self.unreserve(request)
        self._unswap(request)
        request.status = WAITING

    def park(self, request: Request) -> Parked:
        """Let a running request go between two steps, and keep its blocks until `unpark`."""
        self._stop(request)
        self._tell_order(request)
        self._unswap(request)
        return self._parked(request)

    def unpark(self, parked: Parked) -> None:
        """Give back the blocks of a request that has left; whole ones stay cached where the cache is on."""
        del self.parked[parked]
        cache = self.cache
        cache.used -= parked.own_blocks
        if parked.node is not cache.root:
            cache.release(parked.node)

    def reserve(self, request: Request, blocks: int) -> bool:
        """Keep blocks for a request that will come, between two steps; False if they are lacking."""
        if blocks > self.spare_blocks():
            return False
        self.cache.allocate(blocks)
        self.reserved[request] = self.reserved.get(request, 0) + blocks
        return True

    def unreserve(self, request: Request) -> None:
        """Give back what was kept for a request, if anything was."""
        self.cache.used -= self.reserved.pop(request, 0)

    def welcome(self, request: Request) -> None:
        """Let a request for which blocks are kept join the queue, before the others, with blocks for all that it brings.

        Where these are lacking, what it brings is given up and it is computed again.
        """
        target = request.prompt_tokens + request.generated
        missing = -(-target // self.block_tokens) - self.reserved[request]
        if missing <= 0 or self.reserve(request, missing):
            self.waiting.appendleft(request)
            return
        self.unreserve(request)
        request.carried_tokens = 0
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.append(request)

    def lendable_blocks(self, request: Request, covered: int) -> int:
        """Whole blocks of a decoding request with `covered` tokens that lie here and that no other request can share."""
        return covered // self.block_tokens - request.shared_blocks - request.remote_blocks

    def host(self, loan: Loan) -> bool:
        """Keep blocks for a request of another replica, between two steps; False if they are lacking."""
        if loan.blocks > self.spare_blocks():
            return False
        self.cache.allocate(loan.blocks)
        self.hosted[loan] = None
        return True

    def serve(self, loan: Loan, on: bool) -> None:
        """Compute attention over hosted blocks in each step from now on, or no more."""
        if loan in self.hosted:
            loan.serving = on
            self._sum_hosted()

    def unhost(self, loan: Loan) -> None:
        """Give back hosted blocks."""
        del self.hosted[loan]
        self.cache.used -= loan.blocks
        self._sum_hosted()

    def borrow(self, loan: Loan) -> None:
        """The oldest own blocks of a decoding request lie elsewhere from now on: their room here is free."""
        request = loan.request
        self.cache.used -= loan.blocks
        request.remote_blocks += loan.blocks
        self.borrowed.setdefault(request, []).append(loan)
        self._sum_borrowed()

    def take_back(self, loan: Loan) -> bool:
        """Have borrowed blocks lie here again, between two steps; False if blocks are lacking."""
        request = loan.request
        if loan.blocks > self.spare_blocks():
            return False
        self.cache.allocate(loan.blocks)
        request.remote_blocks -= loan.blocks
        loans = self.borrowed[request]
        loans.remove(loan)
        if not loans:
            del self.borrowed[request]
        self._sum_borrowed()
        return True

    def prefer_reserved(self) -> bool:
        """Put a waiting request for which blocks are kept before one that they leave no room for; False if nothing changed.

        An order of the queue stays as it is: if nothing runs, what is kept is given up, and who waits for it is computed again.
        """
        for request in self.waiting:
            if request not in self.reserved:
                continue
            if request is self.waiting[0]:
                return False
            if self.order is None:
                self.waiting.remove(request)
                self.waiting.appendleft(request)
                return True
            return not self.running and self.give_up_reserved()
        return False

    def give_up_reserved(self) -> bool:
        """Have those who wait with blocks kept for them computed again instead; always True."""
        for request in [request for request in self.waiting if request in self.reserved]:
            self.unreserve(request)
            request.carried_tokens = 0
            request.preemptions += 1
            self.preemptions += 1
        return True

    def loaded(self, request: Request) -> None:
        """The keys and values of a loading request are here: it computes on from the next step."""
        del self.loading[request]
        self._note_transfer(request)
        request.computed = request.carried_tokens
        request.carried_tokens = 0
        self.prefilling.append(request)

    def rejoin(self, request: Request) -> None:
        """The keys and values of a loading request are here, and it lacks no more than its next token: it decodes on."""
        del self.loading[request]
        self._note_transfer(request)
        covered = request.carried_tokens
        request.carried_tokens = 0
        request.computed = covered
        blocks = -(-covered // self.block_tokens)
        self.cache.used -= request.blocks - blocks  # that of its next token is counted with the others'
        request.blocks = blocks
        if request.content is not None and self.cache.enabled:
            self._publish(request, request.content, covered)
        self._join_decode(request, covered)

    def _join_decode(self, request: Request, covered: int) -> None:
        """Let a request get a token per step, whose first `covered` tokens are computed."""
        finish_step = self.step + request.output_tokens - request.generated
        request.finish_step = finish_step
        heappush(self.by_finish, (finish_step, _order(request), request))
        self.decoding += 1
        if covered >= self.kept_tokens:
            self.ctx_tokens += self.kept_tokens
            self.capped[request] = None
            self._compress(request)
            return
        if self.compression is not None:
            heappush(self.by_cap, (self.step + self.kept_tokens - covered, _order(request), request))
        self.ctx_tokens += covered
        self.phases[(covered - self.step) % self.block_tokens] += 1
        if request.lenders:
            self.borrowed[request] = list(request.lenders)
            self._sum_borrowed()
            for loan in request.lenders:
                loan.lender.serve(True)

    def finish_prefill(self, request: Request, tokens: int) -> Parked:
        """Like `finish_chunk`, for the last chunk of a request whose tokens after the first are computed elsewhere."""
        request.computed += tokens
        request.generated += 1
        self.prefilling.remove(request)
        del self.running[request]
        self._tell_order(request)
        self._unswap(request)
        return self._parked(request)

    def steps_until_change(self, limit: int) -> int:
        """Decode steps that can be done before a request finishes or blocks run out, at most `limit`."""
        heap = self.by_finish
        if limit > self.ask_at - self.step:
            limit = max(self.ask_at - self.step, 1)
        if self.stale:
            running = self.running
            while heap and (heap[0][2].finish_step != heap[0][0] or heap[0][2] not in running):
                heappop(heap)
        if heap:
            limit = min(limit, heap[0][0] - self.step)
        if self.by_cap:
            limit = min(limit, self.by_cap[0][0] - self.step)
        limit = self._steps_within(self.cache.capacity - self.cache.used, limit)
        if self.leaving:
            limit = self._steps_within(self.cache.capacity - self.cache.used + self.unbacked - self.leaving, limit)
        if self.cache.journal is not None or (self.tiers is not None and self.tiers.writes_back):
            # somebody watches what the cache holds: the first block that goes is told when it goes
            limit = min(limit, self._steps_within(max(self.cache.free, 0), limit) + 1)
        return limit

    def _steps_within(self, available: int, limit: int) -> int:
        """Decode steps, at most `limit`, that need no more than `available` new blocks."""
        batch, block_tokens = self.growing, self.block_tokens
        if batch * (limit // block_tokens + 1) <= available:
            return limit
        cycles = available // batch
        available -= cycles * batch
        steps = cycles * block_tokens
        phase = -(self.step + steps) % block_tokens
        while steps < limit:
            available -= self.phases[phase]
            if available < 0:
                return steps
            phase = phase - 1 if phase else block_tokens - 1
            steps += 1
        return limit

    def decode(self, steps: int) -> None:
        """Give every decoding request `steps` tokens."""
        batch = self.growing
        if batch:
            block_tokens, phases = self.block_tokens, self.phases
            cycles, rest = divmod(steps, block_tokens)
            blocks = cycles * batch
            if rest == 1:
                blocks += phases[-self.step % block_tokens]
            elif rest:
                high = -self.step % block_tokens
                low = high - rest + 1
                blocks += sum(phases[low : high + 1]) if low >= 0 else sum(phases[low:]) + sum(phases[: high + 1])
            if blocks:
                self.cache.allocate(blocks)
            self.ctx_tokens += batch * steps
        self.step += steps
        if self.by_cap:
            self._cap()

    def pop_finished(self) -> Request | None:
        """A decoding request whose last token has come, removed from the batch; None if there is none (left)."""
        heap, step = self.by_finish, self.step
        while heap and heap[0][0] <= step:
            finish_step, _, request = heappop(heap)
            if request.finish_step == finish_step and (not self.stale or request in self.running):
                request.generated = request.output_tokens
                request.finish_step = -1
                self._end_decode(request, request.prompt_tokens + request.output_tokens - 1)
                del self.running[request]
                if self.order is not None:
                    self.order.left(request)
                self._release(request, True)
                return request
        return None

    def finish_chunk(self, request: Request, tokens: int) -> bool:
        """Note that `tokens` more prompt tokens are computed; True if that was the last chunk (the request gets a token)."""
        request.computed += tokens
        if self.interruptible:
            content = request.content
            if content is not None and self.cache.enabled:
                self._publish(request, content, request.computed)
        if request.computed < request.target:
            return False
        self.prefilling.remove(request)
        if self.compression is not None:
            seen = self.compression.approximate(request.target)
            request.approximate_tokens += min(seen, 1) if request.generated else seen
        request.generated += 1
        self._tell_below(request, request.shared_blocks)
        if request.generated >= request.output_tokens:
            del self.running[request]
            self._tell_order(request)
            self._release(request, finished=True)
            return True
        self._join_decode(request, request.target)
        return True

    def clear_plan(self) -> None:
        """Forget the planned chunks after their step."""
        self.chunks = []
        self.remote_chunks = []
        self.held = False
        self.resumed = None
        self.sampled = self.prefill_tokens = self.extra_tokens = self.prefill_pairs = self.prefill_ctx_tokens = 0

    def used_blocks(self, steps_ahead: int) -> int:
        """Blocks in use after `steps_ahead` more decode steps (a pure question)."""
        blocks = self.cache.used
        growing = self.growing
        if steps_ahead and growing:
            cycles, rest = divmod(steps_ahead, self.block_tokens)
            blocks += cycles * growing
            for step in range(self.step, self.step + rest):
                blocks += self.phases[-step % self.block_tokens]
        return blocks

    # --- inside ------------------------------------------------------------------------------------------------------

    def _admit_carried(self, request: Request, max_tokens: int, keep_free: int) -> int:
        """Admit a request whose first `carried_tokens` were computed elsewhere; what the cache holds of them need not be brought.

        It holds all its blocks from now on. Where they have to be brought it computes nothing until then, and takes one token of
        the step's budget.
        """
        cache, block_tokens = self.cache, self.block_tokens
        target = request.prompt_tokens + request.generated
        carried = min(request.carried_tokens, target - 1)
        hits = idle = 0
        if cache.enabled:
            hits = cache.lookup(self._path(request), carried // block_tokens)
            idle = cache.hit_idle
        blocks = -(-(target if self.compression is None else self.compression.chunk_room(target)) // block_tokens)
        # what comes from the host joins the next decodes, even where none are planned yet
        kept = keep_free
        if not self.held or self.swap is not None:
            kept += self.phases[-self.step % block_tokens]
        available = cache.capacity - cache.used + self.reserved.get(request, 0)
        if blocks - hits + idle + kept > available:
            return 0
        self.unreserve(request)
        self.waiting.popleft()
        request.node = cache.acquire_hit() if hits else cache.root
        if blocks > hits:
            cache.allocate(blocks - hits)
        request.shared_blocks = hits
        request.blocks = blocks
        request.target = target
        request.carried_tokens = carried
        request.status = RUNNING
        if not request.generated and not request.preemptions:
            self._begin(request)
            request.cached_tokens = carried
        else:
            self._resume(request)
        self.running[request] = None
        lacking = carried - hits * block_tokens
        if request.carrier is not None and lacking > 0:
            self.loading[request] = None
            request.stopped_s = self.now_s
            request.computed = hits * block_tokens
            self.to_load.append((request, lacking))
            return 1
        if request.carrier is not None:
            request.carrier.fetch(request, 0)
        request.computed = carried
        request.carried_tokens = 0
        self.prefilling.append(request)
        tokens = min(target - carried, max_tokens)
        self._plan_chunk(request, tokens)
        return tokens

    def _ask_below(self, tiers: LowerTiers, request: Request) -> None:
        """Let lower tiers offer what they hold of a request's start beyond what is here."""
        if request.content is None and not request.preemptions and not request.generated:
            return
        path = self._path(request)
        limit = (request.prompt_tokens + request.generated - 1) // self.block_tokens
        tiers.offer(request, path, self.cache.lookup(path, limit), limit)

    def _tell_below(self, request: Request, blocks: int) -> None:
        """Let lower tiers know that a request has used its first `blocks` blocks, which the cache holds."""
        if self.tiers is not None and blocks:
            self.tiers.used(self._path(request), blocks, request.cached_tokens // self.block_tokens)

    def _stop(self, request: Request) -> None:
        """Take a request out of the running set; its blocks stay its own."""
        del self.running[request]
        if request.finish_step >= 0:
            self._leave_decode(request)
        elif request in self.loading:
            del self.loading[request]
            self._note_transfer(request)
            if request.carrier is not None:
                request.carrier.drop(request)
        elif not self.suspended or not self._leave_suspended(request):
            self.prefilling.remove(request)
        request.stopped_s = self.now_s

    def _begin(self, request: Request) -> None:
        """Note that a request is scheduled for the first time, or again with nothing to show for it."""
        request.first_scheduled_s = self.now_s
        if request.stopped_s == request.stopped_s:
            request.stopped_s = nan
            request.stall_s = request.transfer_s = request.late_s = 0.0

    def _resume(self, request: Request) -> None:
        """Count the time for which a request ran nowhere until now."""
        waited_s = self.now_s - request.stopped_s
        request.stopped_s = nan
        if waited_s == waited_s:
            request.stall_s += waited_s
            if request.first_token_s == request.first_token_s:
                request.late_s += waited_s

    def _note_transfer(self, request: Request) -> None:
        """Count the time for which a request waited for its keys and values."""
        waited_s = self.now_s - request.stopped_s
        request.stopped_s = nan
        if waited_s == waited_s:
            request.transfer_s += waited_s
            if request.first_token_s == request.first_token_s:
                request.late_s += waited_s

    def _leave_suspended(self, request: Request) -> bool:
        """Take a request out of the suspended step that it is part of, if it is; a step without requests is dropped.

        Otherwise the rest of the step lasts as long: its tensors keep their shape.
        """
        for plan in self.suspended:
            chunks = [chunk for chunk in plan.chunks if chunk[0] is not request]
            if len(chunks) == len(plan.chunks):
                continue
            tokens = next(tokens for planned, tokens in plan.chunks if planned is request)
            plan.chunks = chunks
            plan.prefill_tokens -= tokens
            if request.computed + tokens >= request.target:
                plan.sampled -= 1
            if not chunks:
                self.suspended.remove(plan)
                self.cache.used -= plan.blocks
            return True
        return False

    def _unswap(self, request: Request) -> None:
        """Keep nothing on the host for a request that leaves."""
        if self.swap is not None:
            self.swap.forget(request)

    def _tell_order(self, request: Request) -> None:
        """Tell the queue's order that a request has ended here or goes elsewhere."""
        if self.order is not None:
            self.order.left(request)

    def _parked(self, request: Request) -> Parked:
        """Keep the blocks of a request that has just been taken out."""
        cache, content = self.cache, request.content
        if cache.enabled and content is not None:
            self._publish(request, content, request.computed)
            self._tell_below(request, request.shared_blocks)
        parked = Parked(request.node, request.shared_blocks, request.blocks - request.shared_blocks)
        self.parked[parked] = None
        request.node = cache.root
        request.blocks = request.shared_blocks = 0
        return parked

    def _path(self, request: Request) -> Path:
        """Keys of a request's known blocks, followed by keys that only it has."""
        content = request.content
        path: Path = ()
        if content is not None:
            path = content.path(self.block_tokens)
            if content.open_ended:
                return path
            path = _cut(path, request.prompt_tokens // self.block_tokens)
        known = sum(len(segment) for segment in path)
        whole = (request.prompt_tokens + request.output_tokens) // self.block_tokens
        return (*path, private_path(request.id, known, whole - known))

    def _plan_chunk(self, request: Request, tokens: int) -> None:
        computed = request.computed
        upto = computed + tokens
        self.chunks.append((request, tokens))
        self.prefill_tokens += tokens
        if self.compression is None:
            here = computed
            if request.remote_blocks:
                here = max(computed - request.remote_blocks * self.block_tokens, 0)
                self.remote_chunks.append(RemoteChunk(request, computed, tokens))
            self.prefill_pairs += tokens * here + tokens * (tokens + 1) // 2
            self.prefill_ctx_tokens += here + tokens
        else:
            extra, pairs, keys = self.compression.chunk_work(computed, tokens, request.target)
            self.extra_tokens += extra
            self.prefill_pairs += pairs
            self.prefill_ctx_tokens += keys
        if upto >= request.target:
            self.sampled += 1
        if self.interruptible:
            self._check_plan(request)
            return
        content = request.content
        if content is not None and self.cache.enabled and upto // self.block_tokens > request.shared_blocks:
            # published when scheduled, as vLLM does: a later step of another request may read what this step writes
            self._publish(request, content, upto)

    def _check_plan(self, request: Request) -> None:
        """Where steps can be stopped: a chunk must not touch one that waits to be resumed, nor join one that is."""
        if self.resumed is not None:
            raise PolicyError("nothing can be planned beside a step that is resumed")
        if any(planned is request for plan in self.suspended for planned, _ in plan.chunks):
            raise PolicyError(f"request {request.id} is part of a suspended step: resume that, or preempt the request")

    def _publish(self, request: Request, content: Content, covered: int) -> None:
        """Let others find the whole blocks of `request`'s first `covered` tokens whose content is known."""
        block_tokens = self.block_tokens
        if not content.open_ended and covered > request.prompt_tokens:
            covered = request.prompt_tokens
        if self.reuse is not None and request.approximate_tokens:
            covered = min(covered, content.runs[0][1])
        whole, shared = covered // block_tokens, request.shared_blocks
        if whole <= shared:
            return
        path = content.path(block_tokens)
        known = len(path[0]) if len(path) == 1 else sum([len(segment) for segment in path])
        if whole > known:
            whole = known
        if whole > shared:
            if self.user is not None:
                self.user._request = request
            request.node = self.cache.extend(request.node, path, shared, whole)
            request.shared_blocks = whole

    def _leave_decode(self, request: Request) -> None:
        self.stale = True
        step = self.step
        request.generated = request.output_tokens - (request.finish_step - step)
        self._end_decode(request, request.prompt_tokens + request.generated - 1)
        request.finish_step = -1

    def _end_decode(self, request: Request, covered: int) -> None:
        """Take a request whose tokens but the last are covered out of the sums, and tell it its blocks."""
        block_tokens = self.block_tokens
        self.decoding -= 1
        request.computed = covered
        if self.compression is not None:
            self.note_approximate(request, covered)
            if request in self.capped:
                del self.capped[request]
                covered = self.kept_tokens
                self.ctx_tokens -= covered
                request.blocks = -(-covered // block_tokens)
                return
        self.ctx_tokens -= covered
        self.phases[(covered - self.step) % block_tokens] -= 1
        request.blocks = -(-covered // block_tokens) - request.remote_blocks

    def note_approximate(self, request: Request, covered: int) -> None:
        """Count the tokens that a request decoded since it joined and that attended to less than all before them."""
        if self.compression is not None:
            # the token after `kept_tokens` covered ones still sees them all
            request.approximate_tokens += max(0, covered - max(self.kept_tokens, request.target - 1) - 1)

    def _cap(self) -> None:
        """Note who has got as many tokens as it may hold: it grows no more."""
        heap, step, kept = self.by_cap, self.step, self.kept_tokens
        while heap and heap[0][0] <= step:
            request = heappop(heap)[2]
            if request.finish_step < 0 or request in self.capped or request not in self.running:
                continue
            covered = request.prompt_tokens + request.output_tokens - (request.finish_step - step) - 1
            if covered == kept:
                self.phases[(covered - step) % self.block_tokens] -= 1
                self.capped[request] = None

    def _compress(self, request: Request) -> None:
        """Give back what a request whose prompt is computed holds above its bound."""
        kept = -(-self.kept_tokens // self.block_tokens)
        if request.blocks > kept:
            self.cache.used -= request.blocks - kept
            request.blocks = kept

    def _release(self, request: Request, finished: bool) -> None:
        """Give back a request's blocks; whole ones stay cached where the cache is on, unless some lie elsewhere."""
        cache = self.cache
        if request.remote_blocks:
            own = request.blocks - request.shared_blocks
            self.forget_loans(request, finished)
        elif cache.enabled:
            content = request.content
            if content is not None and content.open_ended:
                self._publish(request, content, request.computed)
                self._tell_below(request, request.shared_blocks)
            shared = request.shared_blocks
            whole = request.computed // self.block_tokens
            own = request.blocks - shared
            if self.reuse is not None:
                self.reuse.ended(request)
                if request.approximate_tokens and not finished:
                    whole = shared
            if self.user is not None:
                self.user._request = request
            if whole > shared:
                if not finished:
                    # a preempted request may find its own blocks again
                    request.node = cache.extend(request.node, self._path(request), shared, whole)
                    own -= whole - shared
                    self._tell_below(request, whole)
                elif self.retain_unmatched:
                    cache.leave(whole - shared)
                    own -= whole - shared
        else:
            own = request.blocks
        if own:
            cache.used -= own
        if request.node is not cache.root:
            cache.release(request.node)
        request.blocks = request.shared_blocks = 0

    def forget_loans(self, request: Request, finished: bool) -> None:
        """Let those who keep blocks of a request know that it does not decode any more, and will not come back if `finished`."""
        loans = self.borrowed.pop(request, [])
        if loans:
            self._sum_borrowed()
        kept = request.lenders
        if finished:
            request.lenders = ()
        request.remote_blocks = sum([loan.blocks for loan in request.lenders])
        for loan in loans:
            if finished or loan not in kept:
                loan.lender.end()
            else:
                loan.lender.serve(False)
        if finished and not loans:
            for loan in kept:
                loan.lender.end()

    def _sum_borrowed(self) -> None:
        """Sum up anew what borrowed blocks cost each step: what is added and taken off again would leave a rest."""
        loans = [loan for loans in self.borrowed.values() for loan in loans]
        self.remote_tokens = sum([loan.blocks for loan in loans]) * self.block_tokens
        self.remote_s = remote_wait_s([(loan.creditor, loan.terms) for loan in loans])
        self.remote_bytes = sum([loan.terms.wire_bytes for loan in loans], 0.0)
        self.remote_j = sum([loan.terms.energy_j for loan in loans], 0.0)

    def _sum_hosted(self) -> None:
        self.hosted_s = sum([loan.terms.work_s for loan in self.hosted if loan.serving], 0.0)

    # --- laws -------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Recount everything from scratch (law 3 and the batch's own books).

        Raises
        ------
        LawError
            If a running total differs from the recount.
        """
        prefilling = {*self.prefilling, *self.loading}
        prefilling.update(request for plan in self.suspended for request, _ in plan.chunks)
        decoding = [r for r in self.running if r not in prefilling]
        covered = [r.prompt_tokens + r.output_tokens - (r.finish_step - self.step) - 1 for r in decoding]
        phases = [0] * self.block_tokens
        for tokens in covered:
            if tokens < self.kept_tokens:
                phases[(tokens - self.step) % self.block_tokens] += 1
        capped = {r for tokens, r in zip(covered, decoding, strict=True) if tokens >= self.kept_tokens}
        covered = [min(tokens, self.kept_tokens) for tokens in covered]
        here = [r.shared_blocks + r.remote_blocks for r in decoding]
        own = sum(-(-t // self.block_tokens) - n for t, n in zip(covered, here, strict=True))
        own += sum(r.blocks - r.shared_blocks for r in prefilling)
        own += sum(parked.own_blocks for parked in self.parked) + sum(self.reserved.values())
        own += sum(plan.blocks for plan in self.suspended) + sum(loan.blocks for loan in self.hosted)
        borrowed = {r: sum(loan.blocks for loan in loans) for r, loans in self.borrowed.items()}
        cache = self.cache
        nodes = list(cache.nodes())
        facts = {
            "decoding requests": (self.decoding, len(decoding)),
            "requests at their bound": ({*self.capped}, capped),
            "context tokens": (self.ctx_tokens, sum(covered)),
            "block phases": (self.phases, phases),
            "borrowed blocks": (borrowed, {r: r.remote_blocks for r in decoding if r.remote_blocks}),
            "used KV blocks": (cache.used, own + sum(n.length for n in nodes if n.users)),
            "cached KV blocks": (cache.cached, sum(n.length for n in cache.idle)),
            "idle nodes": ({n for n in cache.idle if n.parent is not None}, {n for n in nodes if not n.users}),
        }
        for what, (kept, counted) in facts.items():
            if kept != counted:
                raise LawError(f"law 3 (KV blocks and batch books): {what} kept {kept}, counted {counted}")
        if cache.free < 0 or cache.used < 0 or any(n.users < 0 for n in nodes):
            raise LawError(f"law 3 (KV blocks): used {cache.used}, cached {cache.cached}, capacity {cache.capacity}")


def _order(request: Request) -> int:
    """Order of ids, which copies of a request share: their attempts differ."""
    return 1024 * request.id + (request.attempt & 1023)


def _cut(path: Path, blocks: int) -> Path:
    """The first `blocks` blocks of a path."""
    if len(path) == 1:
        return path if len(path[0]) <= blocks else (path[0][:blocks],)
    parts = []
    for segment in path:
        if blocks <= 0:
            break
        parts.append(segment[:blocks])
        blocks -= len(segment)
    return tuple(parts)
