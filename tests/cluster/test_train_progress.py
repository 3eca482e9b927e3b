import json
from pathlib import Path

from cluster.train_progress import keep_metrics, last_step
from generation.storage import Store


def test_the_last_step_is_that_of_the_last_whole_line_however_long_the_file_is(tmp_path: Path) -> None:
    file = tmp_path / "training.jsonl"
    assert last_step(file) is None
    file.write_text('{"step"')
    assert last_step(file) is None
    file.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 20_001)))
    assert last_step(file) == {"step": 20_000, "loss": 0.5}
    with file.open("a") as stream:
        stream.write('{"step": 20001, "lo')
    assert last_step(file) == {"step": 20_000, "loss": 0.5}


def test_lines_and_boards_of_a_job_are_kept_in_the_run_and_those_of_another_dataset_are_no_part_of_them(
    tmp_path: Path,
) -> None:
    run, lines = Store(str(tmp_path / "run")), []
    for dataset in ("first", "second"):
        metrics = tmp_path / dataset / "training.jsonl"
        keep_metrics(run, metrics, "training")  # before its first step there is nothing
        (metrics.parent / "tensorboard").mkdir(parents=True)
        (metrics.parent / "tensorboard" / "events").write_text(dataset)
        metrics.write_text(dataset)
        keep_metrics(run, metrics, "training")
        lines.append(run.read("metrics/training.jsonl"))
    assert lines == [b"first", b"second"]
    boards = [run.read(f"metrics/tensorboard/training-{dataset}/events") for dataset in ("first", "second")]
    assert boards == [b"first", b"second"]
