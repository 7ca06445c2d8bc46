"""A policy under test, and what a checker says about it in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from fleetsim.errors import LawError, PolicyError
from fleetsim.plugins import GROUPS, allowing_imports, load

Config = BaseModel | Mapping[str, Any] | None
"""A policy's parameters: its own config, the mapping that a scenario would hold, or None for its defaults."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a checker found out about a policy that passed."""

    policy: str
    """Name of the class."""
    checks: Sequence[str]
    """What was checked."""
    decisions: int
    """How often it was asked."""
    us_per_decision: Mapping[str, float]
    """Time per decision [µs], by circumstance."""

    def __str__(self) -> str:
        costs = ", ".join(f"{cost:.2f} µs ({when})" for when, cost in self.us_per_decision.items())
        return f"{self.policy}: {len(self.checks)} checks passed; time per decision {costs}"


class Subject:
    """What is under test, with complaints that name it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.decisions = 0
        self._checks: list[str] = []

    def passed(self, check: str) -> None:
        """Note a check that was passed."""
        self._checks.append(check)

    def fail(self, message: str) -> NoReturn:
        """Reject the policy."""
        raise PolicyError(f"{self.name}: {message}")

    @contextmanager
    def complaining(self, what: str) -> Iterator[None]:
        """Turn whatever goes wrong inside into a complaint about the policy."""
        try:
            yield
        except (PolicyError, LawError) as error:
            text = str(error)
            raise PolicyError(text if text.startswith(f"{self.name}: ") else f"{self.name}: {text}") from error
        except Exception as error:
            raise PolicyError(f"{self.name}: {what}: {type(error).__name__}: {error}") from error

    def report(self, us_per_decision: Mapping[str, float]) -> Report:
        """The result."""
        return Report(self.name, tuple(self._checks), self.decisions, dict(us_per_decision))


class Policy(Subject):
    """A policy class under test, built anew for each trial.

    Parameters
    ----------
    kind : str
        Plug-in kind, as in `fleetsim.plugins.GROUPS`.
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel, mapping or None
        Its parameters.
    methods : sequence of str
        What it must be able to do.
    """

    def __init__(self, kind: str, policy: type | str, config: Config, methods: Sequence[str]) -> None:
        with allowing_imports(True):
            try:
                self._class: Any = load(kind, policy) if isinstance(policy, str) else policy
            except LookupError as error:
                raise PolicyError(f"{policy}: {error.args[0]}") from error
        super().__init__(self._class.__name__)
        for method in methods:
            if not callable(getattr(self._class, method, None)):
                self.fail(f"has no method `{method}`; it decides: {GROUPS[kind]}")
        self._config = self._configured(config)
        self.passed("its parameters are a frozen config model")

    def _configured(self, config: Config) -> BaseModel:
        model: Any = getattr(self._class, "Config", None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            self.fail("has no `Config` model with its parameters (a subclass of fleetsim.plugins.PolicyConfig)")
        if not model.model_config.get("frozen"):
            self.fail("`Config` can be changed after validation: derive it from fleetsim.plugins.PolicyConfig")
        if isinstance(config, model):
            return config
        try:
            return model.model_validate(dict(config or {}))
        except (ValidationError, TypeError) as error:
            self.fail(f"`Config` does not take {config or 'its defaults'}: {error}")

    @property
    def policy(self) -> Any:
        """The class."""
        return self._class

    def create(self, *args: Any) -> Any:
        """A new policy object."""
        with self.complaining("cannot be built"):
            return self._class(self._config, *args)
