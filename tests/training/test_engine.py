import pytest

from tests.training.build_job import write_model
from tests.training.gang import start_mains, wait_for


@pytest.mark.slow
def test_zero_stages_offloading_hpz_and_bfloat16_take_the_steps_of_plain_pytorch_and_mistakes_are_errors_of_ours(
    tmp_path,
):
    log = tmp_path / "log"
    ranks = start_mains("tests.training.compare_engines", 2, log, str(write_model(tmp_path / "model")))
    assert wait_for(ranks) == [0, 0], log.read_text()[-3000:]
