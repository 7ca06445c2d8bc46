"""Wheels: with compiled hot modules and without, both outside the checkout, and both with the same tables as the checkout.

Compiling takes minutes. FLEETSIM_COMPILED names the Python of an environment into which this checkout is installed already, by
`pip install .`, and saves doing it again.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
TABLES = ("requests", "replicas", "fleet", "events", "gaps", "summary", "groups")

pytestmark = pytest.mark.slow

SCENARIOS = {
    # sessions with shared prefixes behind a router that counts work, on too few KV blocks
    "sessions": """
schema: 1
name: sessions
seed: 7
workload:
  kind: synthetic
  requests: 2000
  arrivals: {process: gamma, rate: 6 req/s, burstiness: 0.4}
  prompt_tokens: {distribution: lognormal, mean: 300, cv: 1.0, min: 1, max: 2000}
  output_tokens: {distribution: lognormal, mean: 250, cv: 1.0, min: 1, max: 1500}
  prefixes: {groups: 8, tokens: 200, zipf: 1.0}
  sessions:
    turns: {distribution: lognormal, mean: 4, cv: 1.0, min: 1, max: 12}
    think_time: 2 s
    max_context_tokens: 6000
slo: {ttft: 2 s, tpot: 60 ms, attainment: 0.5}
gateway: {router: {policy: join-shortest-queue}}
pools:
  - name: small
    llm: llama-3.1-8b
    accelerator: rtx-4090
    replicas: 3
    engine: {kv: {capacity_tokens: 16000, retain_unmatched: true}, scheduler: {max_batched_tokens: 1024, max_seqs: 48}}
  - name: large
    llm: llama-3.1-8b
    accelerator: l40s
    replicas: 2
    engine: {kv: {capacity_tokens: 24000}}
run: {interval: 5 s}
""",
    # a mixture of experts on two ranks in lock step, users that wait for their answers
    "experts": """
schema: 1
name: experts
seed: 11
workload:
  kind: synthetic
  requests: 1500
  arrivals: {process: closed-loop, concurrency: 120, think_time: 1 s}
  prompt_tokens: {distribution: lognormal, mean: 600, cv: 1.2, min: 1, max: 6000}
  output_tokens: {distribution: lognormal, mean: 300, cv: 1.0, min: 1, max: 2000}
  prefixes: {groups: 5, tokens: 400, zipf: 0.8}
gateway: {router: {policy: power-of-two-choices}}
pools:
  - name: wide
    llm: qwen3-30b-a3b
    accelerator: rtx-pro-6000
    parallelism: {dp: 2, ep: 2}
    replicas: 2
    engine: {kv: {capacity_tokens: 16000, block_tokens: 32}}
run: {interval: 5 s}
""",
    # long prompts that are stopped for short ones, with answers behind them and too little room
    "stopped": """
schema: 1
name: stopped
seed: 5
workload:
  kind: mix
  parts:
    long:
      kind: synthetic
      class: file
      requests: 300
      arrivals: {process: gamma, rate: 3 req/s, burstiness: 2}
      prompt_tokens: {distribution: lognormal, mean: 4000, cv: 0.8, min: 1, max: 12000}
      output_tokens: {distribution: fixed, value: 20}
      prefixes: {groups: 2, tokens: 1000, zipf: 1.0}
    short:
      kind: synthetic
      class: text
      requests: 1500
      arrivals: {process: poisson, rate: 15 req/s}
      prompt_tokens: {distribution: lognormal, mean: 200, cv: 0.8, min: 1, max: 600}
      output_tokens: {distribution: fixed, value: 1}
slo: {classes: {file: {ttft: 6 s}, text: {ttft: 250 ms}}}
pools:
  - name: main
    llm: llama-3.1-8b
    accelerator: h100-sxm
    engine: {scheduler: {policy: flow-prefill}, kv: {capacity_tokens: 40000}}
""",
    # two models behind a cascade: calls, judges, samples of the prefix cache
    "models": """
schema: 1
name: models
seed: 5
workload:
  kind: synthetic
  requests: 300
  arrivals: {process: poisson, rate: 15 req/s}
  prompt_tokens: {distribution: lognormal, mean: 300, cv: 1.0, min: 1, max: 2000}
  output_tokens: {distribution: lognormal, mean: 100, cv: 1.0, min: 1, max: 600}
quality:
  models:
    llama-3.2-1b: {ability: -0.5, price: {input: 0.1, output: 0.2}}
    llama-3.1-8b: {ability: 1.0, price: {input: 0.5, output: 1.0}}
gateway: {model_router: {policy: acar}}
pools:
  - {name: small, llm: llama-3.2-1b, accelerator: rtx-4090}
  - {name: large, llm: llama-3.1-8b, accelerator: l40s, replicas: 2}
""",
    # the embedded trace, sessions kept together, requests cut off at the horizon
    "trace": """
schema: 1
name: trace
seed: 3
workload: {kind: trace, format: azure, path: "embedded:default", rate_scale: 4}
slo: {ttft: 2 s, tpot: 100 ms, attainment: 0.5}
gateway: {router: {policy: least-outstanding}}
pools:
  - {name: chat, llm: llama-3.1-70b, accelerator: h100-sxm, parallelism: {tp: 4}, replicas: 2}
run: {horizon: 100 s}
""",
}


@dataclass(frozen=True)
class Installed:
    """A Python with fleetsim, and a folder outside the checkout to work in."""

    python: Path
    folder: Path

    @property
    def home(self) -> Path:
        """Folder of the environment."""
        return self.python.parents[1]

    def call(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What ``fleetsim ARGS`` does there."""
        return self.run("-m", "fleetsim", *args, **environment)

    def run(self, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """What ``python ARGS`` does there; the current folder is not importable."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FLEETSIM_"))
        } | extra
        line = [str(self.python), "-P", *args]
        return subprocess.run(line, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)


@cache
def no_compiler() -> str:
    """Why C extensions cannot be built here; empty if they can."""
    command = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(os.environ.get("CC", command)) is None:
        return f"no C compiler ({command})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.is_file() else f"no {header}: CPython's headers are not installed"


def build_wheel(folder: Path, compile_wish: str, **extra: str) -> Path:
    """Build a wheel of the checkout."""
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    environment = {**os.environ, "FLEETSIM_COMPILE": compile_wish, **extra}
    process = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=3600)
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,) = folder.glob("fleetsim-*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Installed:
    """Install a wheel into a new environment, which takes everything but fleetsim from the packages of this one."""
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = folder / "venv" / scripts / ("python.exe" if os.name == "nt" else "python")
    line = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    process = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    paths = json.loads(
        subprocess.check_output([python, "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"])
    )
    here = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    Path(paths["purelib"], "dependencies.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    (folder / "work").mkdir()
    return Installed(python, folder / "work")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The installation that runs these tests."""
    return Installed(Path(sys.executable), tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An installed wheel of plain Python."""
    folder = tmp_path_factory.mktemp("plain")
    return install(build_wheel(folder, "0"), folder)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An installed wheel with compiled hot modules."""
    if given := os.environ.get("FLEETSIM_COMPILED"):
        return Installed(Path(given), tmp_path_factory.mktemp("compiled"))
    if reason := no_compiler():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compiled")
    return install(build_wheel(folder, "1"), folder)


@pytest.fixture(scope="module", params=["plain", "compiled"])
def wheel(request: pytest.FixtureRequest) -> Installed:
    """Either wheel."""
    installed = request.getfixturevalue(request.param)
    assert isinstance(installed, Installed)
    return installed


ORIGINS = """
import importlib, json, sys
print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))
"""


def hot_modules() -> list[str]:
    """Modules that the build compiles, by their names."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT_MODULES"
    )
    return [path.removesuffix(".py").replace("/", ".") for path in ast.literal_eval(value)]


def origins(installed: Installed) -> dict[str, str]:
    """Files that the hot modules come from."""
    process = installed.run("-c", ORIGINS, *hot_modules())
    assert process.returncode == 0, process.stderr
    found: dict[str, str] = json.loads(process.stdout)
    return found


def test_hot_modules_are_compiled(compiled: Installed) -> None:
    files = origins(compiled)
    assert len(files) >= 8
    for name, file in files.items():
        assert file.endswith((".so", ".pyd")), name
        assert Path(file).is_relative_to(compiled.home)


def test_plain_wheel_is_pure(plain: Installed) -> None:
    (file,) = plain.folder.parent.glob("*.whl")
    assert file.name.endswith("-py3-none-any.whl")
    with ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".c"))]
    for name, origin in origins(plain).items():
        assert origin.endswith(".py"), name
        assert Path(origin).is_relative_to(plain.home)


@pytest.mark.skipif(os.name == "nt", reason="setuptools does not heed CC on Windows")
def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    assert build_wheel(tmp_path, "auto", CC=str(tmp_path / "no-such-compiler")).name.endswith("-py3-none-any.whl")


def test_example_runs_outside_the_checkout(wheel: Installed) -> None:
    script = wheel.python.parent / ("fleetsim.exe" if os.name == "nt" else "fleetsim")
    process = subprocess.run([script, "run"], cwd=wheel.folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("STABLE: ")
    assert (wheel.folder / "fleetsim-out" / "quickstart" / "requests.parquet").is_file()
    told = wheel.call("list", "scenarios")
    assert "quickstart" in told.stdout


ROUTERS = """
from fleetsim.engine.schedulers.vllm_v1 import VllmV1
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView, Router
from fleetsim.routing.basic import RoundRobin


class LargestId(RoundRobin):
    '''Round robin backwards.'''

    def route(self, request):
        return -1 - super().route(request) + self._count


class Newest(VllmV1):
    '''The queue backwards.'''

    def schedule(self, batch):
        batch.waiting.reverse()
        super().schedule(batch)


class Slower(Roofline):
    '''The same under another name.'''


class EvenConfig(PolicyConfig):
    step: int = 2


class Even(Router):
    '''By length of the prompt.'''

    Config = EvenConfig

    def __init__(self, config: EvenConfig, rng: object, fleet: FleetView) -> None:
        self.step, self.count = config.step, fleet.count

    def route(self, request: RequestView) -> int:
        return request.prompt_tokens * self.step % self.count


class Alone:
    '''Inherits from nothing.'''

    Config = EvenConfig

    def __init__(self, config, rng, fleet):
        self.fleet = fleet

    def route(self, request):
        return min(range(self.fleet.count), key=self.fleet.outstanding.__getitem__)
"""
VARIANTS = {
    **{name: (name, "") for name in SCENARIOS},
    "round-robin-backwards": ("sessions", "gateway.router=routers:LargestId"),
    "own-protocol": ("sessions", "gateway.router={policy: routers:Even, step: 3}"),
    "own-scheduler": ("experts", "pools[0].engine.scheduler.policy=routers:Newest"),
    "own-alone": ("experts", "gateway.router=routers:Alone"),
}


def run_variant(name: str, installed: Installed) -> Path:
    """Run a scenario there, if that has not been done; the folder of its tables."""
    base, override = VARIANTS[name]
    out = installed.folder / name
    if out.exists():
        return out
    (installed.folder / "routers.py").write_text(ROUTERS, encoding="utf-8")
    (installed.folder / f"{base}.yaml").write_text(SCENARIOS[base], encoding="utf-8")
    line = ["run", f"{base}.yaml", "--out", name, "--json", "--check"]
    line += ["--set", override, "--allow-import"] if override else []
    process = installed.call(*line, PYTHONPATH=str(installed.folder))
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout)["summary"]
    if base not in ("trace", "stopped", "models"):
        assert summary["preemptions"] > 20
        assert summary["prefix_hit_ratio"] > 0.05
    elif base == "trace":
        assert summary["unfinished"] > 0
    return out


@pytest.mark.parametrize("name", VARIANTS)
def test_tables_are_those_of_the_checkout(name: str, checkout: Installed, wheel: Installed) -> None:
    """Byte by byte, with routers of fleetsim's and of the user's."""
    ours, theirs = run_variant(name, checkout), run_variant(name, wheel)
    for table in TABLES:
        assert (ours / f"{table}.parquet").read_bytes() == (theirs / f"{table}.parquet").read_bytes(), table


SCHEMAS = """
import json
from fleetsim.engine.schedulers.vllm_v1 import VllmV1
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.routing import basic
policies = [VllmV1, Roofline, basic.JoinShortestQueue, basic.PowerOfTwoChoices, basic.SessionAffinity]
properties = {policy.__name__: policy.Config.model_json_schema().get("properties", {}) for policy in policies}
for field in (field for fields in properties.values() for field in fields.values()):
    field.pop("description", None)  # docstrings of attributes are not compiled
print(json.dumps(properties))
"""


def test_options_of_policies_keep_their_limits_and_units(checkout: Installed, wheel: Installed) -> None:
    """mypyc drops all but the bare type of an annotation, unless it is quoted."""
    one, two = (json.loads(installed.run("-c", SCHEMAS).stdout) for installed in (checkout, wheel))
    assert one == two
    assert one["VllmV1"]["max_seqs"]["minimum"] == 1
    assert "ms" in json.dumps(one["Roofline"]["host"])


def test_the_checkout_is_plain_python(checkout: Installed) -> None:
    """Otherwise the comparisons above would show nothing."""
    for name, file in origins(checkout).items():
        assert Path(file).is_relative_to(ROOT), name
        assert file.endswith(".py"), name
