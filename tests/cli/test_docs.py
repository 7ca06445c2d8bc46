"""Pages of policies: what is committed is what the command writes, and third parties' policies get the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleetsim import plugins
from fleetsim.cli import docs
from fleetsim.cli.list import command as list_command
from fleetsim.plugins import GROUPS

COMMITTED = Path(__file__).parents[2] / "docs" / "policies"


@pytest.fixture(scope="module")
def all_pages() -> dict[str, str]:
    """Pages of all policies, written once."""
    return docs.policy_pages()


def test_committed_pages_are_what_the_command_writes() -> None:
    pages = docs.policy_pages("fleetsim")
    committed = {
        path.relative_to(COMMITTED).as_posix(): path.read_text(encoding="utf-8") for path in COMMITTED.rglob("*.md")
    }
    assert sorted(committed) == sorted(pages), (
        "run `fleetsim docs policies --package fleetsim` and remove what it does not write"
    )
    for name, text in pages.items():
        assert committed[name] == text, f"{name}: run `fleetsim docs policies --package fleetsim`"


@pytest.mark.parametrize("row", plugins.listing(), ids=lambda row: f"{row.kind}/{row.name}")
def test_every_policy_says_what_it_does_in_a_line(row: plugins.Listing, all_pages: dict[str, str]) -> None:
    assert row.loaded
    assert row.summary.endswith(".")
    assert 15 < len(row.summary) <= 132
    page = all_pages[docs._file(row)]
    assert page.startswith(f"# {row.name}\n")
    config = plugins.load(row.kind, row.name).Config
    for name, field in config.model_fields.items():
        assert f"| `{field.alias or name}` |" in page
        assert field.description, f"{name} has no docstring"


def test_every_kind_that_scenarios_name_is_listed() -> None:
    places = dict(docs.policy_places())
    assert set(places) <= set(GROUPS)
    assert places["routers"] == ("gateway.router", "policy")
    assert places["step_time_models"] == ("pools[].engine.step_time", "model")
    assert places["schedulers"][0] == "pools[].engine.scheduler"
    assert places["searches"][0] == "workload.search"


PLUGIN = """
from typing import Annotated, ClassVar
from pydantic import Field
from fleetsim.plugins import PolicyConfig
from fleetsim.units import SecondsOrZero

class Config(PolicyConfig):
    patience: SecondsOrZero = 1.5
    "How long | it waits."
    tries: Annotated[int, Field(ge=1, le=9)]
    "How often it tries."

class Patient:
    \"\"\"The first replica, patiently.

    Rule: ``0``.

    References
    ----------
    Nobody.
    \"\"\"
    Config: ClassVar = Config
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with a router that works and one that cannot be imported."""
    info = tmp_path / "patience-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patience\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(
        "[fleetsim.routers]\npatient = patience_router:Patient\nbroken = no_such:X\n"
    )
    (tmp_path / "patience_router.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget_what_is_installed()
    yield
    _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    plugins._installed.cache_clear()
    plugins._entries.cache_clear()


@pytest.mark.usefixtures("third_party")
def test_third_parties(tmp_path: Path) -> None:
    done = CliRunner().invoke(docs.command, ["policies", "--package", "patience", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.md"))
    assert written == ["README.md", "routers/patient.md"]
    page = (tmp_path / "out/routers/patient.md").read_text()
    assert "| `patience` | `1.5 s` | from 0 s | How long \\| it waits. |" in page
    assert "| `tries` | required | from 1 to 9 | How often it tries. |" in page
    assert "**Rule:** `0`." in page
    assert "## References\n\nNobody." in page
    assert "From the package patience." in page
    index = (tmp_path / "out/README.md").read_text()
    assert "| broken | the plug-in" in index
    assert "Schedulers" not in index
    listed = CliRunner().invoke(list_command, ["policies", "routers", "--json"])
    assert listed.exit_code == 0
    assert '"patience 2.0"' in listed.output
    assert '"schedulers"' not in listed.output


def test_list_takes_a_kind_of_policies() -> None:
    shown = CliRunner().invoke(list_command, ["policies", "searches"])
    assert [line.split()[1] for line in shown.output.splitlines()[1:]] == ["beam", "ets", "rebase"]
    for wrong, hint in ((["policies", "router"], "routers"), (["llms", "routers"], "only `fleetsim list policies`")):
        refused = CliRunner().invoke(list_command, wrong)
        assert hint in str(refused.exception)
