"""Downloads from a server on this machine: whole, broken off, resumed, wrong, unreachable."""

import errno
import hashlib
import http.server
import socket
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from vfmbench.errors import MissingError, UserError
from vfmbench.weights.download import OFFLINE_VARIABLES, fetch, offline_by
from vfmbench.weights.external_files import ExternalFile

CONTENT = bytes(range(256)) * 12_000  # 3.1 MB: four reads


@dataclass
class Server:
    """What it does, and what it was asked: the Range header of every request.

    `break_after` holds how many bytes the next answers send before they break off; None: all of them.
    """

    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    break_after: list[int | None] = field(default_factory=list)
    understands_ranges: bool = True
    content: bytes = CONTENT


@pytest.fixture
def server():
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            state.ranges.append(wanted)
            if self.path == "/moved/weights.pth":
                self.send_response(302)
                self.send_header("Location", "/weights.pth")
                self.end_headers()
                return
            if self.path != "/weights.pth":
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.understands_ranges else 0
            if start and start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            self.wfile.write(state.content[start:][: state.break_after.pop(0) if state.break_after else None])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{httpd.server_port}/weights.pth"
        yield state
        httpd.shutdown()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in (*OFFLINE_VARIABLES, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The hub's client keeps what has arrived in pieces of ten megabytes, and waits a second between its attempts.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def file_at(url: str, sha256: str | None = None) -> ExternalFile:
    known = hashlib.sha256(CONTENT).hexdigest()[:8] if sha256 is None else sha256
    return ExternalFile("a test", "MIT", url, 3, sha256=(known,) if known else (), name="dino")


def test_a_whole_transfer(server, caches):
    path = fetch(file_at(server.url))
    assert path == caches / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in caches.iterdir() if not entry.name.startswith(".")] == ["weights.pth"]
    assert server.ranges == [None]
    # What is there is not asked for again.
    assert fetch(file_at(server.url)) == path
    assert server.ranges == [None]


@pytest.mark.parametrize("understands_ranges", [True, False])
def test_a_broken_transfer_goes_on_by_itself(server, caches, understands_ranges):
    server.break_after, server.understands_ranges = [2_000_000, None], understands_ranges
    assert fetch(file_at(server.url)).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=2000000-"]


@pytest.mark.parametrize("understands_ranges", [True, False])
def test_a_transfer_that_breaks_for_good_is_resumed_by_the_next_command(server, caches, understands_ranges):
    server.break_after, server.understands_ranges = [2_000_000, *[0] * 20], True
    file = file_at(server.url)
    with pytest.raises(MissingError, match=r"Cannot fetch dino \(.*; 2 of 3 MB are kept, run it again to go on\)") as error:
        fetch(file)
    assert not file.target.exists()
    assert (caches / "weights.pth.part").read_bytes() == CONTENT[:2_000_000]
    for words in (file.url, str(file.target), file.variable, "By hand"):
        assert words in str(error.value)
    assert error.value.exit_code == 3
    server.ranges.clear()
    server.break_after, server.understands_ranges = [], understands_ranges
    assert fetch(file).read_bytes() == CONTENT
    assert server.ranges == ["bytes=2000000-"]


def test_an_interruption_leaves_what_has_arrived(server, caches, monkeypatch):
    def interrupted(url, stream, **options):
        stream.write(CONTENT[:1_500_000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(file_at(server.url))
    assert fetch(file_at(server.url)).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1500000-"]


@pytest.mark.parametrize(("present", "requests"), [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_part_that_is_whole_already_or_too_long(server, caches, present, requests):
    caches.mkdir(parents=True)
    (caches / "weights.pth.part").write_bytes(present)
    assert fetch(file_at(server.url)).read_bytes() == CONTENT
    assert len(server.ranges) == requests


def test_another_file_is_not_stored(server, caches):
    file = file_at(server.url, "00000000")
    with pytest.raises(MissingError, match=r"another file than the published one: .* not 00000000\. Nothing was stored"):
        fetch(file)
    assert not [entry for entry in caches.iterdir() if not entry.name.startswith(".")]


def test_a_damaged_copy_is_replaced_and_only_by_a_whole_one(server, caches):
    file = file_at(server.url)
    caches.mkdir(parents=True)
    file.target.write_bytes(b"damaged")
    server.break_after = [1000, *[0] * 20]
    with pytest.raises(MissingError):
        fetch(file)
    assert file.target.read_bytes() == b"damaged"
    server.break_after = []
    assert fetch(file).read_bytes() == CONTENT


def test_without_a_known_hash(server, caches):
    assert fetch(file_at(server.url, "")).read_bytes() == CONTENT


def test_a_redirection_keeps_the_range(server, caches):
    caches.mkdir(parents=True)
    (caches / "weights.pth.part").write_bytes(CONTENT[:1000])
    moved = server.url.replace("/weights.pth", "/moved/weights.pth")
    assert fetch(file_at(moved)).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"] * 2


def test_unreachable_and_refusing_servers(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/weights.pth"
        with pytest.raises(MissingError, match=r"Cannot fetch dino \(Connection refused\)") as error:
            fetch(file_at(dead))
    assert dead in str(error.value)
    with pytest.raises(MissingError, match="the server answers 404"):
        fetch(file_at(server.url + "x"))


@pytest.mark.parametrize("variable", OFFLINE_VARIABLES)
def test_nothing_is_asked_for_offline(server, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    assert offline_by() is None
    monkeypatch.setenv(variable, "1")
    assert offline_by() == variable
    with pytest.raises(MissingError, match=f"{variable} is set, so nothing is fetched. By hand: get http"):
        fetch(file_at(server.url))
    assert server.ranges == []


def test_a_full_disk_and_a_folder_that_cannot_be_made(server, caches, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vfmbench.weights.download.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(UserError, match="no room for dino"):
            fetch(file_at(server.url))
    assert server.ranges == []

    def full(url, stream, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(UserError, match=r"Cannot write .*weights\.pth: No space left on device"):
            fetch(file_at(server.url))
    monkeypatch.setenv("TORCH_HOME", __file__)
    with pytest.raises(UserError, match=r"Cannot write .*weights\.pth: Not a directory"):
        fetch(file_at(server.url))
