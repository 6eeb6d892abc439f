"""Downloads from a server in this process that fails in every way that servers do."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from segdeform.errors import DownloadError, SegdeformError, UsageError
from segdeform.files import download as download_module
from segdeform.files.download import Checksum, download

CONTENT = bytes(range(256)) * 4000
HALF = len(CONTENT) // 2
SUM = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
OTHER = b"another file" * 100

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges, after the faults that the test has queued."""

    protocol_version = "HTTP/1.1"
    faults: ClassVar[list[Fault]] = []
    always: Fault | None = None
    requests: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.requests.append(self.headers.get("Range"))
        if self.faults:
            self.faults.pop(0)(self)
        elif self.always:
            type(self).always(self)  # type: ignore[misc]
        else:
            self.serve(CONTENT)

    def serve(self, content: bytes, ranges: bool = True) -> None:
        asked = self.headers.get("Range") if ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and start >= len(content):
            return self.reply(416)
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.reply(206 if asked else 200, content[start:], extra if asked else {})

    def reply(
        self,
        code: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


def half(handler: Handler) -> None:
    handler.reply(200, CONTENT[:HALF], length=len(CONTENT))


def reset(handler: Handler) -> None:
    half(handler)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def stall(handler: Handler) -> None:
    half(handler)
    time.sleep(1)


def silence(handler: Handler) -> None:
    time.sleep(1)


def trickle(handler: Handler) -> None:
    handler.reply(200, length=len(CONTENT))
    with contextlib.suppress(OSError):  # the other side ends it
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.02)


def other(handler: Handler) -> None:
    handler.serve(OTHER)


def short_length(handler: Handler) -> None:
    handler.reply(200, CONTENT, length=HALF)


def web_page(handler: Handler) -> None:
    handler.reply(200, b"<html>Please sign in", {"Content-Type": "text/html; charset=utf-8"})


def no_http(handler: Handler) -> None:
    handler.close_connection = True
    handler.wfile.write(b"\x00\x01 what?\r\n\r\n")


def nothing(handler: Handler) -> None:
    handler.close_connection = True


def redirect_to_itself(handler: Handler) -> None:
    handler.reply(302, headers={"Location": handler.path})


def ever_further(handler: Handler) -> None:
    handler.reply(302, headers={"Location": handler.path + "x"})


def code(number: int) -> Fault:
    return lambda handler: handler.reply(number)


def no_ranges(handler: Handler) -> None:
    handler.serve(CONTENT, ranges=False)


def another_part(handler: Handler) -> None:
    handler.reply(206, CONTENT[5:], {"Content-Range": f"bytes 5-{len(CONTENT) - 1}/*"})


def unnamed_part(handler: Handler) -> None:
    handler.reply(206, CONTENT[5:])


def no_length(handler: Handler) -> None:
    handler.reply(200, CONTENT, length=-1)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(download_module, "TIMEOUT", 0.25)
    monkeypatch.setattr(download_module, "PAUSE", 0.001)
    monkeypatch.setattr(download_module, "WINDOW", 0.1)
    monkeypatch.setattr(download_module, "LEAST", 1000)
    Handler.faults, Handler.always, Handler.requests = [], None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file.tar"
    server.shutdown()
    thread.join()
    server.server_close()


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@pytest.mark.parametrize(
    "fault",
    [
        half,
        reset,
        stall,
        silence,
        trickle,
        other,
        short_length,
        web_page,
        no_http,
        nothing,
        redirect_to_itself,
        ever_further,
        another_part,
        *map(code, (400, 401, 403, 404, 410, 416, 429, 500, 502, 503)),
    ],
)
def test_what_does_not_pass_ends_with_12_and_no_file(
    fault: Fault, url: str, tmp_path: Path
) -> None:
    Handler.always = staticmethod(fault)  # type: ignore[assignment]
    with pytest.raises(DownloadError) as caught:
        download(url, tmp_path / "file.tar", SUM)
    assert caught.value.exit_code == 12
    assert url in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "file.tar").exists()
    Handler.always = None
    download(url, tmp_path / "file.tar", SUM)
    assert [path.name for path in tmp_path.iterdir()] == ["file.tar"]


@pytest.mark.parametrize(
    ("fault", "resumed"),
    [
        (half, True),
        (reset, True),
        (stall, True),
        (silence, False),
        (nothing, False),
        (no_http, False),
        (code(503), False),
        (code(429), False),
    ],
)
def test_what_passes_is_overcome(fault: Fault, resumed: bool, url: str, tmp_path: Path) -> None:
    Handler.faults = [fault]
    download(url, tmp_path / "file.tar", SUM)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
    if fault is not reset:  # which may destroy what was under way
        assert Handler.requests == [None, f"bytes={HALF}-" if resumed else None]


@pytest.mark.parametrize("fault", [no_ranges, another_part, unnamed_part, code(416), other])
@pytest.mark.parametrize("left", [CONTENT[:HALF], b"x" * HALF, CONTENT + b"x"])
def test_what_a_former_call_left_is_used_or_given_up(
    fault: Fault, left: bytes, url: str, tmp_path: Path
) -> None:
    part_of(tmp_path / "file.tar").write_bytes(left)
    Handler.faults = [fault]
    download(url, tmp_path / "file.tar", SUM)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.tar"]


def test_data_that_flows_again_from_the_start_is_no_stall(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "WINDOW", 0.0)  # every block is looked at
    monkeypatch.setattr(download_module, "LEAST", 1)
    part_of(tmp_path / "file.tar").write_bytes(CONTENT[:HALF])
    Handler.always = staticmethod(no_ranges)  # type: ignore[assignment]
    download(url, tmp_path / "file.tar", SUM)
    assert Handler.requests == [f"bytes={HALF}-"]
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on(url: str, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == len(CONTENT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(url, tmp_path / "file.tar", SUM, progress=interrupt)
    assert not (tmp_path / "file.tar").exists()
    left = part_of(tmp_path / "file.tar").stat().st_size
    assert 0 < left < len(CONTENT)
    heard: list[tuple[int, int]] = []
    download(url, tmp_path / "file.tar", SUM, progress=lambda *now: heard.append(now))
    assert Handler.requests == [None, f"bytes={left}-"]
    assert heard[0][0] > left and heard[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


def test_a_whole_part_needs_only_its_name(url: str, tmp_path: Path) -> None:
    part_of(tmp_path / "file.tar").write_bytes(CONTENT)
    download(url, tmp_path / "file.tar", SUM)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


def test_a_length_need_not_be_told(url: str, tmp_path: Path) -> None:
    Handler.faults = [no_length]
    download(url, tmp_path / "file.tar", SUM)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "http://nowhere.invalid/x"])
def test_no_server(address: str, url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=address):
        download(address, tmp_path / "new" / "x", SUM)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_that_is_there_is_checked_and_never_replaced(url: str, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(CONTENT)
    download(url, tmp_path / "good", SUM)
    (tmp_path / "bad").write_bytes(OTHER)
    with pytest.raises(DownloadError, match="bad has a wrong checksum; delete it"):
        download(url, tmp_path / "bad", SUM)
    assert (tmp_path / "bad").read_bytes() == OTHER
    assert Handler.requests == []


def test_a_folder_of_that_name_and_a_file_as_folder(url: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder"):
        download(url, tmp_path / "folder", SUM)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/x"):
        download(url, tmp_path / "file" / "x", SUM)


def test_processes_that_want_the_same_file_fetch_it_once(url: str, tmp_path: Path) -> None:
    def slowly(handler: Handler) -> None:
        time.sleep(0.1)
        handler.serve(CONTENT)

    Handler.always = staticmethod(slowly)  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(download, url, tmp_path / "file.tar", SUM) for _ in range(4)]:
            done.result()
    assert len(Handler.requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.tar"]


def test_a_full_disk_is_foreseen(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("segdeform.files.space.shutil.disk_usage", lambda path: Full)
    with pytest.raises(SegdeformError, match=r"needs 1\.0 MB of disk") as caught:
        download(url, tmp_path / "file.tar", SUM)
    assert caught.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def child(url: str, path: Path, before: str) -> subprocess.Popen[str]:
    script = (
        f"import resource, sys\n{before}\n"
        "from pathlib import Path\nfrom segdeform.files.download import Checksum, download\n"
        "from segdeform.errors import SegdeformError\n"
        "def tell(done, total): print(done, flush=True)\n"
        f"try: download({url!r}, Path({str(path)!r}), Checksum(*{tuple(SUM)!r}), progress=tell)\n"
        "except SegdeformError as error: sys.exit(error.exit_code)\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_disk_that_fills_keeps_what_it_has(url: str, tmp_path: Path) -> None:
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {HALF}))"
    process = child(url, tmp_path / "file.tar", limit)
    process.communicate(timeout=60)
    assert process.returncode == 7
    assert [path.name for path in tmp_path.iterdir()] == [".file.tar.part"]
    download(url, tmp_path / "file.tar", SUM)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_continued(number: int, url: str, tmp_path: Path) -> None:
    def hang(handler: Handler) -> None:
        half(handler)
        time.sleep(20)

    Handler.faults = [hang]
    process = child(url, tmp_path / "file.tar", "")
    assert process.stdout is not None and process.stdout.readline().strip().isdecimal()
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    left = part_of(tmp_path / "file.tar").stat().st_size
    assert left > 0 and not (tmp_path / "file.tar").exists()
    download(url, tmp_path / "file.tar", SUM)
    assert Handler.requests[-1] == f"bytes={left}-"
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
