"""Answers drawn from item response theory: abilities of models, difficulties of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from fleetsim.errors import Finding, ScenarioError
from fleetsim.quality.api import MAX_TOKENS, Seen, Truth, arms_of
from fleetsim.quality.draws import Blocks, Draws, key_of, uniform
from fleetsim.quality.profile import Profile, load_quality
from fleetsim.quality.shortening import mean_ratio, ratio
from fleetsim.scenario.quality import Domain, Quality

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_TRIAL = 4096
"""Requests on which an error is adjusted to an AUC."""
_LOGIT = np.pi / 8.0
"""A normal error of variance v flattens a logistic curve as a factor 1 / sqrt(1 + v pi / 8) on its slope does."""
_FIXED = 5
"""Columns of draws that do not belong to an arm."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The truth about a block of requests: one row each."""

    domain: Any
    difficulty: Any
    chance: Any
    success: Any
    longer: Any
    """Factor on the workload's length that the difficulty gives."""
    thinking: Any
    """Reasoning tokens of each arm."""
    ratio: Any
    """Length of each arm's answer over that of its model without training for shorter ones."""
    seen_domain: Any
    seen_difficulty: Any
    seen_chance: Any


class IrtWorld:
    """The two-parameter model: ``P = c + (1 - c) sigmoid(a (theta + skill - b))``.

    A request has a domain, a difficulty b, normal with the domain's mean and spread, and a discrimination a, lognormal; an arm has
    the ability of its model, more by ``gain ln(1 + u / unit)`` with a budget of u reasoning tokens, and its model's skill in the
    domain. Whether an arm answers well is drawn once. Its answer is as long as the workload's output times the model's verbosity
    and ``exp(slope b)``, and a harder request uses more of the budget: 0.25 to 1 of it (assumption). Training for shorter answers
    (`shortening`) is a factor on the whole.

    What a router sees is the difficulty with a normal error, and the chances that follow from it: the mean over what the
    difficulty may be, given what was seen. A predictor without information therefore says each domain's mean.
    """

    def __init__(self, config: Quality, seed: int) -> None:
        self.arms = arms_of(config)
        self._config = config
        self._seed = seed
        profile = None if config.profile is None else load_quality(config.profile)
        domains = config.domains or (profile.domains if profile is not None else {"all": Domain()})
        self.domains = tuple(domains)
        values = list(domains.values())
        self._number = {name: number for number, name in enumerate(self.domains)}
        self._mean, self._spread, self._guess = (
            np.array([getattr(domain, name) for domain in values]) for name in ("difficulty", "spread", "guess")
        )
        shares = np.array([domain.share for domain in values])
        self._shares = np.cumsum(shares) / shares.sum()
        sharpness = config.discrimination_sd if profile is None else profile.discrimination_sd
        self._sharpness = sharpness
        self._ability = np.array([self._ability_of(arm.number, profile) for arm in self.arms])
        """By arm and domain."""
        budgets = np.array([arm.budget for arm in self.arms], dtype=np.float64)
        self._budgets = budgets
        self._verbosity = [config.models[arm.llm].verbosity for arm in self.arms]
        self._shortening = [config.models[arm.llm].shortening for arm in self.arms]
        shorter = np.array([mean_ratio(shortening) for shortening in self._shortening])
        self.longer = np.array([self._verbosity, budgets * 0.625]) * shorter
        self.energy_per_token = None
        self.profile = self._profile()
        names = ["domain", "difficulty", "discrimination", "seen difficulty", "seen domain"]
        self._draws = Draws(seed, [f"quality.{name}" for name in names + [f"success.{arm.name}" for arm in self.arms]])
        self._blocks = Blocks(self._make)
        self._samples = [key_of(seed, f"quality.samples.{arm.name}") for arm in self.arms]
        features = config.features
        self._error = features.difficulty_sd
        if features.auc is not None:
            self._error = self._error_for(features.auc)

    def _ability_of(self, number: int, profile: Profile | None) -> list[float]:
        arm = self.arms[number]
        own = self._config.models[arm.llm]
        ability, skills = own.ability, dict(own.skills)
        if profile is not None and (ability is None or arm.known_as in profile.models):
            known = profile.model(arm.known_as, f"quality.models.{arm.llm}")
            ability = known.ability if ability is None else ability
            skills = {**known.skills, **skills}
        assert ability is not None, "the schema requires it"
        unknown = set(skills) - set(self.domains)
        if unknown and own.skills.keys() & unknown:
            name = min(unknown)
            raise ScenarioError(
                Finding(f'no domain is called "{name}"', path=f"quality.models.{arm.llm}.skills.{name}")
            )
        more = self._config.reasoning_gain * np.log1p(arm.budget / self._config.reasoning_unit)
        return [ability + more + skills.get(domain, 0.0) for domain in self.domains]

    def _profile(self) -> Any:
        """Mean quality of each arm in each domain, over difficulties and discriminations."""
        b = self._mean[:, None] + self._spread[:, None] * _NODES[None, :]
        a = np.exp(self._sharpness * _NODES)
        z = a[None, None, None, :] * (self._ability[:, :, None, None] - b[None, :, :, None])
        mean = (expit(z) * _WEIGHTS[None, None, :, None] * _WEIGHTS).sum(axis=(2, 3))
        return self._guess + (1.0 - self._guess) * mean

    # --- blocks of requests --------------------------------------------------------------------------------------------

    def _make(self, first: int, count: int, labels: Any = None) -> _Rows:
        u = self._draws.block(first, count)
        if labels is None:
            domain = np.minimum(np.searchsorted(self._shares, u[:, 0], side="right"), len(self.domains) - 1)
        else:
            domain = np.full(count, labels)
        b = self._mean[domain] + self._spread[domain] * ndtri(u[:, 1])
        a = np.exp(self._sharpness * ndtri(u[:, 2]))
        chance = self._chance(a[:, None] * (self._ability[:, domain].T - b[:, None]), domain)
        success = (u[:, _FIXED:] < chance).astype(np.float64)
        used = 0.25 + 0.75 * expit(b)
        error = getattr(self, "_error", 0.0)
        seen_domain = self._seen_domain(u[:, 4], domain)
        seen_b = b + error * ndtri(u[:, 3])
        return _Rows(
            domain,
            b,
            chance,
            success,
            np.exp(self._config.length_slope * b),
            used[:, None] * self._budgets[None, :],
            np.array([ratio(shortening, u[:, 1]) for shortening in self._shortening]).T,
            seen_domain,
            seen_b,
            self._expected(seen_domain, seen_b, error),
        )

    def _chance(self, z: Any, domain: Any) -> Any:
        guess = self._guess[domain][:, None]
        return guess + (1.0 - guess) * expit(z)

    def _seen_domain(self, u: Any, domain: Any) -> Any:
        """The right one, or another one, each as likely."""
        others = len(self.domains) - 1
        wrong = 1.0 - self._config.features.domain_accuracy
        if others == 0 or wrong == 0.0:
            return domain
        step = 1 + np.minimum((u / wrong * others).astype(np.int64), others - 1)
        return np.where(u < wrong, (domain + step) % (others + 1), domain)

    def _expected(self, domain: Any, seen: Any, error: float) -> Any:
        """Chance of each arm, given the difficulty that was seen with an error of a standard deviation."""
        mean, variance = self._mean[domain], self._spread[domain] ** 2
        believed = np.where(variance > 0.0, variance / np.maximum(variance + error**2, 1e-300), 0.0)
        b = mean + believed * (seen - mean)
        flat = np.sqrt(1.0 + _LOGIT * variance * (1.0 - believed))
        return self._chance((self._ability[:, domain].T - b[:, None]) / flat[:, None], domain)

    def _error_for(self, auc: float) -> float:
        """The error of the difficulty that gives predictions an area under the curve, by bisection on a trial."""
        trial = 1 << 42  # requests that no workload has
        u = self._draws.block(trial, _TRIAL)
        rows = self._make(trial, _TRIAL)
        noise = ndtri(u[:, 3])

        def mean_auc(error: float) -> float:
            seen = self._expected(rows.seen_domain, rows.difficulty + error * noise, error)
            areas = [area_under_curve(seen[:, arm], rows.success[:, arm]) for arm in range(len(self.arms))]
            return float(np.nanmean(areas))

        low, high = 1e-3, 1e3
        best, worst = mean_auc(low), mean_auc(high)
        if not worst <= auc <= best:
            raise ScenarioError(
                Finding(
                    f"no error of the difficulty gives an AUC of {auc:g}: between {worst:.3f} (only domains are seen) and "
                    f"{best:.3f} (all is seen but luck)",
                    path="quality.features.auc",
                )
            )
        while high / low > 1.001:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if mean_auc(middle) > auc else (low, middle)
        return low

    # --- one request ---------------------------------------------------------------------------------------------------

    def meet(self, number: int, domain: str | None, prompt_tokens: int, output_tokens: int) -> Truth:
        """The truth about a request."""
        label = None if domain is None else self._number.get(domain)
        if label is None:
            rows, row = self._blocks.of(number)
        else:
            rows, row = self._make(number, 1, label), 0
        longer = float(rows.longer[row]) * output_tokens
        thinking, ratios = rows.thinking[row], rows.ratio[row]
        lengths = [
            min(max(round((longer * verbosity + float(thinking[arm])) * float(ratios[arm])), 1), MAX_TOKENS)
            for arm, verbosity in enumerate(self._verbosity)
        ]
        seen = Seen(int(rows.seen_domain[row]), float(rows.seen_difficulty[row]), rows.seen_chance[row])
        return Truth(
            number,
            int(rows.domain[row]),
            float(rows.difficulty[row]),
            rows.chance[row],
            rows.success[row],
            prompt_tokens,
            lengths,
            seen,
        )

    def quality_of(self, truth: Truth, arm: int, sample: int) -> float:
        """How good the so-many-th answer of an arm is: independent draws with the arm's chance."""
        if sample == 0:
            return float(truth.quality[arm])
        return float(uniform(self._samples[arm] + sample, truth.number) < truth.chance[arm])


def area_under_curve(score: Any, right: Any) -> float:
    """Chance that a right answer's score is above a wrong one's, ties half; NaN where all are alike."""
    order = np.argsort(score, kind="stable")
    _, first, counts = np.unique(score[order], return_index=True, return_counts=True)
    ranks = np.repeat(first + (counts + 1) / 2.0, counts)
    good = right[order] > 0.5
    n, m = int(good.sum()), int((~good).sum())
    if not n or not m:
        return float("nan")
    return float((ranks[good].sum() - n * (n + 1) / 2.0) / (n * m))
