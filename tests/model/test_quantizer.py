"""SimVQ against the paper's properties, autograd and brute force."""

import pytest
import torch

from codec import errors
from codec.model.quantizer import SimVQ, nearest_code

K, D = 64, 6


@pytest.fixture
def quantizer() -> SimVQ:
    torch.manual_seed(0)
    return SimVQ(K, D)


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trailing", [(), (5,), (3, 4), (2, 3, 4)], ids=["vectors", "speech", "images", "video"])
def test_shapes_follow_the_latent(quantizer: SimVQ, trailing: tuple[int, ...]):
    latent = latents(2, D, *trailing)
    output = quantizer(latent)
    assert output.codes.shape == (2, *trailing)
    assert output.codes.dtype == torch.int64
    assert output.quantized.shape == latent.shape
    assert output.loss.shape == ()


def test_codes_equal_brute_force_in_float64(quantizer: SimVQ):
    vectors = latents(500, D)
    effective = quantizer.effective_codebook().detach()
    distance = torch.cdist(vectors.double(), effective.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_code(vectors, effective), distance.argmin(dim=1))


def test_tiling_does_not_change_codes(quantizer: SimVQ, monkeypatch: pytest.MonkeyPatch):
    vectors, effective = latents(101, D), quantizer.effective_codebook().detach()
    whole = nearest_code(vectors, effective)
    monkeypatch.setattr("codec.model.quantizer.SEARCH_TILE", 7 * K)
    assert torch.equal(nearest_code(vectors, effective), whole)


def test_codebook_stays_bit_equal_and_every_code_moves_at_every_step(quantizer: SimVQ):
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=1e-2)
    frozen = quantizer.codebook.clone()
    assert "codebook" not in dict(quantizer.named_parameters())
    for step in range(5):
        before = quantizer.effective_codebook().detach().clone()
        optimizer.zero_grad()
        quantizer(latents(1, D, 3) + step).loss.backward()  # three vectors: at most three codes are selected
        optimizer.step()
        assert (quantizer.effective_codebook() != before).any(dim=1).all()
    assert torch.equal(quantizer.codebook, frozen)


def test_gradient_of_the_projection_equals_the_papers_update():
    """dL/dW of mean ||C_k W^T - z||^2 is 2 / (N D) * sum (W c_k - z) c_k^T: the update rule's two terms."""
    torch.manual_seed(0)
    quantizer = SimVQ(K, D, bias=False)
    latent = latents(1, D, 200)
    output = quantizer(latent)
    output.loss.backward()
    selected = quantizer.codebook[output.codes[0]]  # d^T C, (N, D)
    weight, z = quantizer.projection.weight.detach(), latent[0].T
    expected = 2 / z.numel() * (weight @ selected.T @ selected - z.T @ selected)
    torch.testing.assert_close(quantizer.projection.weight.grad, expected, atol=1e-6, rtol=1e-4)


def test_latent_gets_the_straight_through_gradient_and_the_commitment(quantizer: SimVQ):
    latent = latents(1, D, 50).requires_grad_()
    output = quantizer(latent)
    upstream = torch.randn(output.quantized.shape, generator=torch.Generator().manual_seed(2))
    ((output.quantized * upstream).sum() + output.loss).backward()
    commitment = quantizer.beta * 2 / latent.numel() * (latent - output.quantized).detach()
    torch.testing.assert_close(latent.grad, upstream + commitment, atol=1e-6, rtol=1e-4)


def test_lookup_in_eval_mode_is_the_quantized_latent_bit_for_bit(quantizer: SimVQ):
    quantizer.eval()
    output = quantizer(latents(2, D, 30))
    assert torch.equal(quantizer.lookup(output.codes), output.quantized)


def test_effective_codebook_is_computed_once_in_eval_mode_and_follows_new_weights(quantizer: SimVQ):
    quantizer.eval()
    first = quantizer.effective_codebook()
    assert quantizer.effective_codebook() is first
    state = {name: value + 1 for name, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(state)
    torch.testing.assert_close(
        quantizer.effective_codebook(), state["codebook"] @ state["projection.weight"].T + state["projection.bias"]
    )


def test_matching_gives_the_codes_the_latents_mean_and_covariance():
    torch.manual_seed(0)
    quantizer = SimVQ(4096, D)
    latent = (latents(1000, D) @ torch.randn(D, D) + 3).T[None]  # (1, D, 1000)
    quantizer.match(latent)
    codes = quantizer.effective_codebook()
    # 4096 Gaussian samples estimate a mean to 1/64 and a covariance to about 1/45 of the scale.
    scale = torch.cov(latent[0]).diagonal().max()
    assert (codes.mean(0) - latent[0].mean(1)).abs().max() < 0.1 * scale.sqrt()
    assert (torch.cov(codes.T) - torch.cov(latent[0])).abs().max() < 0.1 * scale


def test_relative_loss_does_not_depend_on_the_latents_scale():
    torch.manual_seed(0)
    quantizer, latent = SimVQ(K, D, relative_loss=True), latents(1, D, 300)
    quantizer.match(latent)
    small = quantizer(latent).loss
    quantizer.match(latent * 100)
    torch.testing.assert_close(quantizer(latent * 100).loss, small, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_latents_are_refused(quantizer: SimVQ, bad: float):
    latent = latents(1, D, 4)
    latent[0, 2, 1] = bad
    assert not torch.isfinite(quantizer(latent).loss)  # in training the loss tells
    quantizer.eval()
    with pytest.raises(errors.ModelError, match="NaN or infinite"):
        quantizer(latent)


@pytest.mark.parametrize("shape", [(1, D + 1, 4), (1, D, 0), (D,)], ids=["wrong width", "empty", "no batch"])
def test_wrong_shapes_are_refused_by_name(quantizer: SimVQ, shape: tuple[int, ...]):
    with pytest.raises(errors.ModelError, match=r"latents of shape \(B, 6, \.\.\.\)"):
        quantizer(torch.zeros(shape))


@pytest.mark.parametrize("code", [-1, K])
def test_codes_out_of_range_are_refused_by_value(quantizer: SimVQ, code: int):
    with pytest.raises(errors.ModelError, match=rf"0\.\.63, got {code}"):
        quantizer.lookup(torch.tensor([[0, code]]))


def test_search_runs_in_float32_under_autocast(quantizer: SimVQ):
    quantizer.eval()
    latent = latents(1, D, 200)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = quantizer(latent)
    assert torch.equal(under_autocast.codes, quantizer(latent).codes)
