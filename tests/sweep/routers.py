"""Routers that go wrong, by import path."""

from __future__ import annotations

import os
import signal
from typing import Any

from fleetsim.routing.basic import RoundRobin


class Stumbles(RoundRobin):
    """Fails at its tenth request."""

    def route(self, request: Any) -> int:
        if request.id >= 10:
            raise ValueError("lost my way")
        return super().route(request)


class Dies(RoundRobin):
    """Takes its process with it."""

    def route(self, request: Any) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().route(request)
