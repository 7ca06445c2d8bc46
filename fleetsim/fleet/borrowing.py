"""Remote memory: blocks of a request lie on another replica, which computes attention over them.

As in DistAttention, a step sends the request's queries to where its blocks lie and gets partial results back, layer by layer;
keys and values move only when they are first written there, when a loan begins, and when it is recalled.
"""

from __future__ import annotations

from collections.abc import Callable

from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.batch import Batch
from fleetsim.engine.loans import Loan, Terms
from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import gpu
from fleetsim.network.flows import Network
from fleetsim.workload.request import Request

_ACTIVATION_BYTES = 2
_SUM_BYTES = 8
"""Row maximum and sum of exponentials of one head, in single precision."""


def query_bytes(llm: Llm) -> tuple[int, int]:
    """Bytes of one token's queries, and of the partial results of its attention, over one layer.

    Queries and results of all heads in 16 bits, with the two numbers in 32 bits that partial results are merged by; of latent
    attention in its absorbed form, over the latent dimension.
    """
    if llm.attention == "mla":
        query, value = llm.kv_lora_rank + llm.rope_head_dim, llm.kv_lora_rank
    else:
        query = value = llm.head_dim
    return llm.heads * query * _ACTIVATION_BYTES, llm.heads * (value * _ACTIVATION_BYTES + _SUM_BYTES)


def terms(network: Network, llm: Llm, source: Replica, target: Replica, tokens: int) -> Terms:
    """What each step of `source` costs while `tokens` of a request of it lie on `target`.

    Latencies and bandwidths of the way between them when nothing else moves: a token's queries are too few to be felt by others.
    """
    out_bytes, back_bytes = query_bytes(llm)
    layers = llm.full_layers
    there, back = (gpu(source), gpu(target)), (gpu(target), gpu(source))
    wire_s = layers * (network.idle_s(*there, out_bytes) + network.idle_s(*back, back_bytes))
    work_s, energy_j = _attention(target.model, tokens)
    return Terms(wire_s, work_s, energy_j, layers * (out_bytes + back_bytes))


def _attention(model: StepTimeModel, tokens: int) -> tuple[float, float]:
    """Time and energy of one token's attention over `tokens` others: what they add to a step of one request [s, J]."""
    time_s = energy_j = 0.0
    for context, sign in ((tokens + 1, 1.0), (1, -1.0)):
        line = model.decode(1, context, 1)
        time_s += sign * (line.time_s + line.time_per_ctx_s * context)
        energy_j += sign * (line.energy_j + line.energy_per_ctx_j * context)
    return max(time_s, 0.0), max(energy_j, 0.0)


def _chunk_attention(model: StepTimeModel, tokens: int, keys: int) -> tuple[float, float]:
    """Time and energy of attention of a chunk's `tokens` over `keys` before it: what they add to a step of that chunk [s, J]."""
    own = tokens * (tokens + 1) // 2
    time_s, energy_j = model.mixed(tokens, 0, own + tokens * keys, keys + tokens, 1, 0, 0, tokens)
    alone_s, alone_j = model.mixed(tokens, 0, own, tokens, 1, 0, 0, tokens)
    return max(time_s - alone_s, 0.0), max(energy_j - alone_j, 0.0)


class Place:
    """Blocks of one creditor that belong to a request of a debtor, and what the creditor does for them.

    Parameters
    ----------
    network : Network
        What keys and values travel over.
    llm : Llm
        Whose they are.
    request : Request
        Whose blocks they are.
    source, target : Replica
        Debtor and creditor.
    blocks : int
        How many. ≥ 1.
    token_bytes : float
        Keys and values of a token [bytes].
    over : callable
        Called with this when nothing more will happen.
    """

    def __init__(
        self,
        network: Network,
        llm: Llm,
        request: Request,
        source: Replica,
        target: Replica,
        blocks: int,
        token_bytes: float,
        over: Callable[[Place], None],
    ) -> None:
        self._network = network
        self._llm = llm
        self.source = source
        self.target = target
        self._token_bytes = token_bytes
        self._over = over
        self._target_rank = target.roomiest_rank()
        cost = terms(network, llm, source, target, blocks * self._there.block_tokens)
        self.loan = Loan(request, target.index, blocks, cost, self)
        self.began = False
        """Whether the blocks lie on the creditor."""
        self.recalled = False
        """Whether they lie on the debtor again."""
        self.bytes = 0.0
        """Keys and values copied so far [bytes]."""

    @property
    def _there(self) -> Batch:
        return self.target.batches[self._target_rank]

    def serve(self, on: bool) -> None:
        """Have the creditor compute attention over the blocks in each of its steps from its next boundary on, or no more."""
        self.target.at_boundary(lambda: self._there.serve(self.loan, on))

    def chunk(self, tokens: int, keys: int, written: int) -> tuple[Terms, float]:
        """What a chunk costs whose creditor holds `keys` before it and gets `written` of it; the creditor owes the work."""
        cost = Terms(0.0, 0.0, 0.0, 0.0)
        if keys:
            out_bytes, back_bytes = (tokens * size for size in query_bytes(self._llm))
            layers = self._llm.full_layers
            there, back = (gpu(self.source), gpu(self.target)), (gpu(self.target), gpu(self.source))
            wire_s = layers * (self._network.idle_s(*there, out_bytes) + self._network.idle_s(*back, back_bytes))
            work_s, energy_j = _chunk_attention(self.target.model, tokens, keys)
            cost = Terms(wire_s, work_s, energy_j, layers * (out_bytes + back_bytes))
            self.target.at_boundary(lambda: self.target.owe(work_s))
        if not written:
            return cost, 0.0
        size_bytes = written * self._token_bytes
        self._send(self.source, self.target, written, _nothing)
        return cost, self._network.idle_s(gpu(self.source), gpu(self.target), size_bytes)

    def end(self) -> None:
        """Give the blocks back: the request needs them no more."""
        self.target.at_boundary(lambda: self._there.unhost(self.loan))
        self._over(self)

    def recall(self) -> None:
        """Begin to bring the blocks back, where that can be done."""

    def _send(self, source: Replica, target: Replica, tokens: int, done: Callable[[], None]) -> None:
        size_bytes = tokens * self._token_bytes
        self.bytes += size_bytes
        self._network.transfer(gpu(source), gpu(target), size_bytes, done)


class Ahead(Place):
    """Blocks kept for the beginning of a prompt before its request is sent; they are written there as it is computed.

    `answered` is called with whether there is room, once the creditor has come to a boundary.
    """

    def reserve(self, answered: Callable[[bool], None]) -> None:
        """Ask for room at the creditor's next boundary."""
        self.target.at_boundary(lambda: answered(self._reserve()))

    def _reserve(self) -> bool:
        self.began = self.target.present and not self._there.borrowed and self._there.host(self.loan)
        return self.began


class Borrowing(Place):
    """Blocks of a decoding request, from the question for room to the end.

    The creditor keeps room first; then the oldest own blocks are copied while the request decodes on, the debtor frees them, and
    the creditor serves them. A recall copies them back once the debtor has room. Whatever ends the request here, or preempts it,
    ends the loan too.
    """

    def begin(self) -> None:
        """Ask for room at the creditor's next boundary, and go on from there."""
        self._rank = self.loan.request.rank
        self._recalling = False
        self.target.at_boundary(self._reserve)

    def recall(self) -> None:
        """Begin to bring the blocks back; nothing if the debtor lacks room when they would lie there again."""
        if self.began and not self._recalling:
            self._recalling = True
            self._copy(self.target, self.source, self._take_back)

    @property
    def _here(self) -> Batch:
        return self.source.batches[self._rank]

    @property
    def _lendable(self) -> bool:
        """Whether the request still decodes where it was, with so many blocks of its own."""
        request, source = self.loan.request, self.source
        if not source.is_decoding(request, self._rank):
            return False
        covered = source.context_tokens(request) - 1
        return self._here.lendable_blocks(request, covered) >= self.loan.blocks

    def _reserve(self) -> None:
        if self.target.present and self._lendable and not self._there.borrowed and self._there.host(self.loan):
            self._copy(self.source, self.target, self._begin)
        else:
            self._over(self)

    def _begin(self) -> None:
        if not self._lendable or not self.target.present:
            self.end()
            return
        self.began = True
        self._here.borrow(self.loan)
        self.serve(True)

    def _take_back(self) -> None:
        if self.loan not in self._here.borrowed.get(self.loan.request, ()):
            return  # it ended meanwhile
        if self._here.take_back(self.loan):
            self.recalled = True
            self.end()
        else:
            self._recalling = False

    def _copy(self, source: Replica, target: Replica, then: Callable[[], None]) -> None:
        """Copy all blocks, then do something at the debtor's next boundary."""
        tokens = self.loan.blocks * self._here.block_tokens
        self._send(source, target, tokens, lambda: self.source.at_boundary(then))


def _nothing() -> None:
    """Nobody waits for this copy: the step that computes what is copied lasts until it is over."""
