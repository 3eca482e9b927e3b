import subprocess
import sys

import pytest

from tests.training.build_job import ROOT, free_port, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model")))


def test_zero_stages_offloading_hpz_and_bfloat16_take_the_steps_of_plain_pytorch_and_mistakes_are_errors_of_ours(
    folder,
):
    command = [sys.executable, "-m", "tests.training.compare_engines", folder, str(free_port())]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:]
