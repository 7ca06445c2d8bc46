"""Holt-Winters' exponential smoothing, fitted by statsmodels (extra `forecast`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.scaling.forecasters.api import Floats, Series
from fleetsim.scaling.forecasters.fitted import Fitted, FittedConfig


class HoltWintersConfig(FittedConfig):
    """Parameters of the forecaster."""

    trend: Literal["none", "additive", "damped"] = "damped"
    """Whether values are expected to go on rising or falling, less and less if damped."""
    season_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] | None = None
    """Season that is added, two of which must fit into `history`; default: none."""


class HoltWinters(Fitted):
    """Exponential smoothing of level, trend and season (Holt-Winters, additive).

    Rule: fitted by least squares to the last `history` values every `refit` of them; until there are 10, or two seasons and as
    many as that, the last value goes on. Samples are courses of the fitted model with its errors. Needs the extra `forecast`.
    """

    Config: ClassVar = HoltWintersConfig

    def __init__(self, config: HoltWintersConfig, rng: Generator, series: Series) -> None:
        length = 0 if config.season_s is None else round(config.season_s / series.period_s)
        super().__init__(config, rng, series, "statsmodels.tsa.holtwinters", max(10, 2 * length + 10))
        self._trend = None if config.trend == "none" else "add"
        self._damped = config.trend == "damped"
        self._length = length if length > 1 else None

    def fit(self, values: Floats, parameters: Any) -> tuple[Any, Any]:
        """Least squares, or the given smoothing parameters."""
        model = self._library.ExponentialSmoothing(
            values,
            trend=self._trend,
            damped_trend=self._damped,
            seasonal=None if self._length is None else "add",
            seasonal_periods=self._length,
            initialization_method="estimated",
        )
        if parameters is None:
            result = model.fit()
            names = ("smoothing_level", "smoothing_trend", "smoothing_seasonal", "damping_trend")
            known = {name: result.params.get(name) for name in names}
            return result, {name: value for name, value in known.items() if value is not None and value == value}
        with model.fix_params(parameters):
            return model.fit(), parameters
