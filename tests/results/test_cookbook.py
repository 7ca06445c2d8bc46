"""The queries of the documentation answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fleetsim
from fleetsim.results.folder import open_results

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("sql", QUERIES, ids=lambda sql: sql.split("\n")[0][:40])
def test_a_query_of_the_cookbook_answers(study: Path, sql: str) -> None:
    pytest.importorskip("duckdb")
    one, other = (run.label for run in open_results(study).runs[::4][:2])  # the same seed and rate under two routers
    sql = sql.replace("'a'", f"'{one}'").replace("'b'", f"'{other}'").replace("kv > 0.95", "kv > 0")
    assert fleetsim.query(sql, study).num_rows > 0


def test_the_cookbook_is_not_empty() -> None:
    assert len(QUERIES) >= 7
