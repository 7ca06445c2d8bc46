"""Fitted abilities of models and difficulties of domains: files of the catalogue."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import Field, ValidationError

from fleetsim.catalog.data import locate, read
from fleetsim.errors import DataError, Finding, nearest
from fleetsim.scenario.quality import Domain, _Block


class Fitted(_Block):
    """A model of a profile."""

    ability: float
    skills: dict[str, float] = Field(default_factory=dict)
    """By domain, what it is able to do more there than elsewhere."""


class Fit(_Block):
    """How well a profile tells answers that were not used for it."""

    method: str
    prompts: int
    """Prompts of the table."""
    held_out: int
    """Answers that were held out."""
    log_loss: float
    """Of the profile on these [nats]."""
    log_loss_domain_mean: float
    """Of each model's mean in the domain on the same [nats]."""
    auc: float
    """Of the profile's predictions on the same."""


class Profile(_Block):
    """One file of ``models/quality``."""

    title: str
    source: str
    """Key in ``models/SOURCES.yaml``."""
    note: str = ""
    fit: Fit
    discrimination_sd: float = 0.3
    domains: dict[str, Domain]
    models: dict[str, Fitted]

    def model(self, name: str, path: str) -> Fitted:
        """A model of the profile.

        Raises
        ------
        DataError
            If there is none of that name; `path` is where a scenario names it.
        """
        if name not in self.models:
            hint = f"{nearest(name, self.models, 'models')}; set {path}.known_as"
            raise DataError(Finding(f'the profile knows no model "{name}"', path=path, hint=hint))
        return self.models[name]


@cache
def load_quality(name: str) -> Profile:
    """A profile of the catalogue.

    Raises
    ------
    DataError
        If there is none of that name, or its file is not valid.
    """
    path, content = locate("quality", name), read("quality", name)
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise DataError([_finding(str(path), found) for found in error.errors()]) from error


def _finding(file: str, error: Any) -> Finding:
    return Finding(error["msg"], path=".".join(map(str, error["loc"])), file=file)
