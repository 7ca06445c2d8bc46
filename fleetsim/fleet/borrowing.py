"""Remote memory: blocks of a decoding request are copied to another replica, which from then on computes attention over them.

As in DistAttention, a step sends the request's queries to where its blocks lie and gets partial results back, layer by layer;
keys and values move only when a loan begins and when it is recalled.
"""

from __future__ import annotations

from collections.abc import Callable

from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import StepTimeModel
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


class Borrowing:
    """One loan, from the question for room to its end.

    The creditor keeps room first; then the oldest own blocks are copied while the request decodes on, the debtor frees them, and
    the creditor serves them. A recall copies them back once the debtor has room. Whatever ends the request here, or preempts it,
    ends the loan too.

    Parameters
    ----------
    network : Network
        What keys and values travel over.
    request : Request
        Decoding on `source`.
    source, target : Replica
        Debtor and creditor.
    blocks : int
        How many. ≥ 1.
    token_bytes : float
        Keys and values of a token [bytes].
    cost : Terms
        What each step costs from then on.
    over : callable
        Called with this loan when nothing more will happen.
    """

    __slots__ = (
        "_network",
        "_over",
        "_rank",
        "_recalled",
        "_target_rank",
        "_token_bytes",
        "began",
        "bytes",
        "loan",
        "recalled",
        "source",
        "target",
    )

    def __init__(
        self,
        network: Network,
        request: Request,
        source: Replica,
        target: Replica,
        blocks: int,
        token_bytes: float,
        cost: Terms,
        over: Callable[[Borrowing], None],
    ) -> None:
        self._network = network
        self.source = source
        self.target = target
        self._token_bytes = token_bytes
        self._over = over
        self._rank = request.rank
        self._target_rank = target.roomiest_rank()
        self._recalled = False
        self.loan = Loan(request, target.index, blocks, cost, self._ended)
        self.began = False
        """Whether the blocks have come to lie on the creditor alone."""
        self.recalled = False
        """Whether they lie on the debtor again."""
        self.bytes = 0.0
        """Keys and values copied so far [bytes]."""
        target.at_boundary(self._reserve)

    def recall(self) -> None:
        """Begin to bring the blocks back; nothing if the debtor lacks room when they would lie there again."""
        if self.began and not self._recalled:
            self._recalled = True
            self._send(self.target, self.source, lambda: self.source.at_boundary(self._take_back))

    @property
    def _lendable(self) -> bool:
        """Whether the request still decodes where it was, with so many blocks of its own."""
        request, source = self.loan.request, self.source
        if not source.is_decoding(request, self._rank):
            return False
        batch = source.batches[self._rank]
        covered = source.context_tokens(request) - 1
        return batch.lendable_blocks(request, covered) >= self.loan.blocks

    def _reserve(self) -> None:
        batch = self.target.batches[self._target_rank]
        if self._lendable and not batch.borrowed and batch.host(self.loan):
            self._send(self.source, self.target, lambda: self.source.at_boundary(self._begin))
        else:
            self._over(self)

    def _begin(self) -> None:
        if not self._lendable:
            self._ended(self.loan)
            return
        self.began = True
        self.source.batches[self._rank].borrow(self.loan)
        self.target.at_boundary(lambda: self.target.batches[self._target_rank].serve(self.loan))

    def _take_back(self) -> None:
        if self.loan not in self.source.batches[self._rank].borrowed.get(self.loan.request, ()):
            return  # it ended meanwhile
        if self.source.batches[self._rank].take_back(self.loan):
            self.recalled = True
            self._ended(self.loan)
        else:
            self._recalled = False

    def _ended(self, loan: Loan) -> None:
        self.target.at_boundary(lambda: self.target.batches[self._target_rank].unhost(loan))
        self._over(self)

    def _send(self, source: Replica, target: Replica, done: Callable[[], None]) -> None:
        size_bytes = self.loan.blocks * self.source.batches[self._rank].block_tokens * self._token_bytes
        self.bytes += size_bytes
        self._network.transfer(gpu(source), gpu(target), size_bytes, done)
