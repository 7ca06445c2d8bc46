"""Where a study stands: a folder, or an address that fsspec knows (``s3://…``, ``gs://…``, ``memory://…``).

::

    STUDY/
      study.json          what was asked, and every run that follows from it
      run=ID/             one result folder per finished run, as `fleetsim run` writes it
      failed/ID.json      why a run failed
      summary.parquet     one row per planned run
      manifest.json       how far the study is

A run is finished when its manifest can be read and says so; the manifest is the last of its files to appear.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fleetsim.errors import Finding, InputError
from fleetsim.output.parquet import MANIFEST, STUDY, remove_leftovers

SUMMARY = "summary.parquet"
_HINT = "choose another --out"


class Store(Protocol):
    """A place for the files of a study; it can be pickled."""

    def prepare(self) -> None:
        """Make the place; refuse one that holds something else."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file, if it is there."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def run_folder(self, run: str) -> Any:
        """Context with the folder in which a run's results are to appear; they are in their place when it ends."""
        ...

    def runs(self) -> set[str]:
        """Runs of which there is anything."""
        ...


def store_of(out: str | os.PathLike[str]) -> Store:
    """The place that a folder or an address names."""
    text = os.fspath(out)
    return RemoteStore(text.rstrip("/")) if "://" in text else LocalStore(Path(text).absolute())


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def prepare(self) -> None:
        """Make the folder; remove what killed processes left in it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(Finding("exists and is not a folder", file=str(self), hint=_HINT))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(Finding(f"cannot write there: {error.strerror}", file=str(self))) from error
        if any(self.folder.iterdir()) and not (self.folder / STUDY).is_file():
            raise InputError(Finding("folder is not empty and holds no study", file=str(self), hint=_HINT))
        remove_leftovers(self.folder)

    def read(self, name: str) -> bytes | None:
        """A file, if it is there."""
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write beside it, then rename."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(part).chmod(0o644)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def run_folder(self, run: str) -> Iterator[Path]:
        """The run's own folder: results appear in it at once."""
        yield self.folder / f"run={run}"

    def runs(self) -> set[str]:
        """Runs of which there is a folder."""
        return {path.name.removeprefix("run=") for path in self.folder.glob("run=*")}


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """An address that fsspec knows: files are put there whole, a run's manifest last."""

    address: str

    def __str__(self) -> str:
        return self.address

    def _system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            hint = "pip install 'fleetsim[ray]', and what fsspec needs for this kind of address"
            raise InputError(Finding("needs fsspec", file=self.address, hint=hint)) from None
        try:
            system, root = url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise InputError(Finding(str(error), file=self.address)) from None
        return system, root.rstrip("/")

    def prepare(self) -> None:
        """Refuse an address that holds something else."""
        system, root = self._system()
        held = system.ls(root, detail=False) if system.exists(root) else []
        if held and not system.exists(f"{root}/{STUDY}"):
            raise InputError(Finding("is not empty and holds no study", file=self.address, hint=_HINT))

    def read(self, name: str) -> bytes | None:
        """A file, if it is there."""
        system, root = self._system()
        try:
            content: bytes = system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put the file there."""
        system, root = self._system()
        path = f"{root}/{name}"
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        system, root = self._system()
        if system.exists(f"{root}/{name}"):
            system.rm_file(f"{root}/{name}")

    @contextmanager
    def run_folder(self, run: str) -> Iterator[Path]:
        """A folder of this machine, whose files are put in their place afterwards."""
        with tempfile.TemporaryDirectory(prefix="fleetsim-") as folder:
            path = Path(folder) / f"run={run}"
            yield path
            self._publish(path)

    def _publish(self, folder: Path) -> None:
        files = sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)) if folder.is_dir() else []
        self.remove(f"{folder.name}/{MANIFEST}")
        system, root = self._system()
        system.makedirs(f"{root}/{folder.name}", exist_ok=True)
        for path in files:
            system.put_file(str(path), f"{root}/{folder.name}/{path.name}")

    def runs(self) -> set[str]:
        """Runs of which there are files."""
        system, root = self._system()
        names = (str(path).rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False))
        return {name.removeprefix("run=") for name in names if name.startswith("run=")}


def read_json(store: Store, name: str) -> dict[str, Any] | None:
    """A JSON object, if it is there and whole."""
    content = store.read(name)
    try:
        value = None if content is None else json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def write_json(store: Store, name: str, content: Mapping[str, Any]) -> None:
    """A JSON object."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    store.write(name, f"{text}\n".encode())


def manifest_of(store: Store, run: str) -> dict[str, Any] | None:
    """Manifest of a finished run; None if it is not finished."""
    manifest = read_json(store, f"run={run}/{MANIFEST}")
    return manifest if manifest is not None and manifest.get("status") == "complete" else None
