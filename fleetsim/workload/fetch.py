"""Download of public traces: resumable, checked, and never left half done under the final name."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from fleetsim.errors import DataError, Finding
from fleetsim.workload.traces import PublicTrace, find_trace

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_SCHEMES = ("https", "http")

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the total, if the server tells."""


def fetch_trace(name: str, dest: Path | str, progress: Progress | None = None) -> dict[str, Any]:
    """Download a trace of the manifest into the folder `dest`, going on where an earlier attempt stopped.

    Returns
    -------
    dict
        ``path``, ``bytes``, ``sha256`` of what was received, and ``verified``: whether the manifest knows the checksum.

    Raises
    ------
    DataError
        If there is no such trace, it cannot be reached, or what came is not the file that the manifest means.
    """
    trace = find_trace(name)
    if trace.url is None:
        hint = f'use it as it is: path: "{trace.file}"' if trace.embedded else f"get it from {trace.source}"
        raise DataError(Finding(f'trace "{name}" has no address to fetch it from', hint=hint))
    return download(trace, Path(dest), progress)


def download(trace: PublicTrace, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Download one trace into `folder`; a file already there is checked and kept."""
    assert trace.url is not None
    target = folder / trace.file
    if urlsplit(trace.url).scheme not in _SCHEMES:
        raise DataError(Finding(f"{trace.url} is not a web address", hint=f"allowed: {', '.join(_SCHEMES)}"))
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _receive(trace.url, part, progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise _unreachable(trace, part, error) from None
        except OSError as error:
            raise DataError(Finding(f"cannot be written: {error.strerror or error}", file=str(part))) from None
        _verify(trace, part)
        part.replace(target)
    digest = _verify(trace, target)
    return {"path": str(target), "bytes": target.stat().st_size, "sha256": digest, "verified": trace.sha256 is not None}


def _receive(url: str, part: Path, progress: Progress | None) -> None:
    """Append what `part` still lacks; start again where the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            resumed = have > 0 and answer.status == http.client.PARTIAL_CONTENT
            with part.open("ab" if resumed else "wb") as file:
                _copy(answer, file, have if resumed else 0, progress)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()


def _copy(answer: Any, file: IO[bytes], have: int, progress: Progress | None) -> None:
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length is not None and length.isdecimal() else None
    while block := answer.read(_CHUNK):
        file.write(block)
        have += len(block)
        if progress is not None:
            progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _verify(trace: PublicTrace, path: Path) -> str:
    """Checksum of a file; one that is not the manifest's removes an unfinished download and is an error."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if trace.sha256 is not None and digest != trace.sha256:
        message = f"is not the original of trace {trace.name}: its SHA-256 is {digest}, expected {trace.sha256}"
        hint = "move it away and fetch again"
        if path.name.endswith(".part"):
            path.unlink()
            hint = f"fetch again; if it happens again, {trace.url} has changed"
        raise DataError(Finding(message, file=str(path), hint=hint))
    return digest


def _unreachable(trace: PublicTrace, part: Path, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or error
    if isinstance(error, urllib.error.HTTPError):
        reason = f"HTTP {error.code} {error.reason}"
        error.close()
    kept = f"; {part.stat().st_size:,} bytes are kept and the next attempt goes on from there" if part.exists() else ""
    hint = f"check the connection{kept}. By hand: save {trace.url} as {part.with_name(trace.file)}"
    return DataError(Finding(f"cannot fetch {trace.url}: {reason}", hint=hint))
