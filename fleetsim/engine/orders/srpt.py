"""Shortest remaining processing time."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order, predicted
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class SrptConfig(PolicyConfig):
    """Lengths come from the gateway's predictor."""


class Srpt(Order):
    """Shortest remaining time first, preempting where that pays for computing the preempted request again.

    Rule: requests are sorted by predicted output tokens less those answered (at least 1). Where the first in the queue finds no
    seat or blocks, the running request with the most left gives way if what it has left exceeds what the waiting one needs by more
    than its recomputation takes: the prefill time of its prompt and answer, in decode steps. Charged: the recomputation, by the
    engine. The step's duration is taken without context, so that the rule rather errs to the side of not preempting.

    References
    ----------
    L. E. Schrage, "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline", Operations Research 16(3),
    1968, doi:10.1287/opre.16.3.687.
    """

    Config: ClassVar = SrptConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True
    needs_predictions: ClassVar[bool] = True

    def key(self, request: Request) -> Key:
        """Expected output that is still to come [tokens]."""
        return max(predicted(request) - self.answered(request), 1.0)

    def gives_way(self, running: Request, waiting: Request) -> bool:
        """Whether all finish sooner on average if `running` is computed again later."""
        again_s = self.outlook.prefill.seconds(running.prompt_tokens + self.answered(running))
        cost_tokens = again_s / self.outlook.decode_s(self.batch.decoding)
        return bool(self.key(running) > self.key(waiting) + cost_tokens)
