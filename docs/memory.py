"""Memory of one long run against the requests that have ended: `python docs/memory.py [REQUESTS] [OUT]`, ten million by default.

Prints a table, one row for each of fifty parts of the run, and writes it to OUT as CSV if that is given.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import fleetsim
from fleetsim.scenario.template import scenarios_folder

ROWS = 50


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process that is in use now; with "VmHWM", the most that has been."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(requests: int, out: str | None) -> None:
    """Run and print."""
    rows: list[tuple[int, float, float]] = []
    started = time.perf_counter()

    def watch(done: int, total: int | None, now_s: float) -> None:
        del total, now_s
        if done >= len(rows) * requests // ROWS:
            rows.append((done, time.perf_counter() - started, resident_bytes() / 1e6))
            say(f"{done:>12,} requests  {rows[-1][1]:8.1f} s  {rows[-1][2]:7.0f} MB")

    with tempfile.TemporaryDirectory() as folder:
        laid = {"workload.requests": requests}
        million = scenarios_folder() / "bench" / "million.yaml"
        result = fleetsim.run(million, Path(folder) / "run", overrides=laid, progress=watch)
    rows.append((requests, time.perf_counter() - started, resident_bytes() / 1e6))
    most_mb = resident_bytes("VmHWM") / 1e6
    say(
        f"{result.verdict}: {requests:,} requests in {rows[-1][1]:.1f} s; at most {most_mb:.0f} MB, while it was summarised"
    )
    if out is not None:
        lines = ["requests,wall_s,resident_mb", *(f"{n},{wall_s:.1f},{mb:.1f}" for n, wall_s, mb in rows)]
        Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000, sys.argv[2] if len(sys.argv) > 2 else None)
