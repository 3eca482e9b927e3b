"""Stores in a bucket: moto's server behind a proxy that plants faults."""

import os
import pickle
import socket
import subprocess
import sys
from collections import Counter, deque
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.errors import StorageError
from generation.retry import Patience, may_pass
from generation.s3 import open_s3
from generation.storage import Store, json_bytes
from generation.uris import below, beside, folder_and_name
from tests.bucket.proxy import FAULTS, Proxy, faulty
from tests.bucket.server import BUCKET
from tests.bucket.threads import at_once

_numbers = count()


def hasty(uri: str) -> Store:
    """Tries again at once, so often that the SDK of pyarrow, which repeats too, uses up no test's faults."""
    return Store(uri, Patience(60.0, sleep=lambda seconds: None))


def test_an_object_is_written_once_read_listed_and_deleted(uri: str):
    store = Store(uri)
    assert (store.exists(""), store.names("a")) == (False, [])
    store.write_new("a/b.json", b"1")
    with pytest.raises(FileExistsError):
        store.write_new("a/b.json", b"1")
    store.replace("a/c.json", b"3")
    store.child("a").replace("c.json", b"44")
    assert (store.read("a/b.json"), store.child("a").read("c.json")) == (b"1", b"44")
    assert [store.exists(name) for name in ("", "a", "a/b.json", "a/d.json")] == [True, True, True, False]
    assert store.sizes("a") == {"b.json": 1, "c.json": 2}
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert (store.names("a"), store.names("")) == (["c.json"], [])


def test_an_object_takes_one_put_however_large_it_is(proxy: Proxy, uri: str):
    store = Store(uri)
    store.write_new("first", b"")
    proxy.asked.clear()
    content = os.urandom(8_000_000)
    store.write_new("rows/large", content)
    assert proxy.kinds() == Counter(PUT=1)
    assert store.read("rows/large") == content
    assert proxy.kinds() == Counter(PUT=1, HEAD=1, GET=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(proxy: Proxy, uri: str, fault: str):
    store = hasty(uri)
    for call, content in {"write_new": b"first" * 1000, "replace": b"whole" * 1000}.items():
        proxy.faults.extend([fault] * 2)
        getattr(store, call)("a", content)
    proxy.faults.extend([None, fault])
    assert store.read("a") == content
    proxy.faults.append(fault)
    assert store.names("") == ["a"]
    proxy.faults.append(fault)
    store.delete("a")
    assert not store.exists("a")


def test_an_object_whose_answer_was_lost_is_known_as_ones_own_and_an_equal_one_of_another_writer_is_not(
    proxy: Proxy, uri: str
):
    store = hasty(uri)
    proxy.faults.append("lost answer")
    store.write_new("ours", b"1")
    store.write_new("theirs", b"1")
    proxy.faults.append("lost answer")
    with pytest.raises(FileExistsError):
        store.write_new("theirs", b"1")


def test_a_store_that_nothing_leads_to_may_be_reached_a_little_later(proxy: Proxy):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options = {"endpoint_override": f"127.0.0.1:{closed.getsockname()[1]}", "scheme": "http"}
        objects = open_s3("us-east-1", tuple(options.items()), os.getpid())
        for call in (lambda: objects.put("bucket/a", b""), lambda: objects.delete("bucket/a")):
            with pytest.raises(OSError, match="connect") as raised:
                call()
            assert may_pass(raised.value)


def test_credentials_that_are_not_there_yet_are_looked_for_again(proxy: Proxy, tmp_path, monkeypatch):
    options = (("endpoint_override", "127.0.0.1:1"), ("scheme", "http"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(OSError, match="no AWS credentials in the environment"):
        open_s3("us-east-1", options, os.getpid())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    assert open_s3("us-east-1", options, os.getpid())


@pytest.mark.parametrize("after", [{"a": 1, "b": [2, 3]}, {}], ids=["longer", "shorter"])
def test_an_object_that_is_replaced_while_it_is_read_is_read_whole(proxy: Proxy, uri: str, after: dict):
    store = Store(uri)
    store.replace("beat", b'{"a":1}')

    def replaced_after_its_size_was_asked() -> None:
        if proxy.kinds() == Counter(PUT=1, HEAD=1):
            proxy.draw = lambda: None
            store.replace("beat", json_bytes(after))

    proxy.draw = replaced_after_its_size_was_asked
    assert store.read_json("beat") == after
    assert proxy.kinds()["PUT"] == 2


def test_a_store_that_overwrites_what_it_was_asked_not_to_is_refused(
    store_port: int, uri: str, proxy: Proxy, monkeypatch
):
    with faulty(store_port) as old:
        forward = old.forward

        def without_condition(handler, body):
            del handler.headers["If-None-Match"]
            return forward(handler, body)

        old.forward = without_condition  # type: ignore[method-assign]
        with pytest.raises(StorageError, match=r"overwrites objects .* conditional writes"):
            Store(f"s3://{BUCKET}/old{old.uri_options}").write_new("a", b"1")


def test_a_bucket_that_is_not_there_or_refuses_is_said_at_once(proxy: Proxy, uri: str, monkeypatch):
    with pytest.raises(StorageError, match=r"NoSuchBucket.*check run\.output"):
        Store(f"s3://elsewhere/run{proxy.uri_options}").write_new("a", b"1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StorageError, match=r"no AWS credentials in the environment.*right to use it"):
        Store(uri.replace("us-east-1", "eu-west-1")).write_new("a", b"1")


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/run", "gs://secret@bucket/run", "s3://key:se/cret@bucket/run"])
def test_an_uri_with_credentials_is_refused_without_saying_them(uri: str):
    with pytest.raises(StorageError) as refused:
        Store(uri).exists("a")
    assert "holds credentials" in str(refused.value)
    assert "ret" not in str(refused.value)


def test_a_missing_package_is_named(uri: str):
    program = "import sys; sys.modules['botocore.config'] = None\nfrom generation.storage import Store, json_bytes\n"
    program += f"store = Store({uri!r}); print(store.names('')); store.write_new('a', b'1')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert "install psi[s3]" in done.stderr


def test_an_uri_keeps_its_options_behind_the_path():
    uri = "s3://bucket/run?region=eu"
    assert below(uri, "a/b") == "s3://bucket/run/a/b?region=eu"
    assert beside(uri, "-preview") == "s3://bucket/run-preview?region=eu"
    assert folder_and_name("s3://bucket/run/a?region=eu") == (uri, "a")
    assert (below("/run?", "a"), beside("/run/", "-b"), folder_and_name("/run/a")) == (
        "/run?/a",
        "/run-b",
        ("/run", "a"),
    )


def test_a_store_in_a_bucket_travels_between_processes(uri: str):
    Store(uri).write_new("a", b"1")
    assert pickle.loads(pickle.dumps(Store(uri))).read("a") == b"1"


steps = st.lists(st.none() | st.sampled_from(FAULTS[:5]), max_size=12)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=steps, patience=st.sampled_from([0.0, 60.0]))
def test_whatever_fails_an_object_is_absent_or_whole_and_there_for_good_once_a_write_has_returned(
    proxy: Proxy, uri: str, faults: list[str | None], patience: float
):
    sound, folder = Store(uri), f"any-{next(_numbers)}"
    store, written = Store(uri, Patience(patience, sleep=lambda seconds: None)), dict[str, bytes]()
    for name, call in [("a", "write_new"), ("b", "replace"), ("a", "write_new"), ("b", "replace")]:
        content = f"{name} {len(written)} {call}".encode() * 100
        proxy.faults = deque(faults)
        try:
            getattr(store, call)(f"{folder}/{name}", content)
            assert call == "replace" or name not in written
            written[name] = content
        except FileExistsError:
            assert name in written
        except StorageError:
            proxy.faults.clear()
            found = sound.read(f"{folder}/{name}") if sound.exists(f"{folder}/{name}") else None
            assert found in (None, content, written.get(name))
            assert name not in written or found is not None
            if found is not None:
                written[name] = found
        proxy.faults.clear()
        assert {name: sound.read(f"{folder}/{name}") for name in sound.names(folder)} == written


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writers=st.integers(2, 12), faults=steps)
def test_of_writers_at_the_same_moment_exactly_one_wins_and_knows_it(
    proxy: Proxy, uri: str, writers: int, faults: list[str | None]
):
    name = f"claims/{next(_numbers)}"
    proxy.faults = deque(faults)

    def wins(content: bytes) -> bool:
        try:
            hasty(uri).write_new(name, content)
        except FileExistsError:
            return False
        return True

    won = at_once([lambda writer=writer: wins(str(writer).encode()) for writer in range(writers)])
    proxy.faults.clear()
    assert won.count(True) == 1
    assert Store(uri).read(name) == str(won.index(True)).encode()
