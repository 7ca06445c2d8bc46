"""Model routers without a fleet: the published experiments have neither queues nor loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import nnls
from scipy.special import ndtr, ndtri

from fleetsim.calibration.quality_fit import Answers, fit, predicted
from fleetsim.metrics.answers import curve_figures, upper_hull
from fleetsim.model_routing.acar import Acar, AcarConfig
from fleetsim.model_routing.adaptive_consistency import AdaptiveConsistency, AdaptiveConsistencyConfig
from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query
from fleetsim.model_routing.frugal_gpt import FrugalGpt, FrugalGptConfig
from fleetsim.model_routing.radar import scalarised
from fleetsim.plugins import load
from fleetsim.quality.answers import Signals
from fleetsim.quality.api import Arm, Truth, World
from fleetsim.quality.irt import IrtWorld
from fleetsim.quality.outcomes import OutcomeWorld
from fleetsim.reproduce.functions import check
from fleetsim.routing.api import FleetView
from fleetsim.scenario.quality import Quality

Floats = np.ndarray[Any, np.dtype[np.float64]]

_TASKS = ("mmlu", "hellaswag", "winogrande", "gsm8k", "cnn_dailymail")
_BLOCK = 500
"""Queries of each task, which stand one after the other."""
_RUNS = 5
"""Runs whose mean is published."""
_SUMMARIES = 4
"""The task whose answers are neither right nor wrong."""


# --- GreenServ ----------------------------------------------------------------------------------------------------------


@cache
def _observed(path: str) -> tuple[tuple[str, ...], Floats, Any]:
    """Models, rewards by query and model (NaN where there is none), and the task of each query."""
    table = pq.read_table(path).to_pydict()
    models = tuple(sorted(set(table["chosen_model"])))
    ids = sorted(set(table["query_id"]))
    row = {query: i for i, query in enumerate(ids)}
    rewards = np.full((len(ids), len(models)), np.nan)
    for query, name, reward in zip(table["query_id"], table["chosen_model"], table["reward"], strict=True):
        rewards[row[query], models.index(name)] = reward
    return models, rewards, np.array([(query - 1) // _BLOCK for query in ids])


@cache
def _right(path: str) -> Floats:
    """Chance of each model to be right about each query, given what was observed of it: by item response theory."""
    models, rewards, task = _observed(path)
    known = task != _SUMMARIES
    right = np.where(np.isnan(rewards), np.nan, (rewards > 0.5).astype(np.float64))
    answers = Answers(right[known], models, task[known], _TASKS[:_SUMMARIES], (0.0,) * _SUMMARIES)
    chance = np.full(rewards.shape, np.nan)
    chance[known] = predicted(fit(answers), answers)
    return chance


@cache
def _world_of(path: str, seed: int) -> tuple[tuple[str, ...], Floats, Any]:
    return _completed(path, np.random.default_rng([seed, 40]))


def _completed(path: str, rng: np.random.Generator) -> tuple[tuple[str, ...], Floats, Any]:
    """Rewards of all models for 2,500 queries, 500 a task, in a random order.

    What was not observed is drawn: right or wrong with the chance given the query's other answers, thrift from the same model's on
    the task with the same correctness; rewards of summaries from the same model's, moved by the query's mean deviation.
    """
    models, rewards, task = _observed(path)
    chance = _right(path)
    full = rewards.copy()
    for t in range(len(_TASKS)):
        rows = np.flatnonzero(task == t)
        part = rewards[rows]
        if t == _SUMMARIES:
            mean = np.nanmean(part, axis=0)
            effect = np.nan_to_num(np.nanmean(part - mean, axis=1))
            rest = part - mean - effect[:, None]
            spare = rest[~np.isnan(rest)]
            drawn = mean + effect[:, None] + rng.choice(spare, part.shape)
            full[rows] = np.where(np.isnan(part), np.clip(drawn, 0.0, 1.0), part)
            continue
        right = rng.random(part.shape) < chance[rows]
        for m in range(len(models)):
            own = part[:, m]
            for is_right in (False, True):
                seen = own[(own > 0.5) == is_right]
                seen = seen[~np.isnan(seen)]
                missing = np.isnan(own) & (right[:, m] == is_right)
                if len(seen) == 0:
                    other = own[~np.isnan(own)]
                    seen = other + (0.5 if is_right else -0.5)
                full[rows[missing], m] = rng.choice(seen, int(missing.sum()))
    chosen = []
    for t in range(len(_TASKS)):
        rows = np.flatnonzero(task == t)
        chosen += [*rows.tolist(), *rng.choice(rows, _BLOCK - len(rows)).tolist()]
    order = rng.permutation(np.array(chosen))
    return models, full[order], task[order]


def _models_view(models: Sequence[str], tasks: Sequence[str]) -> ModelsView:
    arms = [Arm(i, name, name, 0, 0.0, 0.0, 0.0, float("inf")) for i, name in enumerate(models)]
    return ModelsView(
        arms, tasks, np.full((len(arms), len(tasks)), 0.5), [1.0] * len(arms), lambda arm: FleetView([models[arm]])
    )


@check
def greenserv_regret(seed: int, rewards: str, policy: str, runs: int = _RUNS) -> float:
    """Regret of a policy over 2,500 queries: the sum of what the best model for each would have been rewarded more.

    Parameters
    ----------
    seed : int
        Of the first run: of the order of the queries, of what was not observed, and of the policy.
    rewards : str
        File of the published rewards.
    policy : str
        Name of a model router; or of a model, which then answers everything.
    runs : int
        Runs whose mean it is, each with the next seed.
    """
    return float(np.mean([_regret(seed + run, rewards, policy) for run in range(runs)]))


def _regret(seed: int, rewards: str, policy: str) -> float:
    models, table, task = _world_of(rewards, seed)
    if policy in models:
        chosen = np.full(len(table), models.index(policy))
    else:
        chosen = _routed(policy, models, table, task, np.random.default_rng([seed, 41]))
    return float((table.max(axis=1) - table[np.arange(len(table)), chosen]).sum())


@check
def greenserv_regret_ratio(seed: int, rewards: str, policy: str, over: str) -> float:
    """Regret of a policy over that of another one, on the same queries."""
    return greenserv_regret(seed, rewards, policy) / greenserv_regret(seed, rewards, over)


@check
def greenserv_wh(
    seed: int, rewards: str, sweep: str, bounds: str, policy: str, weight: float = 0.5, runs: int = _RUNS
) -> float:
    """Energy of the answers to the same 2,500 queries when a policy weighs thrift against accuracy [Wh].

    Parameters
    ----------
    seed, runs : int
        As of `greenserv_regret`.
    rewards, sweep, bounds : str
        Files of the published rewards, totals by weight, and bounds of joules per token and query.
    policy : str
        Name of a model router; or of a model, which then answers everything.
    weight : float
        Of thrift in the reward.
    """
    return float(np.mean([_wh(seed + run, (rewards, sweep, bounds), policy, weight) for run in range(runs)]))


def _wh(seed: int, files: tuple[str, str, str], policy: str, weight: float) -> float:
    rewards, sweep, bounds = files
    models, table, task = _world_of(rewards, seed)
    right, thrift, joules = _energies(rewards, sweep, bounds, seed)
    if policy in models:
        chosen = np.full(len(table), models.index(policy))
    else:
        chosen = _routed(policy, models, right, task, np.random.default_rng([seed, 41]), 1.0 - thrift, weight)
    return float(joules[np.arange(len(table)), chosen].sum() / 3600.0)


@check
def greenserv_wh_ratio(
    seed: int,
    rewards: str,
    sweep: str,
    bounds: str,
    policy: str,
    over: str,
    weight: float = 0.5,
    over_weight: float = 0.5,
) -> float:
    """Energy of a policy at a weight over that of another one, or of the same at another weight, on the same queries."""
    files = (rewards, sweep, bounds)
    return greenserv_wh(seed, *files, policy, weight) / greenserv_wh(seed, *files, over, over_weight)


_STATIC = {"smallest": "qwen2.5-0.5b", "accuracy": "gemma-3-27b", "largest": "yi-34b"}
"""Models that answer everything in the published totals, by what they are called there."""


@cache
def _totals(sweep: str) -> dict[str, tuple[float, float, float]]:
    """Mean accuracy, scaled joules per token and Wh over all runs of policies that do not depend on the weight."""
    table = pq.read_table(sweep).to_pydict()
    columns = ("accuracy_norm", "energy_per_token_norm", "total_energy_Wh")
    found = {}
    for name in (*_STATIC, "random"):
        rows = [i for i, algorithm in enumerate(table["algorithm"]) if algorithm == name]
        accuracy, energy, wh = [float(np.mean([table[column][i] for i in rows])) for column in columns]
        found[name] = (accuracy, energy, wh)
    return found


@cache
def _limits(bounds: str) -> tuple[Floats, Floats, Floats]:
    """By task: least and most joules per token, and most joules per query."""
    table = pq.read_table(bounds).to_pydict()
    rows = zip(table["task"], table["metric"], table["min"], table["max"], strict=True)
    known = {(task, metric): (low, high) for task, metric, low, high in rows}
    per_token = np.array([known[task, "energy_J_per_token"] for task in _TASKS])
    per_query = np.array([known[task, "energy_J_per_query"] for task in _TASKS])
    return per_token[:, 0], per_token[:, 1], per_query[:, 1]


def _energies(rewards: str, sweep: str, bounds: str, seed: int) -> tuple[Floats, Floats, Floats]:
    """By query and model: accuracy, thrift as the reward has it, and joules.

    A published reward is half accuracy and half thrift. Where answers are right or wrong that can be undone. Of summaries, a
    model's accuracy is what its published total leaves for them, where it has one; of the others it is what the random choice's
    total leaves for all of them. Joules are joules per token times the tokens of the task: of questions with a choice most joules
    per query over most per token, of the other two as many as bring the four published totals closest.
    """
    models, table, task = _world_of(rewards, seed)
    totals, (low, high, most) = _totals(sweep), _limits(bounds)
    static = {name: models.index(model) for name, model in _STATIC.items()}
    right = (table > 0.5).astype(np.float64)
    summaries = task == _SUMMARIES
    plain = right[~summaries].mean(axis=0) * _SUMMARIES
    accuracy = np.full(len(models), np.nan)
    for name, model in static.items():
        accuracy[model] = len(_TASKS) * totals[name][0] - plain[model]
    all_of_them = len(models) * (len(_TASKS) * totals["random"][0] - plain.mean())
    accuracy[np.isnan(accuracy)] = (all_of_them - np.nansum(accuracy)) / (len(models) - len(static))
    right[summaries] = accuracy
    energy = np.clip(right + 1.0 - 2.0 * table, 0.0, 1.0)
    per_token = low[task][:, None] + energy * (high - low)[task][:, None]
    mean = np.array([per_token[task == t].mean(axis=0) for t in range(len(_TASKS))])
    columns = np.array([*[mean[:, model] for model in static.values()], mean.mean(axis=1)])
    wanted = np.array([totals[name][2] for name in (*static, "random")]) * 3600.0 / _BLOCK
    tokens = most / high
    left = wanted - columns[:, :3] @ tokens[:3]
    tokens[3:] = nnls(columns[:, 3:] / left[:, None], np.ones(len(left)))[0]
    return right, 1.0 - energy, per_token * tokens[task][:, None]


def _routed(
    policy: str,
    models: Sequence[str],
    table: Floats,
    task: Any,
    rng: np.random.Generator,
    energy: Floats | None = None,
    weight: float = 0.5,
) -> Any:
    """The arm that a router chooses for each query, told the reward of every answer at once.

    Without energies the table holds rewards; with them, accuracies.
    """
    kind = load("model_routers", policy)
    bounds: Mapping[str, Any] = {}
    if "least" in kind.Config.model_fields:  # the table's rewards are scaled already
        bounds = {"least": dict.fromkeys(_TASKS, 0.0), "most": dict.fromkeys(_TASKS, 1.0), "weight": weight}
        if "complexity" in kind.Config.model_fields:
            bounds = {**bounds, "complexity": False}
    router = kind(kind.Config(**bounds), rng, _models_view(models, _TASKS))
    blank = np.full(len(models), 0.5)
    chosen = np.zeros(len(table), dtype=np.int64)
    for number, (row, about) in enumerate(zip(table, task.tolist(), strict=True)):
        query = Query(number, 0.0, 1, None, None, -1, 1.0, float("inf"), about, 0.0, blank, blank)
        arm = router.route(query).arm
        chosen[number] = arm
        if hasattr(router, "feedback"):
            reward = float(row[arm])  # quality r and energy 1 - r of one token make the reward r at any weight
            spent = 1.0 - reward if energy is None else float(energy[number, arm])
            router.feedback(Outcome(query, arm, reward, 0, 1.0, 1.0, spent, 0.0, 0.0, 1))
    return chosen


# --- curves of two models -------------------------------------------------------------------------------------------------


@check
def curve_of_outcomes(seed: int, table: str, source: str, weak: str, strong: str, auc: float, figure: str) -> float:
    """A figure (apgr, cpt_50_ratio, cpt_80_ratio) of the order in which a predictor puts the prompts of a table.

    Parameters
    ----------
    seed : int
        Of the predictor's errors.
    table, source : str
        File of outcomes, and which part of it.
    weak, strong : str
        Two models of it.
    auc : float
        Of the predictor for each model; 0.5 is a random order.
    figure : str
        Which.
    """
    features = {"auc": auc} if auc > 0.5 else {}
    config = Quality.model_validate(
        {
            "models": {"weak": {"known_as": weak}, "strong": {"known_as": strong}},
            "outcomes": {"path": table, "source": source, "shuffle": False},
            "features": features,
        }
    )
    world = OutcomeWorld(config, seed, Path())
    truths = [world.meet(i, None, 1, 1) for i in range(world.prompts)]
    quality = np.array([truth.quality for truth in truths])
    if auc > 0.5:
        gain = np.array([truth.seen.chance[1] - truth.seen.chance[0] for truth in truths])
    else:
        gain = np.random.default_rng(seed).random(len(truths))
    ones = np.ones(len(truths))
    value = curve_figures(gain, quality[:, 0], quality[:, 1], ones, 2.0 * ones)[figure]
    return float("nan") if value is None else value


# --- TwinRouterBench ------------------------------------------------------------------------------------------------------

_TIERS = ("low", "mid", "mid_high", "high")


def twin_scores(labels: Sequence[int], chosen: Sequence[int]) -> dict[str, float]:
    """Shares of rows that pass (the tier is high enough) and that are exact [%]."""
    needed, got = np.asarray(labels), np.asarray(chosen)
    return {"row_pass": 100.0 * float((got >= needed).mean()), "row_exact": 100.0 * float((got == needed).mean())}


@check
def twin_router_bench(seed: int, labels: dict[str, int], always: str, figure: str) -> float:
    """A score of TwinRouterBench of a router that always answers with one tier [%].

    Parameters
    ----------
    seed : int
        Of nothing: the scores are exact.
    labels : mapping
        Rows by the tier that they need.
    always : str
        The tier.
    figure : str
        row_pass, row_exact; of always the highest tier also trajectory_pass, cost_save and combined: all trajectories pass, and
        nothing is saved.
    """
    needed = np.repeat(np.arange(len(_TIERS)), [labels[tier] for tier in _TIERS])
    scores = twin_scores(needed.tolist(), [_TIERS.index(always)] * len(needed))
    if always == _TIERS[-1]:
        scores |= {"trajectory_pass": scores["row_pass"], "cost_save": 0.0}
        scores["combined"] = sum(scores.values()) / 4.0
    return scores[figure]


# --- samples and ensembles ------------------------------------------------------------------------------------------------


def _answered(
    world: World, signals: Signals, router: Any, number: int, most: int = 200
) -> tuple[Truth, list[Answer], Answer]:
    """What a router makes of a request whose answers are there at once: the truth, all answers, and the one that is given."""
    truth = world.meet(number, None, 100, 100)
    seen = truth.seen
    tokens = np.full(len(world.arms), 100.0)
    query = Query(
        number, 0.0, 100, None, None, -1, 1.0, float("inf"), seen.domain, seen.difficulty, seen.chance, tokens
    )
    answers: list[Answer] = []
    samples: dict[int, int] = {}
    labels: dict[int, int] = {}
    said: Any = router.route(query)
    for _ in range(most):
        if isinstance(said, Accept):
            return truth, answers, answers[said.answer]
        for ask in [said] if isinstance(said, Ask) else said:
            for _ in range(ask.samples):
                sample = samples.get(ask.arm, 0)
                samples[ask.arm] = sample + 1
                label = labels.setdefault(signals.identity(truth, ask.arm, sample), len(labels))
                usd = world.arms[ask.arm].list_usd(100, 100)
                answers.append(Answer(ask.arm, sample, label, 100, 1.0, usd, 1.0))
                if ask.judge:
                    answers[-1].score = signals.score(truth, ask.arm, sample)
        if not hasattr(router, "proceed"):
            return truth, answers, answers[-1]
        said = router.proceed(query, answers)
    raise RuntimeError(f"{type(router).__name__} never ends")


def _world(config: Mapping[str, Any], seed: int) -> tuple[IrtWorld, Signals, ModelsView]:
    quality = Quality.model_validate(dict(config))
    world = IrtWorld(quality, seed)
    models = ModelsView(
        world.arms, world.domains, world.profile, [1.0] * len(world.arms), lambda arm: FleetView([str(arm)])
    )
    return world, Signals(quality, seed, world), models


@check
def samples_until_sure(seed: int, ability: float, requests: int = 500) -> float:
    """Mean number of answers that Adaptive-Consistency takes of a model of this ability."""
    world, signals, models = _world({"models": {"model": {"ability": ability}}}, seed)
    router = AdaptiveConsistency(AdaptiveConsistencyConfig(), np.random.default_rng(seed), models)
    return float(np.mean([len(_answered(world, signals, router, i)[1]) for i in range(requests)]))


@check
def acar_share(seed: int, requests: int, most_models: int) -> float:
    """Share of requests that ACAR answers with at most so many of its three models.

    Requests are those of the card's mixture: 45 % of them easy (each answer right with 0.95), 30 % middling (0.5) and 25 % hard
    (0.1); two wrong answers coincide with 0.5.
    """
    logit = {name: float(np.log((1.0 - p) / p)) for name, p in (("easy", 0.95), ("mid", 0.5), ("hard", 0.1))}
    shares = {"easy": 0.45, "mid": 0.3, "hard": 0.25}
    config = {
        "models": {name: {"ability": 0.0} for name in ("a", "b", "c")},
        "domains": {name: {"share": shares[name], "difficulty": logit[name], "spread": 0.0} for name in shares},
        "discrimination_sd": 0.0,
        "wrong_answers": {"count": 5, "coincide": 0.5},
    }
    world, signals, models = _world(config, seed)
    router = Acar(AcarConfig(), np.random.default_rng(seed), models)
    used = [len({answer.arm for answer in _answered(world, signals, router, i)[1]}) for i in range(requests)]
    return float(np.mean(np.array(used) <= most_models))


# --- RADAR ----------------------------------------------------------------------------------------------------------------

_RADAR: Mapping[str, Any] = {
    "models": {
        f"model-{size}": {
            "ability": ability,
            "skills": {f"domain-{k}": 0.4 * (-1) ** (k + size) for k in range(4)},
            "budgets": (0, 512, 2048),
            "price": {"input": price, "output": 2.0 * price},
        }
        for size, ability, price in ((0, -1.0, 0.1), (1, 0.0, 0.3), (2, 1.0, 1.0))
    },
    "domains": {f"domain-{k}": {"difficulty": 0.5 * k - 0.75} for k in range(4)},
}
"""Three models at three budgets, four domains: abilities and prices one apart each, the rest as the card's generative model."""


@check
def hypervolume(seed: int, policy: str, requests: int = 2000, difficulty_sd: float = 0.5) -> float:
    """Area that a router's points of mean quality over mean price dominate, both between 0 and 1 (the dearest arm for all is 1).

    Parameters
    ----------
    seed : int
        Of the world.
    policy : str
        ``radar`` at 101 weights; ``clusters``, each domain's best arm at these weights (what neighbours in an embedding would
        tell); or ``random``, an arm for each request, in every mixture with the cheapest one.
    requests : int
        How many.
    difficulty_sd : float
        Error of the difficulty that RADAR sees.
    """
    world, _, models = _world({**_RADAR, "features": {"difficulty_sd": difficulty_sd}}, seed)
    truths = [world.meet(i, None, 200, 200) for i in range(requests)]
    quality = np.array([truth.quality for truth in truths])
    usd = np.array(
        [[a.list_usd(200, t) for a, t in zip(world.arms, truth.output_tokens, strict=True)] for truth in truths]
    )
    expected = usd.mean(axis=0)
    weights = np.linspace(0.0, 1.0, 101)
    rng = np.random.default_rng(seed)
    choices: list[Any] = []
    if policy == "random":
        drawn = rng.integers(len(world.arms), size=requests)
        choices = [np.where(rng.random(requests) < w, drawn, int(expected.argmin())) for w in weights]
    else:
        tell: Callable[[Truth], Any] = {
            "radar": lambda truth: truth.seen.chance,
            "clusters": lambda truth: models.quality[:, truth.seen.domain],
        }[policy]
        chance = np.array([tell(truth) for truth in truths])
        cost = expected / expected.max()
        choices = [(w * chance - (1.0 - w) * cost).argmax(axis=1) for w in weights]
    rows = np.arange(requests)
    top = usd.max(axis=1).mean()
    points = [(float(usd[rows, arms].mean() / top), float(quality[rows, arms].mean())) for arms in choices]
    hull = upper_hull([*points, (1.0, max(q for _, q in points))])
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2.0 for a, b in pairwise(hull))


@check
def hypervolume_ratio(seed: int, policy: str, over: str, requests: int = 2000) -> float:
    """Hypervolume of a router over that of another one, in the same world."""
    return hypervolume(seed, policy, requests) / hypervolume(seed, over, requests)


@check
def arms_that_are_chosen(seed: int, how: str) -> float:
    """How many of the card's three models a scalarisation chooses at some weight: chances .5, .6, .9 at costs .1, .5 and 1."""
    chance, cost = np.array([0.5, 0.6, 0.9]), np.array([0.1, 0.5, 1.0])
    return float(len({int(scalarised(how, w, chance, cost).argmax()) for w in np.linspace(0.0, 1.0, 1001)}))


# --- FrugalGPT --------------------------------------------------------------------------------------------------------------


@check
def cascade_cost_ratio(seed: int, requests: int = 20_000) -> float:
    """Mean price of FrugalGPT's cascade of three models over ``sum of c_i P(all before are turned down)``.

    The chances are not counted but computed: a stage turns an answer down with ``p Phi(t - k) + (1 - p) Phi(t + k)``, p the chance
    of a right answer to the request, t the threshold's log-odds and k the judge's.
    """
    prices = (0.1, 0.4, 2.0)
    config = {
        "models": {
            f"model-{i}": {"ability": i - 1.0, "price": {"input": usd, "output": usd}} for i, usd in enumerate(prices)
        },
        "length_slope": 0.0,
    }
    world, signals, models = _world(config, seed)
    router = FrugalGpt(FrugalGptConfig(thresholds=(0.6, 0.6)), np.random.default_rng(seed), models)
    k, t = float(ndtri(0.8)) / np.sqrt(2.0), float(np.log(0.6 / 0.4))
    paid = expected = 0.0
    for i in range(requests):
        truth, answers, _ = _answered(world, signals, router, i)
        paid += sum(answer.list_usd for answer in answers)
        down = truth.chance * ndtr(t - k) + (1.0 - truth.chance) * ndtr(t + k)
        reached = (1.0, float(down[0]), float(down[0] * down[1]))
        expected += sum(arm.list_usd(100, 100) * part for arm, part in zip(world.arms, reached, strict=True))
    return paid / expected
