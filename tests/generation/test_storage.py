import errno
import http.server
import os
import pickle
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.errors import StorageError
from generation.retry import Patience, may_pass
from generation.storage import Store

PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN)
LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
CONTENT = b"row" * 1000


@dataclass
class Time:
    """A clock that only sleeping moves; `while_asleep` is what others do meanwhile."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)
    while_asleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.while_asleep()

    def patience(self, seconds: float = 60.0) -> Patience:
        return Patience(seconds, lambda: self.now, self.sleep)


class Faults:
    """Plants errors in calls of `os`: ("link", EIO, True) makes the next link happen and its answer be lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faults: list[tuple[str, int, bool]]) -> None:
        self.left = deque(faults)
        for name in ("link", "fsync", "replace"):
            monkeypatch.setattr(os, name, self._around(name, getattr(os, name)))

    def _around(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            fails = self.left.popleft() if self.left and self.left[0][0] == name else None
            if fails is None or fails[2]:
                real(*arguments)
            if fails is not None:
                raise OSError(fails[1], os.strerror(fails[1]))

        return call


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_new_file_is_written_once_and_leaves_nothing_beside_it(tmp_path: Path):
    store = Store(str(tmp_path))
    store.write_new("a/b.json", b"1")
    with pytest.raises(FileExistsError):
        store.write_new("a/b.json", b"2")
    store.replace("a/c.json", b"3")
    store.replace("a/c.json", b"4")
    assert (store.read("a/b.json"), store.read("a/c.json")) == (b"1", b"4")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == store.names("a") == ["b.json", "c.json"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.sizes("a") == {"c.json": 1}


def test_a_file_where_a_folder_should_be_is_no_file_that_was_written_first(tmp_path: Path):
    (tmp_path / "drivers").write_text("")
    with pytest.raises(StorageError, match=r"drivers/1: cannot write: .*; a file stands where a folder should be"):
        Store(str(tmp_path)).write_new("drivers/1", b"")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="aaa: cannot read"):
        Store(str(tmp_path)).names("a" * 300)


def test_an_unknown_kind_of_uri_and_one_that_is_not_written_are_named():
    with pytest.raises(StorageError, match="foo://bucket/run: cannot be opened"):
        Store("foo://bucket/run").exists("a")
    with pytest.raises(StorageError, match="mock://run: only local and mounted filesystems, s3:// and gs://"):
        Store("mock://run").write_new("a", b"")


@pytest.mark.parametrize("call", ["write_new", "replace"])
@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_what_may_pass_is_tried_again_after_growing_pauses(tmp_path, monkeypatch, call: str, number: int):
    time = Time()
    Faults(monkeypatch, [("fsync", number, False)] * 5)
    getattr(Store(str(tmp_path / "run"), time.patience()), call)("a", b"whole")
    assert visible(tmp_path / "run") == {"a": b"whole"}
    assert len(time.pauses) == 5
    assert all(pause <= 0.1 * 2**attempt for attempt, pause in enumerate(time.pauses, 1))


@pytest.mark.parametrize("number", LASTING, ids=errno.errorcode.get)
def test_what_lasts_is_said_at_once(tmp_path, monkeypatch, number: int):
    time = Time()
    Faults(monkeypatch, [("link", number, False)])
    with pytest.raises(StorageError, match="a: cannot write"):
        Store(str(tmp_path), time.patience()).write_new("a", b"1")
    assert (time.pauses, visible(tmp_path)) == ([], {})


def test_trouble_that_does_not_pass_in_time_ends_with_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    time = Time()
    Faults(monkeypatch, [("link", errno.ENOSPC, False)] * 1000)
    with pytest.raises(
        StorageError, match=r"run/a: cannot write: .*No space left.*; tried \d+ times in 60 s; free some"
    ):
        Store(str(tmp_path / "run"), time.patience(60)).write_new("a", b"1")
    assert time.now == pytest.approx(60)
    assert 8 < len(time.pauses) < 100
    assert visible(tmp_path / "run") == {}


def test_without_patience_there_is_one_attempt(tmp_path, monkeypatch):
    time = Time()
    Faults(monkeypatch, [("fsync", errno.EIO, False)])
    with pytest.raises(StorageError, match=r"Input/output error; see to the storage"):
        Store(str(tmp_path), time.patience()).patient(0).child("b").write_new("a", b"1")
    assert time.pauses == []


def test_a_file_whose_answer_was_lost_is_known_as_ones_own_and_an_equal_one_of_another_writer_is_not(
    tmp_path, monkeypatch
):
    time = Time()
    store = Store(str(tmp_path), time.patience())
    Faults(monkeypatch, [("link", errno.ETIMEDOUT, True)])
    store.write_new("ours", b"1")
    assert len(time.pauses) == 1
    time.while_asleep = lambda: (tmp_path / "theirs").write_bytes(b"1")
    Faults(monkeypatch, [("link", errno.ETIMEDOUT, False)])
    with pytest.raises(FileExistsError):
        store.write_new("theirs", b"1")


steps = st.tuples(st.sampled_from(["link", "fsync", "replace"]), st.sampled_from(PASSING + LASTING[:1]), st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(steps, max_size=12), seconds=st.sampled_from([0.0, 1.0, 60.0]))
def test_whatever_fails_a_file_is_absent_or_whole_and_there_for_good_once_a_write_has_returned(
    tmp_path_factory, faults, seconds
):
    folder, time = tmp_path_factory.mktemp("run"), Time()
    store, written = Store(str(folder), time.patience(seconds)), {}
    for name, call in [("a", "write_new"), ("b", "replace"), ("a", "write_new"), ("b", "replace"), ("c", "write_new")]:
        content = f"{name} {len(written)} {call}".encode() * 1000
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, faults)
            try:
                getattr(store, call)(name, content)
            except FileExistsError:
                assert name in visible(folder)
                continue
            except StorageError:
                found = visible(folder).get(name)
                assert found in (None, content, written.get(name))
                written.pop(name, None)
                if found is not None:
                    written[name] = found
                continue
        if call == "write_new":
            assert name not in written
        written[name] = content
        assert visible(folder) == written


@contextmanager
def tiny_disk(folder: Path, options: str = "size=1m") -> Iterator[Path]:
    """A filesystem of 1 MB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_write_waits_for_space_on_a_full_disk(tmp_path):
    time = Time()
    with tiny_disk(tmp_path / "disk") as disk:
        (disk / "other").write_bytes(b"x" * 900_000)
        time.while_asleep = lambda: (disk / "other").unlink() if len(time.pauses) == 3 else None
        Store(str(disk), time.patience()).write_new("rows/a", b"y" * 500_000)
        assert len(time.pauses) == 3
        assert {path.name: path.stat().st_size for path in (disk / "rows").iterdir()} == {"a": 500_000}


def test_what_does_not_fit_leaves_all_the_space_to_others(tmp_path):
    with tiny_disk(tmp_path / "disk") as disk:
        with pytest.raises(StorageError, match="No space left on device; tried"):
            Store(str(disk), Time().patience()).write_new("rows/a", b"y" * 2_000_000)
        assert visible(disk / "rows") == {}
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize > 900_000


def test_a_filesystem_that_is_read_only_is_not_waited_for(tmp_path):
    time = Time()
    with (
        tiny_disk(tmp_path / "disk", "size=1m,ro") as disk,
        pytest.raises(StorageError, match=r"Read-only file system.*; give this user"),
    ):
        Store(str(disk), time.patience()).write_new("a", b"1")
    assert time.pauses == []


@dataclass
class Bucket:
    """An object store that answers with the statuses that it is told to, then with `CONTENT`."""

    statuses: deque[int] = field(default_factory=deque)
    requests: int = 0

    def serve(self) -> http.server.ThreadingHTTPServer:
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                bucket.requests += 1
                status = bucket.statuses.popleft() if bucket.statuses else 200
                body = CONTENT if status == 200 else b"<Error><Code>Unheard</Code><Message>m</Message></Error>"
                self.answer(status, body)

            def do_HEAD(self) -> None:
                self.answer(200, CONTENT)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/octet-stream" if status == 200 else "application/xml")
                self.send_header("ETag", '"e"')
                self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def bucket(monkeypatch) -> Iterator[tuple[Bucket, str]]:
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = Bucket()
    with bucket.serve() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        yield bucket, f"s3://bucket/run?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        server.shutdown()


def test_an_object_store_that_throttles_or_fails_is_asked_again(bucket):
    """How many of them the AWS SDK repeats by itself, it does not promise."""
    server, uri = bucket
    server.statuses.extend([429, 502, 504] * 3)
    time = Time()
    assert Store(uri, time.patience()).read("") == CONTENT
    assert server.requests == 10


def test_an_object_store_that_refuses_is_not(bucket):
    server, uri = bucket
    server.statuses.append(403)
    time = Time()
    with pytest.raises(StorageError, match=r"ACCESS_DENIED|HTTP status 403"):
        Store(uri, time.patience()).read("")
    assert time.pauses == []


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("AWS Error SLOW_DOWN during ListObjectsV2 operation: msg", True),
        ("AWS Error SERVICE_UNAVAILABLE during CreateMultipartUpload operation: msg", True),
        ("AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: msg", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("AWS Error NO_SUCH_UPLOAD during CompleteMultipartUpload operation: msg", True),
        ("AWS Error ConditionalRequestConflict (HTTP status 409): m", True),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", True),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file", True),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of msg", True),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: msg", False),
        ("Cannot open for reading: path '/tmp' is a directory", False),
    ],
)
def test_what_pyarrow_says_of_object_stores_is_understood(text: str, passes: bool):
    """Recorded from pyarrow 26 against a server that answered so."""
    assert may_pass(OSError(text)) == passes


def test_a_store_travels_between_processes():
    store = Store("/run").patient(3)
    assert pickle.loads(pickle.dumps(store)) == store
