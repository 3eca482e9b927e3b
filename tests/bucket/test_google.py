"""`gs://` by the same interface, against a stand-in of ours that honours ifGenerationMatch; nobody has tried the real one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from generation.errors import StorageError
from generation.large_files import download, upload
from generation.retry import Patience
from generation.storage import Store
from tests.bucket.google import Google, google_stand_in
from tests.bucket.threads import at_once


@pytest.fixture
def google() -> Iterator[Google]:
    with google_stand_in() as google:
        yield google


@pytest.fixture
def store(google: Google) -> Store:
    uri = f"gs://anonymous@bucket/run/one{google.uri_options}"
    return Store(uri, Patience(60.0, sleep=lambda seconds: None))


def test_an_object_is_written_once_read_listed_and_deleted(store: Store):
    assert (store.exists(""), store.names("a")) == (False, [])
    store.write_new("a/b c.json", b"1")
    with pytest.raises(FileExistsError):
        store.write_new("a/b c.json", b"1")
    store.replace("a/c.json", b"3")
    store.replace("a/c.json", b"44")
    assert (store.read("a/b c.json"), store.child("a").read("c.json")) == (b"1", b"44")
    assert [store.exists(name) for name in ("", "a", "a/c.json", "a/d.json")] == [True, True, True, False]
    assert store.sizes("a") == {"b c.json": 1, "c.json": 2}
    assert store.tree() == ["a/b c.json", "a/c.json"]
    store.delete("a/b c.json")
    store.delete("a/b c.json")
    assert store.names("a") == ["c.json"]


def test_what_may_pass_is_tried_again_and_what_lasts_is_said(google: Google, store: Store):
    google.fails = [503, 429, 500]
    store.write_new("a", b"1")
    google.fails = [403]
    with pytest.raises(StorageError, match=r"HTTP status 403.*give this user the right"):
        store.replace("a", b"2")
    assert store.read("a") == b"1"


def test_an_object_whose_answer_was_lost_is_known_as_ones_own_and_an_equal_one_of_another_writer_is_not(
    google: Google, store: Store
):
    google.loses = 1
    store.write_new("ours", b"1")
    store.write_new("theirs", b"1")
    google.loses = 1
    with pytest.raises(FileExistsError):
        store.write_new("theirs", b"1")


def test_of_writers_at_the_same_moment_exactly_one_wins_and_knows_it(store: Store):
    def wins(content: bytes) -> bool:
        try:
            store.write_new("claim", content)
        except FileExistsError:
            return False
        return True

    won = at_once([lambda writer=writer: wins(str(writer).encode()) for writer in range(16)])
    assert won.count(True) == 1
    assert store.read("claim") == str(won.index(True)).encode()


def test_a_large_file_comes_and_goes_whole(store: Store, tmp_path: Path):
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    upload(store, {"large": tmp_path / "large"})
    download(store, {"large": tmp_path / "back"})
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
