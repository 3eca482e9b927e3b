import numpy as np
import pytest
import torch

from generation.errors import TrainingError
from tests.training.build_job import make_job, write_dataset, write_model
from training.chat import load_encoder
from training.data import make_batch
from training.loss import summed_loss
from training.model import check_fit, load_model
from training.prepare import prepare
from training.token_rows import open_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def test_loss_and_gradients_of_packed_rows_are_the_sums_of_the_separate_ones(folder, tmp_path):
    job = make_job(tmp_path / "job", folder, write_dataset(tmp_path / "dataset"), None)
    encoder, model = load_encoder(str(folder)), load_model(str(folder), job.config)
    rows = open_rows(prepare(job, encoder)).train

    def loss_and_gradients(*bins):
        model.zero_grad()
        losses = [summed_loss(model, make_batch(bin_rows, rows, encoder.pad_id, flat=False)) for bin_rows in bins]
        sum(losses).backward()
        return sum(losses).item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}

    separate = loss_and_gradients(*([np.array([row])] for row in range(4)))
    packed = loss_and_gradients([np.array([0, 1, 2]), np.array([3])], [np.empty(0, np.int64)])
    assert packed[0] == pytest.approx(separate[0], rel=1e-5)
    for name, gradient in separate[1].items():
        torch.testing.assert_close(packed[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_a_folder_without_safetensors_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(TrainingError, match="cannot load the model"):
        load_model(str(tmp_path), make_job(tmp_path, folder, "", None).config)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "linear", "factor": 2.0}, 4096),
    ],
)
def test_rows_that_are_longer_than_what_the_model_was_made_for_are_refused(folder, tmp_path, rope, positions):
    model = load_model(str(folder), make_job(tmp_path, folder, "", None).config)
    model.model.config.rope_parameters |= rope
    check_fit(model, 125, positions)
    with pytest.raises(TrainingError, match=rf"{positions + 1} tokens, .* set training\.max_tokens = {positions}"):
        check_fit(model, 125, positions + 1)


def test_a_token_without_an_embedding_is_refused(folder, tmp_path):
    model = load_model(str(folder), make_job(tmp_path, folder, "", None).config)
    with pytest.raises(TrainingError, match="token 126 of the data has no embedding, the model has 126"):
        check_fit(model, 126, 10)
