"""Keys and values on their way from the replica that computed a prompt to the one that computes the answer."""

from __future__ import annotations

from collections.abc import Callable

from fleetsim.engine.batch import Parked
from fleetsim.engine.replica import Replica
from fleetsim.network.flows import Flow, Network
from fleetsim.workload.request import Request


class Handover:
    """Copies one request's blocks when the target has room for them; until then they occupy the source.

    Parameters
    ----------
    network : Network
        What they travel over.
    source, rank, parked
        Replica that computed the prompt, its rank, and the blocks there.
    target : Replica
        Replica that will decode.
    token_bytes : float
        Keys and values of a token [bytes].
    hidden_bytes : float
        What was sent while the prompt was still being computed, layer by layer [bytes].
    """

    __slots__ = (
        "_flow",
        "_hidden_bytes",
        "_network",
        "_parked",
        "_rank",
        "_target",
        "_token_bytes",
        "bytes",
        "source",
    )

    def __init__(
        self,
        network: Network,
        source: Replica,
        rank: int,
        parked: Parked,
        target: Replica,
        token_bytes: float,
        hidden_bytes: float = 0.0,
    ) -> None:
        self._network = network
        self.source = source
        self._rank = rank
        self._parked: Parked | None = parked
        self._target = target
        self._token_bytes = token_bytes
        self._hidden_bytes = hidden_bytes
        self._flow: Flow | None = None
        self.bytes = 0.0
        """Sent so far, what was given up included [bytes]."""

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to copy; nothing to copy frees the source at once."""
        if not tokens:
            self.release()
            return
        size_bytes = max(tokens * self._token_bytes - self._hidden_bytes, 0.0)
        self.bytes += size_bytes
        done: Callable[[], None] = lambda: self._arrived(request)  # noqa: E731
        self._flow = self._network.transfer(gpu(self.source), gpu(self._target), size_bytes, done)

    def drop(self, request: Request) -> None:
        """Stop copying; the source keeps the blocks for another try."""
        if self._flow is not None:
            self._network.cancel(self._flow)
            self._flow = None

    def release(self) -> None:
        """Give the blocks of the source back."""
        if self._flow is not None:
            self._network.cancel(self._flow)
            self._flow = None
        if self._parked is not None:
            self.source.unpark(self._rank, self._parked)
            self._parked = None

    def _arrived(self, request: Request) -> None:
        self._flow = None
        self.release()
        request.carrier = None
        self._target.loaded(request)


class Fetch:
    """Copies the beginning of a prompt from a replica's cache to the one that computes the rest, when that has room for it.

    The blocks of the source are not kept for it: what is in its cache when the request is sent can be copied, even if it is evicted
    before the copy begins. A real system would keep them, or find them gone now and then.

    Parameters
    ----------
    network : Network
        What they travel over.
    source, target : Replica
        Whose cache holds them, and who computes the rest.
    token_bytes : float
        Keys and values of a token [bytes].
    """

    __slots__ = ("_flow", "_network", "_target", "_token_bytes", "source")

    def __init__(self, network: Network, source: Replica, target: Replica, token_bytes: float) -> None:
        self._network = network
        self.source = source
        self._target = target
        self._token_bytes = token_bytes
        self._flow: Flow | None = None

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to copy; nothing to copy is done at once."""
        if not tokens:
            request.carrier = None
            return
        done: Callable[[], None] = lambda: self._arrived(request)  # noqa: E731
        self._flow = self._network.transfer(gpu(self.source), gpu(self._target), tokens * self._token_bytes, done)

    def drop(self, request: Request) -> None:
        """Stop copying, for another try."""
        self.release()

    def release(self) -> None:
        """Stop copying."""
        if self._flow is not None:
            self._network.cancel(self._flow)
            self._flow = None

    def _arrived(self, request: Request) -> None:
        self._flow = None
        request.carrier = None
        self._target.loaded(request)


def gpu(replica: Replica) -> str:
    """Name of a replica's memory in the network."""
    return f"gpu:{replica.index}"
