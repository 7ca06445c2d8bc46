"""Findings about answers and who chooses the model: part of `check.py`."""

from __future__ import annotations

from collections.abc import Iterator

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.quality.profile import load_quality
from fleetsim.scenario.load import LoadedScenario

Findings = Iterator[Finding]


def answers_can_be(loaded: LoadedScenario) -> Findings:
    """Models that are served, names that the profile or the table knows."""
    scenario, config = loaded.scenario, loaded.scenario.quality
    if config is None:
        return
    served = {name for pool in scenario.pools for name in (pool.llm, *pool.models)}
    for name, model in config.models.items():
        where = ("quality", "models", name)
        if name not in served:
            yield loaded.finding(where, f'no pool serves "{name}"', nearest(name, served, "in the pools"))
        if config.domain_by == "draw" and config.domains:
            for skill in model.skills:
                if skill not in config.domains:
                    hint = nearest(skill, config.domains, "domains")
                    yield loaded.finding((*where, "skills", skill), f'no domain is called "{skill}"', hint)
    if config.profile is not None:
        yield from _profile_knows(loaded, config.profile)
    if config.outcomes is not None:
        yield from _table_knows(loaded)


def _profile_knows(loaded: LoadedScenario, name: str) -> Findings:
    assert loaded.scenario.quality is not None
    try:
        profile = load_quality(name)
    except DataError as error:
        for found in error.findings:
            yield loaded.finding(("quality", "profile"), found.message, found.hint)
        return
    for llm, model in loaded.scenario.quality.models.items():
        known = model.known_as or llm
        if known not in profile.models and (model.ability is None or model.known_as is not None):
            hint = f"{nearest(known, profile.models, 'models')}; set known_as, or ability"
            message = f'the profile "{name}" knows no model "{known}"'
            yield loaded.finding(("quality", "models", llm), message, hint)


def _table_knows(loaded: LoadedScenario) -> Findings:
    from fleetsim.quality.outcomes import outcome_file, read_outcomes

    config = loaded.scenario.quality
    assert config is not None
    assert config.outcomes is not None
    path = outcome_file(loaded.base_dir, config.outcomes.path)
    if not path.is_file():
        hint = (
            "FLEETSIM_DATA names the folder of files with `data:` before them"
            if "data:" in config.outcomes.path
            else ""
        )
        yield loaded.finding(("quality", "outcomes", "path"), f'there is no file "{config.outcomes.path}"', hint)
        return
    names = tuple(dict.fromkeys(model.known_as or llm for llm, model in config.models.items()))
    try:
        read_outcomes(path, names, config.outcomes.source)
    except DataError as error:
        for found in error.findings:
            yield loaded.finding(("quality", "outcomes"), found.message, found.hint)
    for llm, model in config.models.items():
        if model.budgets != (0,):
            yield loaded.finding(("quality", "models", llm, "budgets"), "a table of outcomes has no budgets")
