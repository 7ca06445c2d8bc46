import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fleetsim.errors import DataError
from fleetsim.workload.convert import synthesise
from fleetsim.workload.describe import describe_trace
from fleetsim.workload.embedded import embedded_names, embedded_trace, folder
from fleetsim.workload.fetch import download, fetch_trace
from fleetsim.workload.formats import FORMATS
from fleetsim.workload.traces import PublicTrace, find_trace, list_traces

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_manifest_says_what_is_known():
    for trace in list_traces():
        assert trace.format in FORMATS or trace.format == "lengths"
        assert trace.licence
        assert trace.columns
        assert trace.embedded or trace.url.startswith("https://")
        assert (trace.sha256 is None) == (trace.sha256_from is None)
        assert trace.sha256_from in (None, "computed", "git-lfs")
        assert trace.sha256 is None or (len(trace.sha256) == 64 and trace.bytes)
        assert trace.embedded or trace.sha256 or "not verified" in trace.note or "checksum not known" in trace.note
        assert all(isinstance(text, str) for text in trace.row().values())


def test_default_trace_is_what_its_command_makes(tmp_path):
    synthesise("azure2023-conv", 3000, 7, tmp_path / "default.csv.gz")
    carried = embedded_trace("default")
    assert carried.stat().st_size < 200_000
    assert gzip.decompress((tmp_path / "default.csv.gz").read_bytes()) == gzip.decompress(carried.read_bytes())
    command = "fleetsim trace synth azure2023-conv traces/default.csv.gz --requests 3000 --seed 7"
    assert command in (folder() / "README.md").read_text()
    assert find_trace("default").source == command
    assert embedded_names() == ["default"]
    assert describe_trace("embedded:default")["requests"] == 3000


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`; can break off, ignore ranges or answer with an error."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.stop_after = None
        self.ranges = True
        self.status = None
        self.asked = []

    def trace(self, sha256=DIGEST):
        url = f"http://127.0.0.1:{self.server_address[1]}/t.bin"
        return PublicTrace("t", "a trace", "azure", "CC0", "nowhere", "t.bin", url, sha256)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if wanted and server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.stop_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_is_verified(server, tmp_path):
    steps = []
    told = download(server.trace(), tmp_path / "new", lambda have, total: steps.append((have, total)))
    assert Path(told["path"]).read_bytes() == CONTENT
    assert (told["sha256"], told["verified"], told["bytes"]) == (DIGEST, True, len(CONTENT))
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.bin"]
    download(server.trace(), tmp_path / "new")
    assert len(server.asked) == 1  # what is there is checked, not fetched again


def test_download_goes_on_where_it_stopped(server, tmp_path):
    server.stop_after = 700_000
    with pytest.raises(DataError, match="700,000 bytes are kept"):
        download(server.trace(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.bin.part"]
    server.stop_after = None
    assert download(server.trace(), tmp_path)["verified"]
    assert server.asked == [None, "bytes=700000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "t.bin.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert download(server.trace(), tmp_path)["verified"]


def test_a_complete_part_is_taken(server, tmp_path):
    (tmp_path / "t.bin.part").write_bytes(CONTENT)
    assert download(server.trace(), tmp_path)["verified"]


def test_wrong_content_is_thrown_away(server, tmp_path):
    with pytest.raises(DataError, match="is not the original of trace t"):
        download(server.trace("0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "t.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match="move it away"):
        download(server.trace(), tmp_path)
    assert (tmp_path / "t.bin").exists()


def test_without_a_checksum_nothing_is_verified(server, tmp_path):
    assert download(server.trace(None), tmp_path)["verified"] is False


def test_errors_of_the_network(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="HTTP 404"):
        download(server.trace(), tmp_path)
    gone = PublicTrace("t", "", "azure", "", "", "t.bin", "http://127.0.0.1:1/t.bin")
    with pytest.raises(DataError, match="check the connection"):
        download(gone, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        download(server.trace(), tmp_path / "file")
    with pytest.raises(DataError, match="is not a web address"):
        download(PublicTrace("t", "", "azure", "", "", "t.bin", "file:///etc/hostname"), tmp_path)


def test_names_of_traces(tmp_path):
    with pytest.raises(DataError, match='did you mean "azure2023-conv"'):
        find_trace("azure2023-con")
    with pytest.raises(DataError, match="embedded:default"):
        fetch_trace("default", tmp_path)
