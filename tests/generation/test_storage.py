from pathlib import Path

import pytest

from generation.errors import StorageError
from generation.storage import Store


def test_a_new_file_is_written_once_and_leaves_nothing_beside_it(tmp_path: Path):
    store = Store(str(tmp_path))
    store.write_new("a/b.json", b"1")
    with pytest.raises(FileExistsError):
        store.write_new("a/b.json", b"2")
    store.replace("a/c.json", b"3")
    store.replace("a/c.json", b"4")
    assert (store.read("a/b.json"), store.read("a/c.json")) == (b"1", b"4")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == store.names("a") == ["b.json", "c.json"]


def test_a_file_where_a_folder_should_be_is_no_file_that_was_written_first(tmp_path: Path):
    (tmp_path / "drivers").write_text("")
    with pytest.raises(StorageError, match="drivers/1: cannot write"):
        Store(str(tmp_path)).write_new("drivers/1", b"")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="aaa: cannot read"):
        Store(str(tmp_path)).names("a" * 300)


def test_an_unknown_kind_of_uri_and_one_that_is_not_written_are_named():
    with pytest.raises(StorageError, match="foo://bucket/run: cannot be opened"):
        Store("foo://bucket/run").exists("a")
    with pytest.raises(StorageError, match="mock://run: only local and mounted"):
        Store("mock://run").write_new("a", b"")
