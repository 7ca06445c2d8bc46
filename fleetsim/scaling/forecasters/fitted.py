"""What models of statsmodels have in common: a memory, a fit now and then, and courses simulated from its end."""

from __future__ import annotations

import warnings
from collections import deque
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Annotated, Any

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import DataError, Finding
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.forecasters.api import Floats, Series

Count = Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]


class FittedConfig(PolicyConfig):
    """Parameters that all have."""

    history: Annotated[int, Field(ge=8, strict=True, json_schema_extra={"unit": "count"})] = 400
    """Last values to which the model is fitted."""
    refit: Count = 1
    """Values after which it is fitted anew; until then the old parameters are applied to the new values."""


class Fitted:
    """A model of statsmodels, fitted to the last values; until there are enough of them, the last value goes on."""

    def __init__(self, config: FittedConfig, rng: Generator, series: Series, module: str, enough: int) -> None:
        if find_spec("statsmodels") is None:
            hint = "pip install 'fleetsim[forecast]'"
            raise DataError(Finding(f"forecaster {type(self).__name__} needs the package statsmodels", hint=hint))
        self._library = import_module(module)
        self._rng, self._refit, self._enough = rng, config.refit, enough
        self._values: deque[float] = deque(maxlen=config.history)
        self._result: Any = None
        self._parameters: Any = None
        self._age = 0

    def fit(self, values: Floats, parameters: Any) -> tuple[Any, Any]:
        """Result of the model for these values and its parameters; those given, if any are."""
        raise NotImplementedError

    def observe(self, now_s: float, value: float) -> None:
        """Note a value."""
        self._values.append(value)
        self._result = None
        self._age += 1
        if self._age >= self._refit:
            self._parameters, self._age = None, 0

    def _fitted(self) -> Any:
        """The model's result for the values so far; None while there are too few, or all are the same."""
        values = np.array(self._values)
        if len(values) < self._enough or np.ptp(values) == 0.0:
            return None
        if self._result is None:
            with warnings.catch_warnings():  # it warns of each fit that stops early, and goes on with what it has
                warnings.simplefilter("ignore")
                self._result, self._parameters = self.fit(values, self._parameters)
        return self._result

    def mean(self, steps: int) -> Floats:
        """As the model expects."""
        result = self._fitted()
        if result is None:
            return np.full(steps, self._values[-1] if self._values else 0.0)
        return np.asarray(result.forecast(steps), dtype=float)

    def samples(self, steps: int, count: int) -> Floats:
        """Courses as the model simulates them."""
        result = self._fitted()
        if result is None:
            return np.tile(self.mean(steps), (count, 1))
        named = "rng" if "rng" in signature(result.simulate).parameters else "random_state"  # by version of statsmodels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            courses = result.simulate(steps, anchor="end", repetitions=count, **{named: self._rng})
        return np.asarray(courses, dtype=float).reshape(steps, count).T
