"""SimVQ inside a prediction loop: its equations, its memory and what it is for."""

import numpy as np
import pytest
import torch

from codec.errors import ConfigError, ModelError
from codec.model.predictive import PredictiveSimVQ, PredictiveSimVQConfig
from codec.model.quantizer import SimVQ

K, D, P = 64, 4, 3


@pytest.fixture
def quantizer() -> PredictiveSimVQ:
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(K, D, memory=P)
    with torch.no_grad():
        quantizer.taps.copy_(0.3 * torch.randn(P, D, D))
    return quantizer


def autoregression(batch: int, num_frames: int, factor: float, seed: int = 1) -> torch.Tensor:
    """z_n = factor z_{n-1} + e_n of unit variance: (B, D, N)."""
    noise = torch.randn(batch, num_frames, D, generator=torch.Generator().manual_seed(seed))
    frames = [noise[:, 0]]
    for n in range(1, num_frames):
        frames.append(factor * frames[-1] + (1 - factor**2) ** 0.5 * noise[:, n])
    return torch.stack(frames, dim=2)


def test_codes_and_quantized_latent_follow_the_equations(quantizer: PredictiveSimVQ):
    quantizer.eval()
    latent = autoregression(2, 30, 0.8)
    output = quantizer(latent)
    codebook, taps = quantizer.effective_codebook().double().numpy(), quantizer.taps.detach().double().numpy()
    for item in range(2):
        chosen: list[np.ndarray] = []
        for n in range(30):
            predicted = sum((chosen[n - i] @ taps[i - 1] for i in range(1, P + 1) if n >= i), start=np.zeros(D))
            target = latent[item, :, n].double().numpy()
            code = int(((target - predicted - codebook) ** 2).sum(1).argmin())
            assert int(output.codes[item, n]) == code
            chosen.append(codebook[code])
            np.testing.assert_allclose(output.quantized[item, :, n].numpy(), predicted + codebook[code], atol=1e-5)


@pytest.mark.parametrize("is_training", [False, True])
def test_without_taps_it_is_simvq(is_training: bool):
    torch.manual_seed(0)
    plain = SimVQ(K, D).train(is_training)
    predictive = PredictiveSimVQ(K, D, memory=P).train(is_training)
    predictive.load_state_dict(plain.state_dict(), strict=False)
    latent = autoregression(2, 30, 0.8)
    ours, theirs = predictive(latent), plain(latent)
    assert torch.equal(ours.codes, theirs.codes)
    torch.testing.assert_close(ours.quantized, theirs.quantized)
    torch.testing.assert_close(ours.loss, theirs.loss)


def test_training_and_evaluation_give_the_same_codes_and_latent(quantizer: PredictiveSimVQ):
    latent = autoregression(3, 40, 0.8)
    trained, evaluated = quantizer.train()(latent), quantizer.eval()(latent)
    assert torch.equal(trained.codes, evaluated.codes)
    torch.testing.assert_close(trained.quantized, evaluated.quantized)


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_pieces_give_what_the_whole_gives(quantizer: PredictiveSimVQ, piece: int):
    quantizer.eval()
    latent = autoregression(2, 40, 0.8)
    whole = quantizer(latent)
    assert torch.equal(quantizer.lookup(whole.codes), whole.quantized)
    state, other_state = {}, {}
    outputs = [quantizer(part, state) for part in latent.split(piece, dim=2)]
    assert torch.equal(torch.cat([output.codes for output in outputs], dim=1), whole.codes)
    assert torch.equal(torch.cat([output.quantized for output in outputs], dim=2), whole.quantized)
    parts = [quantizer.lookup(part, other_state) for part in whole.codes.split(piece, dim=1)]
    assert torch.equal(torch.cat(parts, dim=2), whole.quantized)


def test_items_of_a_batch_do_not_depend_on_each_other(quantizer: PredictiveSimVQ):
    quantizer.eval()
    latent = autoregression(5, 40, 0.8)
    alone = [quantizer(item).codes for item in latent.split(1)]
    assert torch.equal(quantizer(latent).codes, torch.cat(alone))


def test_a_code_is_forgotten_after_its_memory(quantizer: PredictiveSimVQ):
    quantizer.eval()
    codes = torch.randint(K, (1, 20), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[0, 8] = (codes[0, 8] + 1) % K
    differs = (quantizer.lookup(codes) != quantizer.lookup(other)).any(dim=1)[0]
    assert differs.nonzero().squeeze(1).tolist() == list(range(8, 8 + P + 1))


def test_remainder_is_what_the_chosen_codes_stand_for(quantizer: PredictiveSimVQ):
    quantizer.eval()
    latent = autoregression(2, 30, 0.8)
    codes, quantized, _ = quantizer(latent)
    error = latent - quantized
    rows = quantizer.effective_codebook()[codes].transpose(1, 2)
    torch.testing.assert_close(quantizer.remainder(latent, codes) - rows, error, atol=1e-5, rtol=0)


def test_gradients_of_the_taps_are_the_formulas(quantizer: PredictiveSimVQ):
    """L = mean (q - z)^2 with q_n = e_n + sum e_{n-i} A_i, so dL/dA_i = 2 / (B N D) sum_n e_{n-i}^T (q_n - z_n)."""
    latent = autoregression(2, 25, 0.8).requires_grad_()
    output = quantizer.train()(latent)
    (output.loss - quantizer.beta * (latent - output.quantized.detach()).square().mean()).backward()
    rows = quantizer.effective_codebook().detach()[output.codes]  # (B, N, D)
    error = (output.quantized - latent).detach().transpose(1, 2)
    for i in range(1, P + 1):
        expected = 2 / error.numel() * torch.einsum("bnd,bne->de", rows[:, :-i], error[:, i:])
        torch.testing.assert_close(quantizer.taps.grad[i - 1], expected, atol=1e-5, rtol=1e-4)


def test_gradient_at_the_quantized_latent_is_passed_to_the_latent(quantizer: PredictiveSimVQ):
    latent = autoregression(1, 20, 0.8).requires_grad_()
    slope = torch.randn(1, D, 20, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((quantizer.train()(latent).quantized * slope).sum(), latent)
    torch.testing.assert_close(gradient, slope)


def test_every_step_moves_every_code_and_leaves_the_frozen_codebook(quantizer: PredictiveSimVQ):
    before, frozen = quantizer.train().effective_codebook().detach().clone(), quantizer.codebook.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    quantizer(autoregression(1, 10, 0.8)).loss.backward()
    optimizer.step()
    assert (quantizer.effective_codebook() != before).any(dim=1).all()
    assert torch.equal(quantizer.codebook, frozen)


def test_matching_finds_an_autoregression_and_its_mean():
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(1024, D, memory=4)
    latent = autoregression(20, 500, 0.9) + torch.tensor([3.0, -1.0, 0.0, 10.0])[:, None]
    quantizer.match(latent)
    for i, taps in enumerate(quantizer.taps, start=1):
        torch.testing.assert_close(taps, 0.9**i * torch.eye(D), atol=0.05, rtol=0)
    # A constant stream of the mean code is the mean.
    mean_code = quantizer.projection.bias
    total = mean_code + sum(mean_code @ taps for taps in quantizer.taps)
    # Up to the first and last frames, which are no innovation and no past.
    torch.testing.assert_close(total, latent.mean(dim=(0, 2)), atol=0.02, rtol=0)
    innovation = 1 - 0.9**2
    torch.testing.assert_close(
        torch.cov(quantizer.effective_codebook().T), innovation * torch.eye(D), atol=0.15 * innovation, rtol=0
    )


def test_prediction_halves_the_error_of_a_slow_latent():
    """The innovation of an autoregression of factor 0.9 has 0.19 of its variance, and so has the error of coding it."""
    torch.manual_seed(0)
    latent = autoregression(20, 500, 0.9)
    errors = []
    for quantizer in (SimVQ(256, D), PredictiveSimVQ(256, D, memory=8)):
        quantizer.match(latent)
        errors.append(float((quantizer.eval()(latent).quantized - latent).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_matching_leaves_out_what_is_not_finite_and_needs_enough_frames(quantizer: PredictiveSimVQ):
    taps = quantizer.taps.clone()
    quantizer.match(autoregression(1, 3, 0.9))
    assert torch.equal(quantizer.taps, taps)
    latent = autoregression(20, 50, 0.9)
    latent[3, 0, 7] = torch.nan
    quantizer.match(latent)
    assert torch.isfinite(quantizer.taps).all()
    assert torch.isfinite(quantizer.projection.weight).all()


@pytest.mark.parametrize("shape", [(1, D), (1, D, 3, 3), (1, D + 1, 3), (1, D, 0)])
def test_latents_of_another_shape_are_refused(quantizer: PredictiveSimVQ, shape: tuple[int, ...]):
    with pytest.raises(ModelError, match="takes latents of shape"):
        quantizer(torch.zeros(shape))


def test_bad_values_codes_and_settings_are_refused(quantizer: PredictiveSimVQ):
    quantizer.eval()
    with pytest.raises(ModelError, match="dimension 2 of vector 1 is nan"):
        quantizer(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, torch.nan, 0.0]).view(1, 2, D).transpose(1, 2))
    with pytest.raises(ModelError, match=f"0..{K - 1}, got {K}"):
        quantizer.lookup(torch.tensor([[K]]))
    with pytest.raises(ModelError, match="codes of shape"):
        quantizer.lookup(torch.tensor([0]))
    with pytest.raises(ConfigError, match="memory"):
        PredictiveSimVQConfig(memory=0)
