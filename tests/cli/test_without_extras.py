"""What `pip install fleetsim` brings is enough, but for the commands that say what they need."""

import subprocess
import sys

EXTRAS = ("pandas", "duckdb", "ray", "fsspec", "optuna", "kaleido", "statsmodels", "torch", "pynvml")
PREFACE = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
"""Makes any import of these fail as if they were not installed."""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PREFACE + code, *arguments], capture_output=True, text=True)


def test_all_modules_but_those_of_the_comparison_with_measurements_can_be_read():
    code = """
import pkgutil, fleetsim
pandas_users = ("fleetsim.accuracy.", "fleetsim.calibration.tables", "fleetsim.calibration.catalogue")
for module in pkgutil.walk_packages(fleetsim.__path__, "fleetsim."):
    if not module.name.startswith(pandas_users):
        __import__(module.name)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_command_without_its_extra_says_what_to_install(tmp_path):
    code = "from fleetsim.cli.main import main; main()"
    done = python(code, "accuracy", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "comparisons with measurements need pandas, which is not installed",
        "    pip install 'fleetsim[accuracy]'",
    ]


def test_a_run_its_report_and_a_comparison_need_no_extra(tmp_path):
    code = "from fleetsim.cli.main import main; main()"
    for router in ("random", "least-outstanding"):
        out = str(tmp_path / router)
        assert python(code, "run", "--set", f"gateway.router={router}", "--out", out).returncode == 0
    assert python(code, "report", str(tmp_path / "random"), "--out", str(tmp_path / "a.html")).returncode == 0
    assert python(code, "compare", str(tmp_path / "random"), str(tmp_path / "least-outstanding")).returncode == 0
