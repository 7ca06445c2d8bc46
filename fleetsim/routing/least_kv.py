"""The replica whose KV cache is least used."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView


class LeastKvConfig(PolicyConfig):
    """Parameters of least KV use."""

    expected_output_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 256
    """Output that the gateway allows for in each running request, besides its prompt."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastKv:
    """The replica with the smallest part of its KV cache in use, as the gateway estimates it from what it sent there.

    Every request sent and not ended counts with its prompt and `expected_output_tokens`, divided by what the replica's cache holds;
    prefixes that requests share count once for each. On pools of different memory a larger cache therefore gets more requests.
    Ties go to the replica whose use has not changed for longest.

    References
    ----------
    The policy "least KV cache" of the AIBrix gateway (arXiv:2504.03648), there with the engines' own figures.
    """

    Config: ClassVar = LeastKvConfig

    def __init__(self, config: LeastKvConfig, rng: Generator, fleet: FleetView) -> None:
        self._index = fleet.index_kv(config.expected_output_tokens)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._index.smallest()
