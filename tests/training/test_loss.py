import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.build_job import write_model
from tests.training.gang import start_mains, wait_for
from training.config import TrainingConfig
from training.data import IGNORED, Batch
from training.loss import summed_loss
from training.model import load_model

VOCABULARY, WIDTH = 126, 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {tied: write_model(tmp_path_factory.mktemp("model"), tied=tied) for tied in (True, False)}


def load(folder, chunk_tokens=5, **settings):
    settings = {"precision": "float32", "loss_chunk_tokens": chunk_tokens, **settings}
    return load_model(str(folder), TrainingConfig.model_validate(settings))


def random_batch(seed=0, rows=2, length=23):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    targets = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < 0.4] = IGNORED
    return Batch(ids, torch.arange(length).repeat(rows, 1), targets)


def plain_loss(model, batch):
    """Cross entropy over the logits of all tokens, as Hugging Face computes it."""
    logits = model(batch.input_ids, batch.position_ids).float()
    return functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def gradients(model, losses):
    """Of all weights, summed over losses that are scaled as a rank scales them."""
    model.zero_grad()
    for number, loss in enumerate(losses):
        (loss * (0.37 + number)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("chunk_tokens", "checkpointing"),
    [(1, False), (5, False), (5, True), (1000, False)],
    ids=["1", "5", "5, gradient checkpointing", "1000"],
)
def test_loss_and_all_gradients_are_those_of_plain_cross_entropy(folders, tied, chunk_tokens, checkpointing):
    model = load(folders[tied], chunk_tokens, gradient_checkpointing=checkpointing)
    batches = [random_batch(0), random_batch(1, rows=1, length=40)]
    for batch in batches:
        torch.testing.assert_close(summed_loss(model, batch), plain_loss(model, batch), rtol=1e-6, atol=0)
    chunked = gradients(model, (summed_loss(model, batch) for batch in batches))
    plain = gradients(model, (plain_loss(model, batch) for batch in batches))
    assert ("model.lm_head.weight" in chunked) is not tied
    for name, gradient in plain.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_head_with_a_bias_gets_its_gradients_too(folders):
    model = load(folders[False])
    head = model.model.lm_head
    head.bias = torch.nn.Parameter(torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)))
    chunked, plain = (gradients(model, [loss(model, random_batch())]) for loss in (summed_loss, plain_loss))
    torch.testing.assert_close(chunked["model.lm_head.bias"], plain["model.lm_head.bias"], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_heads_gradient_is_as_exact_as_that_of_plain_cross_entropy(folders):
    batch = random_batch(rows=8, length=64)
    reference = load(folders[False])
    exact = gradients(reference, [plain_loss(reference, batch)])["model.lm_head.weight"]
    model = load(folders[False], 64, precision="bfloat16")
    errors = [
        (gradients(model, [loss(model, batch)])["model.lm_head.weight"].float() - exact).norm().item()
        for loss in (summed_loss, plain_loss)
    ]
    assert errors[0] < 1.1 * errors[1] < 0.1 * exact.norm().item()


def test_a_frozen_head_passes_gradients_on_and_gets_none(folders):
    model = load(folders[False])
    model.model.lm_head.weight.requires_grad_(False)
    summed_loss(model, random_batch()).backward()
    assert model.model.lm_head.weight.grad is None
    frozen = model.model.model.norm.weight.grad.clone()
    model.zero_grad()
    plain_loss(model, random_batch()).backward()
    torch.testing.assert_close(frozen, model.model.model.norm.weight.grad, rtol=1e-4, atol=1e-5)


def test_padding_alone_has_no_loss_but_a_gradient_of_zero_for_every_weight(folders):
    model = load(folders[True])
    batch = random_batch()
    loss = summed_loss(model, Batch(batch.input_ids, batch.position_ids, torch.full_like(batch.targets, IGNORED)))
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, [loss]).values())


def test_a_loss_without_gradients_computes_none(folders):
    model, batch = load(folders[True]), random_batch()
    with torch.no_grad(), Computed() as without:
        loss = summed_loss(model, batch)
    assert not loss.requires_grad
    with Computed() as seen:
        assert loss.item() == summed_loss(model, batch).item()
    adds_to_the_weights_gradient = torch.ops.aten.addmm_.default
    assert adds_to_the_weights_gradient in seen.operations - without.operations


def test_a_second_backward_pass_is_an_error_and_not_a_wrong_gradient(folders):
    loss = summed_loss(load(folders[True]), random_batch())
    (loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 2).backward()


@pytest.mark.parametrize("chunk_tokens", [4, 16])
def test_logits_never_exist_for_more_tokens_than_a_chunk(folders, chunk_tokens):
    model = load(folders[True], chunk_tokens)
    with Computed() as seen:
        summed_loss(model, random_batch(rows=4, length=50)).backward()
    assert seen.logits == chunk_tokens


class Computed(TorchDispatchMode):
    """Notes every operation, and the most tokens for which logits were computed at once."""

    def __init__(self):
        super().__init__()
        self.operations, self.logits = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.add(func)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                tokens = tensor.numel() // VOCABULARY
                self.logits = max(self.logits, tokens if tokens != WIDTH else 0)  # the transposed weight
        return out


def test_the_heads_gradient_is_the_same_tied_and_untied_in_every_zero_stage(folders, tmp_path):
    log = tmp_path / "log"
    ranks = start_mains("tests.training.compare_gradients", 2, log, str(folders[True]), str(folders[False]))
    assert wait_for(ranks) == [0, 0], log.read_text()[-3000:]
