"""Writes ``models/quality``: abilities of models and difficulties of domains, from tables of their answers.

``python -m fleetsim.calibration.quality_fit [NAME...]`` from the root of the repository; FLEETSIM_DATA names the data folder.

Marginal maximum likelihood of the two-parameter model: a prompt's difficulty is normal with the mean and spread of its domain, its
discrimination lognormal; both are integrated out on a grid. What is fitted are abilities, skills in domains (drawn towards 0),
and each domain's mean and spread. The error that a file states is of a fifth of the answers, which that fit did not see: the chance
of each given the answers of the other models to the same prompt, beside the mean of its model in its domain. The constants are
then fitted to all answers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from fleetsim.errors import DataError, Finding
from fleetsim.quality.irt import area_under_curve

FOLDER = Path("models", "quality")
HEADER = "# Written by `python -m fleetsim.calibration.quality_fit`; log_loss [nats] and auc are of answers that were held out."
DISCRIMINATION_SD = 0.3
"""Standard deviation of the logarithm of discriminations: not fitted (RADAR's generative model as the card has it)."""
RIDGE = 0.01
"""Weight of the squares of skills, per answer of the domain and model: the card's L2."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_SHARP_NODES, _SHARP_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_HELD_OUT = 5
"""One in so many answers is held out."""
_EDGE = 1e-4

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Answers:
    """Answers of models (columns) to prompts (rows): quality 0 to 1; NaN where there is none."""

    quality: Floats
    models: tuple[str, ...]
    domain: np.ndarray[Any, np.dtype[np.int64]]
    """Of each prompt."""
    domains: tuple[str, ...]
    guess: tuple[float, ...]
    """Of each domain: chance of a right answer without any ability."""


@dataclass(frozen=True)
class Item:
    """What was fitted."""

    ability: Floats
    skill: Floats
    """By model and domain."""
    mean: Floats
    spread: Floats

    def chance(self, answers: Answers, domain: int) -> Floats:
        """Chance of each model to answer well, at each node of the grid."""
        a, z = _grid()
        level = (self.ability + self.skill[:, domain])[:, None]
        return _chance(a * (level - self.mean[domain] - self.spread[domain] * z), answers.guess[domain])


def _grid() -> tuple[Floats, Floats]:
    """Discriminations and standard difficulties of the nodes."""
    a = np.exp(DISCRIMINATION_SD * _SHARP_NODES)
    return np.repeat(a, len(_NODES)), np.tile(_NODES, len(a))


def _log_weights() -> Floats:
    weights = np.repeat(_SHARP_WEIGHTS, len(_NODES)) * np.tile(_WEIGHTS, len(_SHARP_NODES))
    return np.asarray(np.log(weights / weights.sum()))


def _chance(z: Floats, guess: float) -> Floats:
    return np.asarray(np.clip(guess + (1.0 - guess) * expit(z), _EDGE, 1.0 - _EDGE))


def fit(answers: Answers) -> Item:
    """Abilities, skills and domains of the highest marginal likelihood."""
    count, domains = len(answers.models), len(answers.domains)
    known = [~np.isnan(answers.quality[answers.domain == k]) for k in range(domains)]
    right = [np.nan_to_num(answers.quality[answers.domain == k]) for k in range(domains)]
    answered = np.array([mask.sum(axis=0) for mask in known], dtype=np.float64).T
    shares = np.array([mask.sum() for mask in known], dtype=np.float64)
    shares /= shares.sum()
    log_weights, (a, z) = _log_weights(), _grid()

    def unpack(x: Floats) -> Item:
        skill = x[count : count + count * domains].reshape(count, domains)
        mean = x[count * (1 + domains) : count * (1 + domains) + domains]
        spread = np.exp(x[-domains:])
        if domains == 1:
            skill, mean = np.zeros((count, 1)), np.zeros(1)
        return Item(x[:count], skill, mean - (shares * mean).sum(), spread)

    def loss(x: Floats) -> tuple[float, Floats]:
        item = unpack(x)
        total = RIDGE * float((answered * item.skill**2).sum())
        slope_ability = np.zeros(count)
        slope_skill = 2.0 * RIDGE * answered * item.skill
        slope_mean, slope_spread = np.zeros(domains), np.zeros(domains)
        for k in range(domains):
            p = item.chance(answers, k)
            joint = right[k] @ np.log(p) + (known[k] - right[k]) @ np.log1p(-p) + log_weights
            evidence = logsumexp(joint, axis=1)
            total -= float(evidence.sum())
            weight = np.exp(joint - evidence[:, None])
            seen, good = known[k].T.astype(np.float64) @ weight, right[k].T @ weight
            guess = answers.guess[k]
            logistic = (p - guess) / (1.0 - guess)
            d = (good - p * seen) * logistic / p * a
            slope_ability -= d.sum(axis=1)
            slope_skill[:, k] -= d.sum(axis=1)
            slope_mean[k] += float(d.sum())
            slope_spread[k] += float((d * z).sum()) * item.spread[k]
        slope_mean = slope_mean - shares * slope_mean.sum()
        return total, np.concatenate((slope_ability, slope_skill.ravel(), slope_mean, slope_spread))

    start = np.zeros(count * (1 + domains) + 2 * domains)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return unpack(found.x)


def predicted(item: Item, answers: Answers) -> Floats:
    """Chance of every answer, given the answers of the other models to its prompt that are known."""
    chances = np.full(answers.quality.shape, np.nan)
    log_weights = _log_weights()
    for k in range(len(answers.domains)):
        rows = answers.domain == k
        quality = answers.quality[rows]
        known, right = ~np.isnan(quality), np.nan_to_num(quality)
        p = item.chance(answers, k)
        joint = right @ np.log(p) + (known - right) @ np.log1p(-p) + log_weights
        weight = np.exp(joint - logsumexp(joint, axis=1)[:, None])
        chances[rows] = weight @ p.T
    return chances


def log_loss(chance: Floats, quality: Floats) -> float:
    """Mean cross-entropy [nats]."""
    p = np.clip(chance, _EDGE, 1.0 - _EDGE)
    return float(-(quality * np.log(p) + (1.0 - quality) * np.log1p(-p)).mean())


def held_out_error(answers: Answers) -> dict[str, float]:
    """Log-loss of the model and of the means of domains on answers that were held out, and the model's AUC."""
    rng = np.random.default_rng(20261128)
    cells = ~np.isnan(answers.quality)
    hidden = cells & (rng.random(answers.quality.shape) < 1.0 / _HELD_OUT)
    left = Answers(
        np.where(hidden, np.nan, answers.quality), answers.models, answers.domain, answers.domains, answers.guess
    )
    chance = predicted(fit(left), left)
    mean = np.full(answers.quality.shape, np.nan)
    for k in range(len(answers.domains)):
        rows = answers.domain == k
        mean[rows] = np.nanmean(left.quality[rows], axis=0)
    quality = answers.quality[hidden]
    return {
        "held_out": int(hidden.sum()),
        "log_loss": log_loss(chance[hidden], quality),
        "log_loss_domain_mean": log_loss(mean[hidden], quality),
        "auc": area_under_curve(chance[hidden], (quality > 0.5).astype(np.float64)),
    }


# --- tables -------------------------------------------------------------------------------------------------------------


_STEM = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
]
_HUMANITIES = [
    "formal_logic",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "moral_disputes",
    "moral_scenarios",
    "philosophy",
    "prehistory",
    "professional_law",
    "world_religions",
]
_SOCIAL = [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
]
"""Subjects of MMLU by the groups of its authors (arXiv:2009.03300); what is in none is `mmlu-other`."""


def mmlu_group(category: str) -> str:
    """Domain of a category of the RouteLLM table."""
    if not category.startswith("mmlu_"):
        return category or "all"
    subject = category.removeprefix("mmlu_")
    for name, subjects in (("stem", _STEM), ("humanities", _HUMANITIES), ("social-sciences", _SOCIAL)):
        if subject in subjects:
            return f"mmlu-{name}"
    return "mmlu-other"


def router_table(folder: Path, source: str) -> Answers:
    """One source of the table of router benchmarks."""
    table = pq.read_table(folder / "traces/open/router/router_quality.parquet").to_pydict()
    rows = [i for i, name in enumerate(table["source"]) if name == source]
    prompts = {name: i for i, name in enumerate(dict.fromkeys(table["prompt_id"][i] for i in rows))}
    models = tuple(sorted({table["model"][i] for i in rows}))
    quality = np.full((len(prompts), len(models)), np.nan)
    group = [""] * len(prompts)
    for i in rows:
        row = prompts[table["prompt_id"][i]]
        quality[row, models.index(table["model"][i])] = min(max(table["quality"][i], 0.0), 1.0)
        group[row] = mmlu_group(table["category"][i] or "")
    return _answers(quality, models, group)


def greenserv_table(folder: Path) -> Answers:
    """Right or wrong of GreenServ's answers, read from its rewards: ``0.5 right + 0.5 (1 - energy)`` is above 0.5 if right.

    Queries stand in blocks of 500 by data set; summaries (the last block) are not right or wrong and are left out.
    """
    table = pq.read_table(folder / "traces/open/router/greenserv_rewards.parquet").to_pydict()
    tasks = ("mmlu", "hellaswag", "winogrande", "gsm8k")
    models = tuple(sorted(set(table["chosen_model"])))
    ids = sorted({q for q in table["query_id"] if q <= 2000})
    row = {q: i for i, q in enumerate(ids)}
    quality = np.full((len(ids), len(models)), np.nan)
    for q, name, reward in zip(table["query_id"], table["chosen_model"], table["reward"], strict=True):
        if q in row:
            quality[row[q], models.index(name)] = float(reward > 0.5)
    return _answers(quality, models, [tasks[(q - 1) // 500] for q in ids])


def _answers(quality: Floats, models: tuple[str, ...], group: list[str]) -> Answers:
    domains = tuple(sorted(set(group)))
    number = {name: i for i, name in enumerate(domains)}
    return Answers(quality, models, np.array([number[name] for name in group]), domains, (0.0,) * len(domains))


TABLES: dict[str, tuple[str, str, str, Callable[[Path], Answers]]] = {
    "llmrouter": (
        "Nine models on the mixed reasoning tasks of LLMRouter",
        "llmrouter",
        "the table does not say which task a prompt is of; llama3-chatqa-1.5-70b scores far below 8B models as published",
        lambda folder: router_table(folder, "LLMRouter-dc"),
    ),
    "routellm": (
        "GPT-4 and Mixtral 8x7B on MMLU and GSM8K",
        "routellm",
        "two models tell little about the spread of difficulties",
        lambda folder: router_table(folder, "RouteLLM"),
    ),
    "greenserv": (
        "Sixteen open models of 0.5 to 34 billion parameters on MMLU, HellaSwag, Winogrande and GSM8K",
        "greenserv",
        "right or wrong is read from rewards; phi-4 and Yi lose MMLU to the extraction of one-token answers, as published",
        greenserv_table,
    ),
}
"""Title, source, note and table of each profile."""


def page(name: str, answers: Answers, item: Item, error: dict[str, float]) -> str:
    """The profile as a file."""
    title, source, note, _ = TABLES[name]
    prompts = len(answers.quality)
    lines = [HEADER, f"title: {title}", f"source: {source}", f'note: "{note}"', "fit:"]
    lines.append(
        f"  {{method: marginal maximum likelihood, prompts: {prompts}, held_out: {error['held_out']}, "
        f"log_loss: {error['log_loss']:.4f}, log_loss_domain_mean: {error['log_loss_domain_mean']:.4f}, auc: {error['auc']:.3f}}}"
    )
    lines += [f"discrimination_sd: {DISCRIMINATION_SD}", "domains:"]
    for k, domain in enumerate(answers.domains):
        share = float((answers.domain == k).sum()) / prompts
        lines.append(
            f"  {domain}: {{share: {share:.4f}, difficulty: {item.mean[k]:.3f}, spread: {item.spread[k]:.3f}, "
            f"guess: {answers.guess[k]:g}}}"
        )
    lines.append("models:")
    for m, model in enumerate(answers.models):
        skills = ", ".join(f"{domain}: {item.skill[m, k]:.3f}" for k, domain in enumerate(answers.domains))
        more = "" if len(answers.domains) == 1 else f", skills: {{{skills}}}"
        lines.append(f'  "{model}": {{ability: {item.ability[m]:.3f}{more}}}')
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    """Fit and write the profiles of these names, or all."""
    data = os.environ.get("FLEETSIM_DATA")
    if not data:
        raise DataError(Finding("FLEETSIM_DATA does not name the folder of the tables"))
    for name in names or list(TABLES):
        answers = TABLES[name][3](Path(data))
        error = held_out_error(answers)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.yaml").write_text(page(name, answers, fit(answers), error), encoding="utf-8")
        print(name, {key: round(value, 4) for key, value in error.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
