import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import Workload
from fleetsim.workload.build import build_workload

_ADAPTER = TypeAdapter(Workload)
_FIXED = {"distribution": "fixed", "value": 10}


def trace(tmp_path, seed=7, **block):
    """Workload that replays a file of `tmp_path`."""
    return build_workload(_ADAPTER.validate_python({"kind": "trace", **block}), tmp_path, Streams(seed))


def synthetic(seed=7, **block):
    """Synthetic workload; lengths are 10 tokens unless given."""
    block = {"prompt_tokens": _FIXED, "output_tokens": _FIXED, **block} if "profile" not in block else block
    return build_workload(_ADAPTER.validate_python({"kind": "synthetic", **block}), Path(), Streams(seed))


def told(request):
    """What a request asks for, as a tuple that can be compared."""
    content = request.content
    known = None if content is None else (content.runs, content.hashes, content.hash_tokens)
    return (
        request.id,
        request.arrival_s,
        request.prompt_tokens,
        request.output_tokens,
        known,
        request.session,
        request.turn,
        request.klass,
        request.tenant,
        request.model,
    )


@pytest.fixture(scope="session")
def data_dir():
    """Folder of the evaluation data, which is not part of the repository."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FLEETSIM_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no evaluation data at {folder} (set FLEETSIM_DATA)")
    return folder
