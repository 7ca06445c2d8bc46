"""ARIMA, fitted by statsmodels (extra `forecast`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.scaling.forecasters.api import Floats, Series
from fleetsim.scaling.forecasters.fitted import Fitted, FittedConfig

_Order = Annotated[int, Field(ge=0, le=24, strict=True, json_schema_extra={"unit": "count"})]


class ArimaConfig(FittedConfig):
    """Parameters of the forecaster."""

    p: _Order = 2
    """Values that the next one depends on."""
    d: Annotated[int, Field(ge=0, le=2, strict=True, json_schema_extra={"unit": "count"})] = 1
    """How often differences are taken."""
    q: _Order = 1
    """Errors that the next value depends on."""


class Arima(Fitted):
    """Autoregressive integrated moving average of order (p, d, q).

    Rule: fitted by maximum likelihood to the last `history` values every `refit` of them; until there are 4 (p + d + q + 1), the
    last value goes on. Samples are courses of the fitted model. Needs the extra `forecast`.
    """

    Config: ClassVar = ArimaConfig

    def __init__(self, config: ArimaConfig, rng: Generator, series: Series) -> None:
        order = (config.p, config.d, config.q)
        super().__init__(config, rng, series, "statsmodels.tsa.arima.model", 4 * (sum(order) + 1))
        self._order = order

    def fit(self, values: Floats, parameters: Any) -> tuple[Any, Any]:
        """Maximum likelihood, or the given parameters."""
        model = self._library.ARIMA(values, order=self._order)
        result = model.fit() if parameters is None else model.smooth(parameters)
        return result, result.params
