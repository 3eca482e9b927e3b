import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main

ROOT = Path(__file__).parents[2]
MINIATURE = str(ROOT / "recipes/miniature")
COMMANDS = [
    "init",
    "check",
    "run",
    "principles",
    "generate",
    "train",
    "evaluate",
    "report",
    "show",
    "submit",
    "logs",
    "status",
    "stop",
]


def ended(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]], ids=["psi", *COMMANDS])
def test_help_fits_eighty_columns(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("Commands:")[-1].split("\n\n")[0] or command


def test_help_imports_nothing_that_takes_time() -> None:
    program = "import sys, cluster.cli\ntry: cluster.cli.main(['--help'])\nexcept SystemExit: pass\n"
    program += "print(sorted({'pydantic', 'pyarrow', 'jinja2', 'ray', 'torch', 'vllm', 'rich'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip() == "[]"


def test_mistakes_end_with_a_message_and_their_exit_code_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["check", MINIATURE, "generation.acepted_rows=3"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "did you mean 'accepted_rows'?" in shown.err
    assert "Traceback" not in shown.err


def test_debug_shows_the_error_itself_wherever_it_stands() -> None:
    from generation.errors import StorageError

    with pytest.raises(StorageError):
        main(["show", "nowhere", "--debug"])


def test_unknown_words_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["rum"]) == 2
    assert ended(["run", MINIATURE, "--limit", "0"]) == 2
    assert "No such command 'rum'" in capsys.readouterr().err


def test_check_prints_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["check", MINIATURE, "generation.accepted_rows=1000"]) == 0
    assert "16,000 rows" in capsys.readouterr().out


def test_train_waits_for_an_unsealed_dataset_until_its_deadline_and_ends_with_9(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"run.output={tmp_path}/run", "training.dataset_deadline_seconds=1"]
    assert ended(["train", MINIATURE, *settings]) == 9
    shown = capsys.readouterr().err
    assert f"train: waiting up to 1 s for {tmp_path}/run/" in shown
    assert "to be sealed by `psi generate`" in shown
    assert "error: " in shown
    assert "holds no SEALED.json" in shown


def _heed_interrupts() -> None:
    """Without this, tests that were started in the background hand down that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_control_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    # A seeds file that is a pipe without a writer: `psi check` waits in the open of it, as long as the test needs.
    os.mkfifo(tmp_path / "seeds.jsonl")
    command = [sys.executable, "-m", "cluster.cli", "check", MINIATURE, f"tasks.0.seeds={tmp_path}/seeds.jsonl"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=_heed_interrupts) as process,
        (tmp_path / "seeds.jsonl").open("w"),
    ):
        process.send_signal(signal.SIGINT)
        _, shown = (
            process.communicate()
        )  # the pipe stays open until the command has ended, or it could read an empty file first
    assert process.returncode == 130
    assert "the same command resumes" in shown
