"""Studies at addresses: whole files, a run's manifest last."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fleetsim.errors import InputError
from fleetsim.output.parquet import MANIFEST
from fleetsim.sweeping.store import RemoteStore, manifest_of, store_of
from fleetsim.sweeping.study import Progress, Study, sweep

fsspec: Any = pytest.importorskip("fsspec")

OUT = "memory://bucket/study"


@pytest.fixture(autouse=True)
def _empty() -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_a_study_in_memory_is_as_one_in_a_folder(tiny: Path) -> None:
    axes = {"gateway.router": ["round-robin", "least-outstanding"]}
    there, here = sweep(tiny, axes, out=OUT, jobs=1), sweep(tiny, axes, out="here", jobs=1)
    memory = fsspec.filesystem("memory")
    for path in Path("here").glob("run=*/*.parquet"):
        assert memory.cat(f"bucket/study/{path.relative_to('here')}") == path.read_bytes()
    assert pq.read_table(io.BytesIO(memory.cat("bucket/study/summary.parquet"))).num_rows == 2
    assert [row["run"] for row in there.runs] == [row["run"] for row in here.runs]
    told: list[Progress] = []
    sweep(tiny, axes, out=OUT, jobs=1, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (2, 0)
    assert len(Study.open(OUT).finished) == 2


def test_a_run_whose_manifest_is_not_there_yet_is_not_finished(tiny: Path, tmp_path: Path) -> None:
    study = sweep(tiny, {"seed": [1]}, out=OUT, jobs=1)
    run = str(study.runs[0]["run"])
    store, memory = store_of(OUT), fsspec.filesystem("memory")
    assert isinstance(store, RemoteStore)
    assert manifest_of(store, run) is not None
    put: list[str] = []
    whole = {path: memory.cat(path) for path in memory.find("bucket/study")}

    def broken(self: Any, source: str, target: str, **more: Any) -> None:
        put.append(Path(source).name)
        if len(put) == 3:
            raise OSError("the network is gone")

    folder = tmp_path / f"run={run}"
    folder.mkdir()
    for name in (*(f"{letter}.parquet" for letter in "abc"), MANIFEST):
        (folder / name).write_bytes(b"{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", broken)
        with pytest.raises(OSError, match="the network is gone"):
            store._publish(folder)
    assert put == ["a.parquet", "b.parquet", "c.parquet"]  # the manifest would have been the last
    assert manifest_of(store, run) is None
    assert len(Study.open(OUT).unfinished) == 1
    again = sweep(tiny, {"seed": [1]}, out=OUT, jobs=1)
    assert len(again.finished) == 1
    assert set(whole) <= set(memory.find("bucket/study"))


def test_what_stands_at_an_address_is_not_replaced(tiny: Path) -> None:
    fsspec.filesystem("memory").pipe_file("bucket/study/notes.txt", b"dear to me")
    with pytest.raises(InputError, match="holds no study"):
        sweep(tiny, {"seed": [1]}, out=OUT, jobs=1)


@pytest.mark.parametrize("address", ["nonsuch://bucket/study"])
def test_addresses_that_nobody_knows_are_refused(tiny: Path, address: str) -> None:
    with pytest.raises(InputError, match="nonsuch"):
        sweep(tiny, {"seed": [1]}, out=address, jobs=1)
