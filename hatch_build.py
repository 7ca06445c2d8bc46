"""Compiles the hot modules into the wheel where that is possible; elsewhere the wheel holds the same modules as plain Python.

The modules are compiled as they stand (mypyc), so both give the same tables; `.ci/run` compares them. Without a C compiler, or
with FLEETSIM_COMPILE=0, or in an editable install, nothing is compiled. FLEETSIM_COMPILE=1 makes a failure to compile an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOT_MODULES = (
    "fleetsim/kernel/clock.py",
    "fleetsim/workload/prefixes.py",
    "fleetsim/workload/request.py",
    "fleetsim/network/flows.py",
    "fleetsim/engine/gaps.py",
    "fleetsim/engine/loans.py",
    "fleetsim/engine/prefix_cache.py",
    "fleetsim/engine/batch.py",
    "fleetsim/engine/stops.py",
    "fleetsim/engine/replica.py",
    "fleetsim/engine/schedulers/flow_prefill.py",
    "fleetsim/engine/schedulers/orca.py",
    "fleetsim/engine/schedulers/sarathi.py",
    "fleetsim/engine/schedulers/sglang.py",
    "fleetsim/engine/schedulers/static.py",
    "fleetsim/engine/schedulers/vllm_v0.py",
    "fleetsim/engine/schedulers/vllm_v1.py",
    "fleetsim/engine/schedulers/xllm_colocation.py",
    "fleetsim/engine/steptime/operators.py",
    "fleetsim/engine/steptime/roofline.py",
    "fleetsim/routing/aibrix_prefix.py",
    "fleetsim/routing/api.py",
    "fleetsim/routing/basic.py",
    "fleetsim/routing/cache_aware.py",
    "fleetsim/routing/conductor.py",
    "fleetsim/routing/consistent_hash.py",
    "fleetsim/routing/dualmap.py",
    "fleetsim/routing/dynamo_kv.py",
    "fleetsim/routing/fleetopt.py",
    "fleetsim/routing/hash_ring.py",
    "fleetsim/routing/hot_prefixes.py",
    "fleetsim/routing/infaas.py",
    "fleetsim/routing/infinite_llm.py",
    "fleetsim/routing/jiq.py",
    "fleetsim/routing/least_kv.py",
    "fleetsim/routing/least_work.py",
    "fleetsim/routing/llumnix.py",
    "fleetsim/routing/lmetric.py",
    "fleetsim/routing/memory_scan.py",
    "fleetsim/routing/min_index.py",
    "fleetsim/routing/min_ttft.py",
    "fleetsim/routing/pool_state.py",
    "fleetsim/routing/preble.py",
    "fleetsim/routing/prefix_index.py",
    "fleetsim/routing/prefix_score.py",
    "fleetsim/routing/route_balance.py",
    "fleetsim/routing/telemetry.py",
    "fleetsim/routing/ttft_scan.py",
    "fleetsim/routing/vllm_dp.py",
    "fleetsim/fleet/sides.py",
    "fleetsim/fleet/patience.py",
    "fleetsim/fleet/probe.py",
    "fleetsim/fleet/gateway.py",
    "fleetsim/fleet/fleet.py",
)

PATIENCE_S = 3600
"""A busy machine takes ten times as long as an idle one, which needs two minutes; only a compiler that hangs is stopped [s]."""

SETUP = """
from setuptools import setup
from mypyc.build import mypycify
setup(name="fleetsim-hot", packages=[], ext_modules=mypycify(
    ["--config-file=", "--ignore-missing-imports", *{modules!r}], opt_level="3", debug_level="0", group_name="fleetsim"))
"""


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds compiled twins of the hot modules to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, if this is a wheel that is not editable, and list the results for inclusion."""
        wish = os.environ.get("FLEETSIM_COMPILE", "auto")
        if version == "editable" or self.target_name != "wheel" or wish == "0":
            return
        self._scratch = tempfile.mkdtemp(prefix="fleetsim-build-")
        try:
            built = compile_hot_modules(Path(self.root), Path(self._scratch))
        except (OSError, subprocess.SubprocessError) as error:
            if wish == "1":
                raise
            output = getattr(error, "stdout", None) or ""
            self.app.display_warning(f"hot modules are not compiled, plain Python is used: {error}\n{output[-2000:]}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in built:
            build_data["force_include"][str(path)] = str(path.relative_to(self._scratch))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled."""
        shutil.rmtree(getattr(self, "_scratch", ""), ignore_errors=True)


def compile_hot_modules(root: Path, scratch: Path) -> list[Path]:
    """Copy the package to `scratch`, compile the hot modules in place there, and return the extension modules."""
    _require_compiler()
    shutil.copytree(
        root / "fleetsim", scratch / "fleetsim", ignore=shutil.ignore_patterns("__pycache__", "*.so", "_data")
    )
    (scratch / "setup.py").write_text(SETUP.format(modules=list(HOT_MODULES)), encoding="utf-8")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=scratch,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    return [path for path in scratch.rglob("*") if path.suffix in (".so", ".pyd") and "build" not in path.parts]


def _require_compiler() -> None:
    """Fail at once where the C that takes a minute to write could not be compiled."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if os.name != "nt" and shutil.which(command) is None:
        raise FileNotFoundError(f"no C compiler ({command})")
