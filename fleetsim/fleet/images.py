"""Images of requests: where they are encoded, and how what becomes of them gets to where the prompt is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.encoding import Encoding
from fleetsim.fleet.sides import Group
from fleetsim.workload.request import LOCAL, Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway


class Images:
    """Has images encoded before their requests join a queue."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.encoding: dict[Request, Encoding] = {}
        """Requests whose images are encoded, or on their way, before they join a queue."""
        self.encode_tokens = [0] * len(gateway.replicas)
        """Image tokens that each replica was given to encode and has not encoded yet."""

    def encoder_for(self, group: Group, request: Request, replica: Replica, answer: int) -> Replica | None:
        """Where a request's images are encoded: where the router says, where its prompt is computed, or where least is to do.

        Raises
        ------
        PolicyError
            If the router names an encoder that is not there.
        """
        if answer != LOCAL:
            if type(answer) is not int or not 0 <= answer < len(group.encoders):
                raise PolicyError(
                    f"router answered encode={answer!r} for request {request.id}; "
                    f"there are {len(group.encoders)} replicas with an encoder"
                )
            if self._gateway.presence.present[group.encoders[answer].index]:
                return group.encoders[answer]
        if replica.encoder is not None:
            return replica
        encoders = [encoder for encoder in group.encoders if encoder.present]
        return min(encoders, key=lambda encoder: self.encode_tokens[encoder.index], default=None)

    def encode(self, request: Request, target: Replica, ready_s: float) -> None:
        """Have a request's images encoded, or what was made of them brought, before it joins its replica's queue."""
        gateway = self._gateway
        encoded = request.embedded_at >= 0
        source = gateway.replicas[request.embedded_at if encoded else request.encode_replica]
        size_bytes = request.image_tokens * gateway.pools[target.index].embedding_bytes_per_token
        encoding = self.encoding[request] = Encoding(
            gateway.network,
            request,
            source,
            target,
            size_bytes,
            partial(self._embedded, target),
            self._no_longer_encoded,
        )
        if encoded:
            encoding.send()
            return
        self.encode_tokens[source.index] += request.image_tokens
        encoding.begin(ready_s)

    def _embedded(self, target: Replica, request: Request) -> None:
        """What the encoder made of a request's images is where its prompt is computed."""
        del self.encoding[request]
        self._gateway.presence.deliver(target, request, self._gateway.clock.now_s)

    def _no_longer_encoded(self, request: Request) -> None:
        """Note that a request does not wait for an encoder any more."""
        self.encode_tokens[request.encode_replica] -= request.image_tokens

    def let_go(self, request: Request, then: Callable[[Request], None]) -> bool:
        """Take a request back that has not joined its queue yet; whether it was here."""
        encoding = self.encoding.get(request)
        if encoding is None:
            return False
        encoding.cancel(partial(self._give_up, then))
        return True

    def _give_up(self, then: Callable[[Request], None], request: Request) -> None:
        """A request was taken back before it joined a queue."""
        del self.encoding[request]
        self._gateway.drop_burdens(request)
        self._gateway.leave(request, queued=False)
        then(request)
