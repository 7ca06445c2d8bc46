"""Answers replayed from a table: what real models made of real prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from scipy.special import expit, logit, ndtri

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.quality.api import MAX_TOKENS, Seen, Truth, arms_of
from fleetsim.quality.draws import Draws
from fleetsim.scenario.quality import Outcomes, Quality

_NEEDED = ("prompt_id", "model", "quality")
_NUMBERS = ("quality", "prompt_tokens", "output_tokens", "cost_usd", "energy_j")
_DATA = "data:"
_LEAST = 0.01
"""Chances are kept so far from 0 and 1 where they are turned into odds."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of outcomes: prompts in rows, models in columns; NaN where it does not say."""

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    category: tuple[str, ...]
    """Of each prompt."""
    values: dict[str, Any]
    """By column: quality, prompt_tokens, output_tokens, cost_usd, energy_j."""


def outcome_file(base_dir: Path, name: str) -> Path:
    """The file of a table: relative to the scenario, or with `data:` before it in the folder that FLEETSIM_DATA names."""
    if name.startswith(_DATA):
        return Path(os.environ.get("FLEETSIM_DATA", base_dir)) / name.removeprefix(_DATA)
    return base_dir / name


def read_outcomes(path: Path, models: tuple[str, ...], source: str | None = None) -> Table:
    """The part of a table that is about some models: prompts with an answer of each of them, in the order of the table.

    Parameters
    ----------
    path : Path
        Parquet or CSV file.
    models : tuple of str
        As the table calls them; empty for all that it has.
    source : str, optional
        Only rows with this in the column `source`.

    Raises
    ------
    DataError
        If it cannot be read, a column or a model is missing, a quality is not between 0 and 1, or nothing is left.
    """
    table = _read(path, source)
    names = table["model"].to_pylist()
    known = dict.fromkeys(names)
    for name in models:
        if name not in known:
            raise DataError(
                Finding(f'has no answers of "{name}"', file=str(path), hint=nearest(name, map(str, known), "models"))
            )
    models = models or tuple(sorted(map(str, known)))
    column = {name: number for number, name in enumerate(models)}
    ids = list(map(str, table["prompt_id"].to_pylist()))
    row = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    places = np.array([row[name] for name in ids])
    numbers = np.array([column.get(name, -1) for name in names])
    wanted = numbers >= 0
    values = {}
    for name in _NUMBERS:
        cells = np.full((len(row), len(models)), np.nan)
        if name in table.column_names:
            cells[places[wanted], numbers[wanted]] = _floats(table[name])[wanted]
        values[name] = cells
    quality = values["quality"]
    if np.nanmin(quality, initial=0.0) < -0.1 or np.nanmax(quality, initial=0.0) > 1.1:
        raise DataError(Finding("qualities must lie between 0 and 1", path="quality", file=str(path)))
    values["quality"] = np.clip(quality, 0.0, 1.0)
    whole = ~np.isnan(quality).any(axis=1)
    if not whole.any():
        raise DataError(Finding(f"no prompt has an answer of each of {', '.join(models)}", file=str(path)))
    category = [""] * len(row)
    if "category" in table.column_names:
        for name, text in zip(ids, table["category"].to_pylist(), strict=True):
            category[row[name]] = text or ""
    kept = np.flatnonzero(whole).tolist()
    prompts = list(row)
    return Table(
        tuple(prompts[i] for i in kept),
        models,
        tuple(category[i] for i in kept),
        {name: cells[kept] for name, cells in values.items()},
    )


def _read(path: Path, source: str | None) -> Any:
    try:
        table = csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(Finding(f"cannot be read: {str(error).splitlines()[0]}", file=str(path))) from None
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise DataError(Finding(f"has no column {missing[0]}", file=str(path), hint=f"needed are {', '.join(_NEEDED)}"))
    if source is None:
        return table
    if "source" not in table.column_names:
        raise DataError(Finding("has no column source", file=str(path)))
    names = table["source"].to_pylist()
    if source not in names:
        raise DataError(Finding(f'has no source "{source}"', file=str(path), hint=nearest(source, set(names))))
    return table.filter(pa.array([name == source for name in names]))


def _floats(column: Any) -> Any:
    return np.array(column.cast(pa.float64()).to_pylist(), dtype=np.float64)


class OutcomeWorld:
    """A table of outcomes as the world: request i is about a prompt of the table, and each arm answers it as it did.

    A router sees the category, rightly or not, and the chance of each arm: the category's mean, moved by a score of the outcome,
    ``k (2 quality - 1) + N(0, 1)``, whose k gives the area under the curve that the scenario says; without one, 1 /
    `difficulty_sd`. The difficulty that it sees is the mean of minus the log-odds of these chances. All samples of an arm are the
    same answer: the table has no others.
    """

    def __init__(self, config: Quality, seed: int, base_dir: Path) -> None:
        assert config.outcomes is not None
        outcomes: Outcomes = config.outcomes
        self.arms = arms_of(config)
        for arm in self.arms:
            if arm.budget:
                raise DataError(Finding("a table of outcomes has no budgets", path=f"quality.models.{arm.llm}.budgets"))
        self._table = table = read_outcomes(
            outcome_file(base_dir, outcomes.path), tuple(arm.known_as for arm in self.arms), outcomes.source
        )
        self.domains = tuple(dict.fromkeys(table.category))
        number = {name: i for i, name in enumerate(self.domains)}
        self._domain = np.array([number[name] for name in table.category])
        self._quality = table.values["quality"]
        self._count = min(outcomes.prompts or len(table.prompts), len(table.prompts))
        self._order = np.arange(self._count)
        if outcomes.shuffle:
            self._order = np.argsort(Draws(seed, ["quality.order"]).block(0, self._count)[:, 0], kind="stable")
        self._lengths = outcomes.lengths
        self.profile = np.array(
            [self._quality[self._domain == domain].mean(axis=0) for domain in range(len(self.domains))]
        ).T
        verbosity = np.array([config.models[arm.llm].verbosity for arm in self.arms])
        self.longer = np.array([verbosity, np.zeros(len(self.arms))])
        self.energy_per_token = self._energy_per_token()
        self._draws = Draws(seed, ["quality.seen domain", *(f"quality.seen.{arm.name}" for arm in self.arms)])
        features = config.features
        self._wrong = 1.0 - features.domain_accuracy
        if features.auc is not None:
            self._k = float(ndtri(features.auc)) / np.sqrt(2.0)
        else:
            self._k = 1.0 / features.difficulty_sd if features.difficulty_sd > 0.0 else 1e6

    @property
    def prompts(self) -> int:
        """Prompts that are used."""
        return self._count

    def _energy_per_token(self) -> Any:
        values = self._table.values
        tokens = np.nansum(values["prompt_tokens"] + values["output_tokens"], axis=0)
        joules = np.nansum(values["energy_j"], axis=0)
        if not joules.all() or not tokens.all():
            return None
        return joules / tokens

    def meet(self, number: int, domain: str | None, prompt_tokens: int, output_tokens: int) -> Truth:  # noqa: ARG002
        """The truth about a request: the table decides what it is about."""
        place = int(self._order[number % self._count])
        values, quality = self._table.values, self._quality[place]
        lengths = [max(round(output_tokens * float(longer)), 1) for longer in self.longer[0]]
        usd = values["cost_usd"][place]
        if self._lengths:
            prompts = values["prompt_tokens"][place]
            if not np.isnan(prompts).all():
                prompt_tokens = min(max(int(np.nanmax(prompts)), 1), MAX_TOKENS)
            for arm, tokens in enumerate(values["output_tokens"][place].tolist()):
                if tokens == tokens:
                    lengths[arm] = min(max(round(tokens), 1), MAX_TOKENS)
        kind = int(self._domain[place])
        seen = self._seen(number, kind, quality)
        prices = None if np.isnan(usd).any() else usd.tolist()
        return Truth(number, kind, -float(quality.mean()), quality, quality, prompt_tokens, lengths, seen, prices)

    def _seen(self, number: int, domain: int, quality: Any) -> Seen:
        u = self._draws.block(number, 1)[0]
        others = len(self.domains) - 1
        if others and u[0] < self._wrong:
            domain = (domain + 1 + min(int(u[0] / self._wrong * others), others - 1)) % (others + 1)
        score = self._k * (2.0 * quality - 1.0) + ndtri(u[1:])
        prior = logit(np.clip(self.profile[:, domain], _LEAST, 1.0 - _LEAST))
        odds = prior + 2.0 * self._k * score
        return Seen(domain, -float(np.clip(odds, -20.0, 20.0).mean()), expit(odds))

    def quality_of(self, truth: Truth, arm: int, sample: int) -> float:  # noqa: ARG002
        """The answer of the table, whichever sample is asked for."""
        return float(truth.quality[arm])
