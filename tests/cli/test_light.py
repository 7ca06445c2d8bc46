"""A run without a network, models to choose from or plans loads none of the packages that only these need."""

import subprocess
import sys

HEAVY = {"pandas", "scipy", "networkx", "plotly", "jinja2", "pulp", "highspy", "duckdb", "optuna", "ray"}


def test_a_plain_run_loads_only_what_it_uses(tmp_path):
    code = f"""
import sys
import fleetsim
fleetsim.run("embedded:quickstart", {str(tmp_path / "run")!r}, overrides={{"workload.requests": 200}})
print(*sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
