"""Columns about answers, of requests for which a model router decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fleetsim.metrics.columns import column
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.answering import Answering

_FLOATS = ("quality", "expected_quality", "best_quality", "list_usd")
_COUNTS = ("calls", "call_prompt_tokens", "call_output_tokens", "budget_tokens")


def answer_columns(rows: Sequence[Request], answering: Answering | None) -> dict[str, Any]:
    """Columns of some ended requests; nulls where nobody chose among models."""
    count = len(rows)
    if answering is None:
        empty: dict[str, Any] = {name: pa.nulls(count, pa.float64()) for name in _FLOATS}
        return empty | {name: pa.nulls(count, pa.int64()) for name in _COUNTS} | {"domain": [None] * count}
    from fleetsim.fleet.stories import Story

    stories = [request.call if type(request.call) is Story else None for request in rows]
    arms, domains = answering.world.arms, answering.world.domains
    told = [
        (
            story.quality,
            story.chance,
            float(story.truth.quality.max()),
            story.list_usd,
            story.calls,
            story.prompt_tokens,
            story.output_tokens,
            arms[story.arm].budget if story.arm >= 0 else -1,
        )
        if story is not None
        else (np.nan, np.nan, np.nan, np.nan, -1, -1, -1, -1)
        for story in stories
    ]
    cells = np.array(told, dtype=np.float64).reshape(count, 8)
    columns: dict[str, Any] = {}
    for i, name in enumerate((*_FLOATS, *_COUNTS)):
        values = cells[:, i]
        if name in _FLOATS:
            columns[name] = column(values, np.isnan(values))
        else:
            columns[name] = column(values.astype(np.int64), values < 0)
    columns["domain"] = [None if story is None else domains[story.truth.domain] for story in stories]
    return columns
