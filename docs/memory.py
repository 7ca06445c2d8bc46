"""Memory of one long run, from its beginning to the end of its summary.

    python docs/memory.py [REQUESTS] [PICTURE]

runs ten million requests on 64 replicas if nothing else is said, prints a table with a row for each of twenty parts of the run, and
draws what the process held in each second if a file name that ends in .svg is given.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import fleetsim
from fleetsim.scenario.template import scenarios_folder

ROWS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process held at an instant."""

    wall_s: float
    ended: int
    """Requests that had ended."""
    resident_mb: float


class Watch(threading.Thread):
    """Looks at the memory of this process every second, and when it is asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._ended = 0
        self._began_s = time.perf_counter()
        self._over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(1.0):
            self.look()

    def look(self) -> Sample:
        """Look now."""
        self.samples.append(Sample(time.perf_counter() - self._began_s, self._ended, resident_mb()))
        return self.samples[-1]

    def progress(self, ended: int, total: int | None, now_s: float) -> None:
        """Told by the run how far it is."""
        del now_s
        parts = 0 if not total else ended * ROWS // total - self._ended * ROWS // total
        self._ended = ended
        if parts or len(self.samples) == 0:
            say(self.look())

    def stop(self) -> Sample:
        """Look for the last time."""
        self._over.set()
        self.join()
        return self.look()


def resident_mb(field: str = "VmRSS") -> float:
    """Memory of this process that is in use now; with "VmHWM", the most that has been [MB]."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this system does not tell")


def say(sample: Sample) -> None:
    """Print a row at once."""
    sys.stdout.write(f"{sample.ended:>12,} requests  {sample.wall_s:8.1f} s  {sample.resident_mb:7.0f} MB\n")
    sys.stdout.flush()


def main(requests: int, out: str | None) -> None:
    """Run, print and draw."""
    watch = Watch()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        million = scenarios_folder() / "bench" / "million.yaml"
        laid = {"workload.requests": requests}
        result = fleetsim.run(million, Path(folder) / "run", overrides=laid, progress=watch.progress)
    say(watch.stop())
    most = f"at most {resident_mb('VmHWM'):.0f} MB, while it was summarised"
    sys.stdout.write(f"{result.verdict}: {requests:,} requests; {most}\n")
    if out is not None:
        Path(out).write_text(picture(watch.samples, requests), encoding="utf-8")


def picture(samples: list[Sample], requests: int) -> str:
    """Resident memory over time; the summary is shaded."""
    width, height, left, right, top, bottom = 760, 300, 60, 16, 34, 46
    last_s = samples[-1].wall_s
    most_mb = 100.0 * (int(max(sample.resident_mb for sample in samples) / 100.0) + 1)
    summary_s = next(sample.wall_s for sample in samples if sample.ended == samples[-1].ended)

    def x(wall_s: float) -> float:
        return left + wall_s / last_s * (width - left - right)

    def y(mb: float) -> float:
        return top + (1.0 - mb / most_mb) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18">Resident memory of a run of {requests:,} requests [MB]; shaded: its summary</text>',
        f'<rect x="{x(summary_s):.1f}" y="{top}" width="{x(last_s) - x(summary_s):.1f}" height="{height - top - bottom}" '
        'fill="#f2e3d5"/>',
    ]
    for mb in range(0, int(most_mb) + 1, 100):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(mb):.1f}" y2="{y(mb):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(mb) + 4:.1f}" text-anchor="end">{mb}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        told = f"{share * last_s:.0f} s"
        parts.append(f'<text x="{x(share * last_s):.0f}" y="{height - 22}" text-anchor="middle">{told}</text>')
    dots = " ".join(f"{x(sample.wall_s):.1f},{y(sample.resident_mb):.1f}" for sample in samples)
    parts.append(f'<polyline points="{dots}" fill="none" stroke="#2c6fbb" stroke-width="1.6"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000, sys.argv[2] if len(sys.argv) > 2 else None)
