"""A request's images on their way through an encoder, and what it made of them to where the prompt is computed."""

from __future__ import annotations

from collections.abc import Callable

from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import gpu
from fleetsim.network.flows import Flow, Network
from fleetsim.workload.request import Request


class Encoding:
    """Encodes a request's images, then copies the embeddings to another replica if the prompt is computed there.

    Embeddings stay where they are needed until the request ends; the memory that they take is not counted.

    Parameters
    ----------
    network : callable
        What embeddings travel over.
    request : Request
        Whose images.
    source, target : Replica
        Where they are encoded (or are, if they were encoded before), and where the prompt is computed.
    size_bytes : float
        Of all embeddings [bytes].
    then : callable
        Called with the request when its embeddings are at the target.
    encoded : callable
        Called with the request when it does not wait for the encoder any more.
    """

    __slots__ = ("_flow", "_lost", "_network", "_note", "_request", "_size_bytes", "_source", "_target", "_then")

    def __init__(
        self,
        network: Callable[[], Network],
        request: Request,
        source: Replica,
        target: Replica,
        size_bytes: float,
        then: Callable[[Request], None],
        encoded: Callable[[Request], None],
    ) -> None:
        self._note = encoded
        self._network = network
        self._request = request
        self._source = source
        self._target = target
        self._size_bytes = size_bytes
        self._then = then
        self._flow: Flow | None = None
        self._lost = False

    def uses(self, replica: Replica) -> bool:
        """Whether images are encoded at a replica, or go there."""
        return replica is self._source or replica is self._target

    def source_failed(self, replica: Replica) -> None:
        """Lose what was encoded, or not yet, where that was at a replica that fails."""
        if replica is not self._source or self._lost:
            return
        self._lost = True
        if self._flow is not None:
            self._network().cancel(self._flow)
            self._flow = None
        elif self._request.embedded_at < 0:
            self._note(self._request)
        self._request.embedded_at = -1

    def begin(self, ready_s: float) -> None:
        """Encode from `ready_s` on."""
        assert self._source.encoder is not None
        self._source.encoder.enqueue(self._request, ready_s, self._encoded)

    def send(self) -> None:
        """Begin to copy the embeddings."""
        network = self._network()
        self._flow = network.transfer(gpu(self._source), gpu(self._target), self._size_bytes, self._arrived)

    def cancel(self, then: Callable[[Request], None]) -> None:
        """Give up; `then` is called with the request: now, or at the end of the pass that it is part of."""
        if self._lost:
            then(self._request)
            return
        if self._flow is not None:
            self._network().cancel(self._flow)
            self._flow = None
            then(self._request)
            return
        assert self._source.encoder is not None
        self._source.encoder.withdraw(self._request, lambda request: self._taken_back(request, then))

    def _taken_back(self, request: Request, then: Callable[[Request], None]) -> None:
        self._note(request)
        then(request)

    def _encoded(self, request: Request) -> None:
        self._note(request)
        request.embedded_at = self._source.index
        if self._source is self._target:
            self._then(request)
        else:
            self.send()

    def _arrived(self) -> None:
        self._flow = None
        self._request.embedded_at = self._target.index
        self._then(self._request)
