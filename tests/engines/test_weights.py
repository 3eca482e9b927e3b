from pathlib import Path

import pytest

from generation.engines.weights import model_digest
from generation.errors import EngineError


def test_the_digest_is_of_contents_and_names_and_not_of_the_folder(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights" if name != "c" else b"weightz")
    digests = {name: model_digest(tmp_path / name) for name in ("a", "b", "c")}
    assert digests["a"] == digests["b"] != digests["c"]


def test_rewritten_weights_are_read_again(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"longer")
    assert model_digest(tmp_path) != before


def test_a_folder_without_weights_is_named(tmp_path: Path):
    with pytest.raises(EngineError, match=str(tmp_path)):
        model_digest(tmp_path)
