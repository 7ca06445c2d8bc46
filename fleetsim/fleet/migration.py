"""Live migration: a request's keys and values are copied while it goes on decoding, and it pauses for the last ones only."""

from __future__ import annotations

from collections.abc import Callable

from fleetsim.engine.batch import Parked
from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import gpu
from fleetsim.network.flows import Flow, Network
from fleetsim.workload.request import Request

LAST_BLOCKS = 16
"""The request pauses once no more blocks than this are left to copy (Llumnix)."""
MAX_STAGES = 3
"""Or in this stage at the latest (Llumnix)."""


class Migration:
    """One request on its way from one replica to another.

    Stage 1 copies what it has, each further stage what it got meanwhile. In the last one it leaves its batch, the rest is copied,
    and it joins the target, where blocks are reserved from the beginning. It stays where it is if the target lacks room, or if it
    ends or is preempted before.

    Parameters
    ----------
    network : Network
        What the copies travel over.
    request : Request
        Decoding on `source`.
    source, target : Replica
        From where to where.
    token_bytes : float
        Keys and values of a token [bytes].
    leave : callable
        Called when the request has left the source.
    arrive : callable
        Called with the request and its rank when it can join the target; whether it did.
    over : callable
        Called with this migration when nothing more will happen.
    """

    __slots__ = (
        "_arrive",
        "_called_off",
        "_copied_tokens",
        "_flow",
        "_leave",
        "_network",
        "_over",
        "_parked",
        "_source_rank",
        "_stage",
        "_target_rank",
        "_token_bytes",
        "bytes",
        "completed",
        "left_s",
        "request",
        "source",
        "target",
    )

    def __init__(
        self,
        network: Network,
        request: Request,
        source: Replica,
        target: Replica,
        token_bytes: float,
        leave: Callable[[Request], None],
        arrive: Callable[[Request, int], bool],
        over: Callable[[Migration], None],
    ) -> None:
        self._network = network
        self.request = request
        self.source = source
        self.target = target
        self._token_bytes = token_bytes
        self._leave = leave
        self._arrive = arrive
        self._over = over
        self._source_rank = request.rank
        self._target_rank = target.roomiest_rank()
        self._stage = 0
        self._copied_tokens = 0
        self._parked: Parked | None = None
        self._flow: Flow | None = None
        self._called_off = False
        self.bytes = 0.0
        """Sent so far [bytes]."""
        self.completed = False
        self.left_s = float("nan")
        """When the request left the source [s]."""
        target.at_boundary(self._reserve)

    @property
    def stalled(self) -> bool:
        """Whether what it copies has come to a cut in the network."""
        return self._flow is not None and self._network.is_stalled(self._flow)

    def call_off(self, recover: Callable[[Request], None]) -> None:
        """Copy no further: the request stays where it is, or, where it has left already, `recover` is called with it."""
        self._called_off = True
        if self._flow is None:
            return  # it waits for a boundary, and sees then
        self._network.cancel(self._flow)
        self._flow = None
        if self._parked is None:
            self._give_up()
            return
        self.source.unpark(self._source_rank, self._parked)
        self._give_up()
        recover(self.request)

    def _goes_on(self) -> bool:
        """Whether the request still decodes where it was."""
        return not self._called_off and self.source.is_decoding(self.request, self._source_rank)

    def _reserve(self) -> None:
        """Keep room on the target for what the request has and for what it gets while that is copied."""
        batch = self.target.batches[self._target_rank]
        if self._goes_on():
            blocks = self.source.context_tokens(self.request) // batch.block_tokens + 2
            if batch.reserve(self.request, blocks):
                self._copy()
                return
        self._over(self)

    def _copy(self) -> None:
        """Copy what has not been copied; pause the request if that is little."""
        covered = self.source.context_tokens(self.request) - 1
        missing = covered - self._copied_tokens
        block_tokens = self.target.batches[self._target_rank].block_tokens
        self._stage += 1
        if self._stage >= MAX_STAGES or missing <= LAST_BLOCKS * block_tokens:
            self.source.at_boundary(self._pause)
            return
        self._copied_tokens = covered
        self._send(missing, self._copied)

    def _copied(self) -> None:
        self._flow = None
        if self._goes_on():
            self._copy()
        else:
            self._give_up()

    def _pause(self) -> None:
        if not self._goes_on():
            self._give_up()
            return
        request = self.request
        self._parked = self.source.depart(request)
        self.left_s = self.source.clock.now_s
        self._leave(request)
        self._send(max(request.computed - self._copied_tokens, 0), self._join)

    def _join(self) -> None:
        assert self._parked is not None
        self._flow = None
        self.source.unpark(self._source_rank, self._parked)
        request = self.request
        request.carrier = None
        request.carried_tokens = request.computed
        self.completed = self._arrive(request, self._target_rank)
        if not self.completed:
            self.target.at_boundary(self._unreserve)
        self._over(self)

    def _give_up(self) -> None:
        self.target.at_boundary(self._unreserve)
        self._over(self)

    def _unreserve(self) -> None:
        self.target.batches[self._target_rank].unreserve(self.request)

    def _send(self, tokens: int, done: Callable[[], None]) -> None:
        size_bytes = tokens * self._token_bytes
        self.bytes += size_bytes
        self._flow = self._network.transfer(gpu(self.source), gpu(self.target), size_bytes, done)
