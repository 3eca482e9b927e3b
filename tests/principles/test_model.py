import json

import pytest

from generation.errors import RecipeError
from generation.principles.model import (
    PRINCIPLE_SCHEMA,
    Difference,
    Principle,
    load_principles,
    principle_id,
    read_principles,
    write_principles,
)
from generation.storage import Store

GOOD = {"task": "t", "level": "skill", "kind": "solve", "text": "Add."}


def test_principles_survive_storage_with_what_was_not_measured(tmp_path):
    store = Store(str(tmp_path))
    full = Principle(
        "1", "t", "task", "solve", "Add.", "sums", ("s1", "s2"), "m", "mine_task", ("c",), 0, ("s3",),
        "validate", 0.5, Difference(0.25, 0.0, 0.5, 8), yield_delta=Difference(0.1, -0.2, 0.3, 32), utility=1.5,
    )  # fmt: skip
    bare = Principle("2", "t", "task", "", "?", status="retired", reason="unreadable: no principle")
    assert write_principles(store, [full, bare]) == "principles/round-0.arrow"
    assert read_principles(store) == [full, bare]
    assert len(PRINCIPLE_SCHEMA) == 24
    with pytest.raises(FileExistsError):
        write_principles(store, [])


def test_one_rule_has_one_id_however_it_is_written():
    assert principle_id("t", "l", "solve", "Add  them.") == principle_id("t", "l", "solve", "add them")
    assert principle_id("t", "l", "solve", "add them") != principle_id("t", "l", "check", "add them")


def write(path, *lines: object) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_principles_of_a_file_are_active(tmp_path):
    path = write(tmp_path / "p.jsonl", GOOD, "", {**GOOD, "kind": "generate", "when": "always"})
    loaded = load_principles(path, ["t"], ["skill"])
    assert [(p.kind, p.when, p.status, p.model) for p in loaded] == [
        ("solve", "", "active", "file"),
        ("generate", "always", "active", "file"),
    ]


def test_every_bad_line_of_a_file_is_named_at_once(tmp_path):
    path = write(
        tmp_path / "p.jsonl", GOOD, "{", "[1]", {**GOOD, "kind": "dance"}, {**GOOD, "task": "u"}, {**GOOD, "text": " "},
        {**GOOD, "why": "?"}, {**GOOD, "text": "ADD"}, {**GOOD, "when": 3},
        {**GOOD, "level": "craft"},
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        load_principles(path, ["t"], ["skill"])
    message = str(caught.value)
    for expected in (
        "line 2: not JSON", "line 3: not a JSON object", "line 4: kind: 'dance'", "line 5: task: 'u'", "line 6: text: missing",
        "line 7: why: unknown", "line 8: the same principle", "line 9: when: not a text",
        "line 10: level: 'craft' is none of principles.levels: skill",
    ):  # fmt: skip
        assert expected in message
    assert "line 1:" not in message


def test_a_file_must_serve_every_task(tmp_path):
    with pytest.raises(RecipeError, match="no principle for task 'u'"):
        load_principles(write(tmp_path / "p.jsonl", GOOD), ["t", "u"], ["skill"])


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="nowhere"):
        load_principles(tmp_path / "nowhere.jsonl", ["t"], ["skill"])
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read"):
        load_principles(tmp_path / "latin.jsonl", ["t"], ["skill"])
