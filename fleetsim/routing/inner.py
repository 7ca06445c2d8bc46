"""Routers inside routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import core_schema

from fleetsim.plugins import Choice, PolicyField, names
from fleetsim.routing.api import RequestView
from fleetsim.routing.basic import LeastOutstandingConfig


class InnerRouter(PolicyField):
    """Annotation of a router's field that holds another router's block."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Names only: the parameters of all routers, of which this is one, would have no end."""
        known = {"type": "string", "enum": names(self.kind)}
        return {"oneOf": [known, {"type": "object", "properties": {self.key: known}}]}


Inner = Annotated[Choice, InnerRouter("routers", default="least-outstanding")]
"""Type of a field that holds a router's name, or a block with `policy`."""


def least_outstanding() -> Choice:
    """The router that such a field holds where nobody says."""
    return Choice("routers", "least-outstanding", LeastOutstandingConfig())


def decision_s(router: object) -> float:
    """Time that a router's decision takes [s]."""
    seconds: float = getattr(router, "decision_s", 0.0)
    return seconds


def explained(router: object, request: RequestView) -> Mapping[int, Mapping[str, float]]:
    """What a router says of its candidates; nothing if it does not explain itself."""
    explain = getattr(router, "explain", None)
    return {} if explain is None else explain(request)
