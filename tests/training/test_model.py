import numpy as np
import pytest
import torch

from generation.errors import TrainingError
from tests.training.build_job import make_job, write_dataset, write_model
from training.chat import load_encoder
from training.data import make_batch, open_rows
from training.loss import summed_loss
from training.model import check_packing, load_model
from training.prepare import prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 3])
def test_packed_documents_pass_the_check(folder, tmp_path, attention, rows):
    job = make_job(tmp_path, folder, "", None, attention=attention, rows_per_micro_batch=rows)
    check_packing(load_model(job.model, job.config), 126, job.config, CPU)


def test_rounding_in_bfloat16_is_not_taken_for_a_leak(folder, tmp_path):
    job = make_job(tmp_path, folder, "", None, precision="bfloat16")
    check_packing(load_model(job.model, job.config), 126, job.config, CPU)


def test_a_model_whose_packed_documents_see_one_another_is_refused(folder, tmp_path):
    job = make_job(tmp_path, folder, "", None)
    model = load_model(job.model, job.config)

    def with_a_mask(**inputs):
        return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))

    with pytest.raises(TrainingError, match="packed documents see one another"):
        check_packing(with_a_mask, 126, job.config, CPU)


def test_loss_and_gradients_of_packed_rows_are_the_sums_of_the_separate_ones(folder, tmp_path):
    job = make_job(tmp_path / "job", folder, write_dataset(tmp_path / "dataset"), None)
    encoder, model = load_encoder(str(folder)), load_model(str(folder), job.config)
    rows = open_rows(prepare(job, encoder, 0, 1))

    def loss_and_gradient(*bins):
        model.zero_grad()
        losses = [summed_loss(model, make_batch(bin_rows, rows, encoder.pad_id, flat=False)) for bin_rows in bins]
        sum(losses).backward()
        return sum(losses).item(), model.get_input_embeddings().weight.grad.clone()

    separate = loss_and_gradient(*([np.array([row])] for row in range(4)))
    packed = loss_and_gradient([np.array([0, 1, 2]), np.array([3])], [np.empty(0, np.int64)])
    assert packed[0] == pytest.approx(separate[0], rel=1e-5)
    torch.testing.assert_close(packed[1], separate[1], rtol=1e-4, atol=1e-4)


def test_a_folder_without_safetensors_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(TrainingError, match="cannot load the model"):
        load_model(str(tmp_path), make_job(tmp_path, folder, "", None).config)
