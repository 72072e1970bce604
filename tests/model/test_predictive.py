"""SimVQ inside a prediction loop: its equations, its memory and what it is for."""

import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from codec import model
from codec.errors import ConfigError, ModelError
from codec.model import beam
from codec.model.predictive import LARGEST_GAIN, PredictiveSimVQ, PredictiveSimVQConfig
from codec.model.quantizer import SimVQ

K, D, P = 64, 4, 3


@pytest.fixture
def quantizer() -> PredictiveSimVQ:
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(K, D, memory=P, context_width=16)
    with torch.no_grad():
        quantizer.taps.copy_(0.3 * torch.randn(P, D, D))
        quantizer.expect.weight.copy_(0.5 * torch.randn(2 * D, 16))
        quantizer.expect.bias.copy_(0.1 * torch.randn(2 * D))
    return quantizer


def by_formula(quantizer: PredictiveSimVQ, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gains, predictions and quantized latent, (B, N, D), as the equations have them and with gradient."""
    f = torch.stack(
        [quantizer.codebook @ w.T for w in (quantizer.hear.weight * D**0.5).split(D, dim=1)], 1
    )  # (K, P, H)
    e = quantizer.projection(quantizer.codebook)
    gains, predictions, quantized = [], [], []
    for n in range(codes.shape[1]):
        past = range(1, min(P, n) + 1)
        heard = sum((f[codes[:, n - i], i - 1] for i in past), quantizer.hear.bias.expand(len(codes), -1))
        outputs = torch.relu(heard) @ quantizer.expect.weight.T + quantizer.expect.bias
        gains.append(outputs[:, D:].clamp(-math.log(LARGEST_GAIN), math.log(LARGEST_GAIN)).exp())
        terms = (gains[n - i] * e[codes[:, n - i]] @ quantizer.taps[i - 1] for i in past)
        predictions.append(sum(terms, outputs[:, :D] @ quantizer.projection.weight.T))
        quantized.append(predictions[n] + gains[n] * e[codes[:, n]])
    return torch.stack(gains, 1), torch.stack(predictions, 1), torch.stack(quantized, 1)


def autoregression(batch: int, num_frames: int, factor: float, seed: int = 1) -> torch.Tensor:
    """z_n = factor z_{n-1} + e_n of unit variance: (B, D, N)."""
    noise = torch.randn(batch, num_frames, D, generator=torch.Generator().manual_seed(seed))
    frames = [noise[:, 0]]
    for n in range(1, num_frames):
        frames.append(factor * frames[-1] + (1 - factor**2) ** 0.5 * noise[:, n])
    return torch.stack(frames, dim=2)


def test_codes_and_quantized_latent_follow_the_equations(quantizer: PredictiveSimVQ):
    quantizer.num_paths, quantizer.delay = 1, 0
    latent = autoregression(2, 30, 0.8)
    output = quantizer.eval()(latent)
    exact = copy.deepcopy(quantizer).double()
    gains, predictions, quantized = by_formula(exact, output.codes)
    assert gains.max() > 1.5
    assert gains.min() < 0.7
    rest = latent.double().transpose(1, 2) - predictions
    innovations = gains[:, :, None] * exact.projection(exact.codebook)  # (B, N, K, D)
    assert torch.equal(output.codes, (rest[:, :, None] - innovations).square().sum(-1).argmin(-1))
    torch.testing.assert_close(output.quantized.transpose(1, 2).double(), quantized, atol=1e-5, rtol=0)


def test_with_all_paths_the_codes_are_the_best_of_all_sequences():
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(4, D, memory=2, context_width=8, num_paths=4**5, delay=5).eval()
    torch.nn.init.normal_(quantizer.taps, std=0.3)
    torch.nn.init.normal_(quantizer.expect.weight, std=0.5)
    latent = autoregression(3, 5, 0.8)
    sequences = torch.cartesian_prod(*[torch.arange(4)] * 5)
    errors = (quantizer.lookup(sequences)[None] - latent[:, None]).square().sum(dim=(2, 3))  # (3, 1024)
    assert torch.equal(quantizer(latent).codes, sequences[errors.argmin(1)])


def searched_by_definition(quantizer: PredictiveSimVQ, latent: torch.Tensor) -> torch.Tensor:
    """The codes (N,) of a latent (D, N) by the (M, L) algorithm; each frame computes all sequences anew."""
    exact, num_codes = copy.deepcopy(quantizer).double(), len(quantizer.codebook)
    kept = torch.empty(1, 0, dtype=torch.int64)
    for n in range(latent.shape[1]):
        every = torch.arange(num_codes).repeat(len(kept))[:, None]
        longer = torch.cat([kept.repeat_interleave(num_codes, dim=0), every], dim=1)
        errors = (by_formula(exact, longer)[2] - latent.T[: n + 1]).square().sum(dim=(1, 2))
        kept = longer[errors.argsort()[: quantizer.num_paths]]
        if (decided := n - quantizer.delay) >= 0:
            kept = kept[kept[:, decided] == kept[0, decided]]
    return kept[0]


@pytest.mark.parametrize(("num_paths", "delay"), [(4, 0), (4, 1), (8, 3), (40, 1)])
def test_codes_are_those_of_the_search_by_its_definition(num_paths: int, delay: int):
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(16, D, memory=P, context_width=16, num_paths=num_paths, delay=delay).eval()
    torch.nn.init.normal_(quantizer.taps, std=0.3)
    torch.nn.init.normal_(quantizer.expect.weight, std=0.5)
    latent = autoregression(2, 16, 0.8)
    expected = torch.stack([searched_by_definition(quantizer, item.double()) for item in latent])
    assert torch.equal(quantizer.encode(latent), expected)


def test_a_frame_far_from_all_codes_leaves_the_choice_of_later_ones_as_exact(quantizer: PredictiveSimVQ):
    """Its squared error is beyond what float32 could add those of others to."""
    quantizer.num_paths, quantizer.delay = 1, 0
    latent = autoregression(1, 12, 0.8)
    latent[0, :, 4] = 1e4
    assert torch.equal(quantizer.eval().encode(latent)[0], searched_by_definition(quantizer, latent[0].double()))


def test_waiting_with_several_paths_lowers_the_error(quantizer: PredictiveSimVQ):
    latent = autoregression(4, 200, 0.8)
    errors = []
    for quantizer.num_paths, quantizer.delay in ((1, 0), (8, 0), (8, 3)):
        errors.append(float((quantizer.eval()(latent).quantized - latent).square().mean()))
    assert errors[2] < 0.95 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("is_training", [False, True])
def test_without_taps_and_expectations_it_is_simvq(is_training: bool):
    torch.manual_seed(0)
    plain = SimVQ(K, D).train(is_training)
    predictive = PredictiveSimVQ(K, D, memory=P, num_paths=1, delay=0).train(is_training)
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


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 50])
def test_pieces_give_what_the_whole_gives(quantizer: PredictiveSimVQ, piece: int):
    quantizer.eval()
    latent = autoregression(2, 40, 0.8)
    whole = quantizer(latent)
    assert torch.equal(quantizer.encode(latent), whole.codes)
    assert torch.equal(quantizer.lookup(whole.codes), whole.quantized)
    state, other_state = {}, {}
    codes = [quantizer.encode(part, state) for part in latent.split(piece, dim=2)]
    assert sum(part.shape[1] for part in codes) == 40 - quantizer.delay
    codes.append(quantizer.finish(state))
    assert torch.equal(torch.cat(codes, dim=1), whole.codes)
    assert not any(part.is_inference() for part in codes)  # what is looked up by them can be trained
    assert quantizer.finish(state).shape[1] == 0
    buffer = torch.empty(2, piece, dtype=torch.int64)  # that is written over by each piece
    parts = [quantizer.lookup(whole.codes[:, :0], other_state)]
    for part in whole.codes.split(piece, dim=1):
        buffer[:, : part.shape[1]] = part
        parts.append(quantizer.lookup(buffer[:, : part.shape[1]], other_state))
    assert torch.equal(torch.cat(parts, dim=2), whole.quantized)


def test_settled_codes_are_those_that_all_later_ones_go_on_from():
    """Later codes are the best of all that can follow the settled ones, and of no others."""
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(4, D, memory=2, context_width=8, num_paths=4**5, delay=3).eval()
    torch.nn.init.normal_(quantizer.taps, std=0.5)
    latent, state = autoregression(20, 5, 0.8), {}
    settled = torch.cat([quantizer.encode(latent[..., :3], state), quantizer.finish(state.copy())], dim=1)
    quantizer.settle(state)
    later = torch.cat([quantizer.encode(latent[..., 3:], state), quantizer.finish(state)], dim=1)
    ways_on = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    for item, begin, end in zip(latent, settled, later, strict=True):
        sequences = torch.cat([begin.expand(16, 3), ways_on], dim=1)
        errors = (quantizer.lookup(sequences) - item).square().sum(dim=(1, 2))
        assert torch.equal(end, ways_on[errors.argmin()])


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_signals_as_short_as_the_delay_have_all_their_codes(quantizer: PredictiveSimVQ, length: int):
    quantizer.eval()
    latent, state = autoregression(2, length, 0.8), {}
    codes = torch.cat([quantizer.encode(latent, state), quantizer.finish(state)], dim=1)
    assert torch.equal(codes, quantizer.encode(latent))
    assert codes.shape == (2, length)


def test_items_of_a_batch_do_not_depend_on_each_other_nor_on_padding(quantizer: PredictiveSimVQ):
    quantizer.eval()
    latent, lengths = autoregression(5, 40, 0.8), [40, 1, 2, 17, 39]
    alone = [quantizer.encode(item[:, :, :length]) for item, length in zip(latent.split(1), lengths, strict=True)]
    together = quantizer.encode(latent, num_frames=lengths)
    for row, length, expected in zip(together.split(1), lengths, alone, strict=True):
        assert torch.equal(row[:, :length], expected)


@pytest.mark.parametrize(("size", "count"), [(640, 3), (64 * 100, 8), (100, 8), (8, 8)])
def test_the_smallest_are_those_of_a_whole_sort(size: int, count: int):
    values = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    smallest = beam.Smallest(numbers := torch.empty_like(values), count)
    for seen in (values, -values):
        numbers.copy_(seen)
        smallest.find()
        expected, order = seen.sort(dim=1)
        in_whole = order + torch.arange(0, 3 * size, size)[:, None]
        np.testing.assert_array_equal(smallest.values, expected[:, :count])
        np.testing.assert_array_equal(smallest.places, in_whole[:, :count])


@pytest.mark.filterwarnings("error")
def test_latents_that_are_not_finite_do_no_harm_to_others(quantizer: PredictiveSimVQ):
    quantizer.checks_values = False  # as in training
    latent = autoregression(2, 12, 0.8)
    expected = quantizer.encode(latent[1:])
    for value in (torch.nan, torch.inf, 1e30):
        latent[0, :, 3] = value
        codes = quantizer.encode(latent)
        assert codes.min() >= 0
        assert codes.max() < K
        assert torch.equal(codes[1:], expected)


def test_without_a_working_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch):
    find_kernel, device = beam._kernel.__wrapped__, torch.device("cpu")

    def fail(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(model, "beam_gpu", SimpleNamespace(follow=fail), raising=False)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert find_kernel(device) is None
    monkeypatch.delattr(model, "beam_gpu")
    monkeypatch.delitem(sys.modules, "codec.model.beam_gpu", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert find_kernel(device) is None


def test_a_code_is_forgotten_after_twice_its_memory(quantizer: PredictiveSimVQ):
    quantizer.eval()
    codes = torch.randint(K, (1, 20), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[0, 8] = (codes[0, 8] + 1) % K
    differs = (quantizer.lookup(codes) != quantizer.lookup(other)).any(dim=1)[0]
    assert differs.nonzero().squeeze(1).tolist() == list(range(8, 8 + 2 * P + 1))


def test_remainder_is_what_the_chosen_codes_stand_for(quantizer: PredictiveSimVQ):
    quantizer.eval()
    latent = autoregression(2, 30, 0.8)
    codes, quantized, _ = quantizer(latent)
    gains, _, _ = by_formula(quantizer, codes)
    error = (latent - quantized) / gains.transpose(1, 2)
    rows = quantizer.effective_codebook()[codes].transpose(1, 2)
    torch.testing.assert_close(quantizer.remainder(latent, codes) - rows, error, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_the_equations(quantizer: PredictiveSimVQ):
    """With the codes as they are, the loss is (1 + beta) mean (q - z)^2, and beta's part has no gradient at q."""
    latent = autoregression(2, 25, 0.8)
    output = quantizer.train()(latent)
    output.loss.backward()
    exact = copy.deepcopy(quantizer).double()
    exact.zero_grad()
    (by_formula(exact, output.codes)[2] - latent.double().transpose(1, 2)).square().mean().backward()
    for (name, ours), theirs in zip(quantizer.named_parameters(), exact.parameters(), strict=True):
        assert theirs.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4)


def test_gains_and_damage_stay_within_bounds(quantizer: PredictiveSimVQ):
    with torch.no_grad():
        quantizer.expect.bias.fill_(10.0)
    codes = torch.randint(K, (1, 50), generator=torch.Generator().manual_seed(0))
    largest = LARGEST_GAIN * float(quantizer.eval().effective_codebook().norm(dim=1).max())
    bound = largest * (1 + sum(float(torch.linalg.matrix_norm(taps, 2)) for taps in quantizer.taps.detach()))
    bound += 10 * float((quantizer.projection.weight.detach().abs().sum(1)).norm()) + 10
    assert 5 < float(quantizer.lookup(codes).norm(dim=1).max()) < bound


@pytest.mark.parametrize(("told", "gain"), [(10.0, LARGEST_GAIN), (-10.0, 1 / LARGEST_GAIN)])
def test_the_search_keeps_gains_within_the_same_bounds(told: float, gain: float):
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(K, D, memory=P, num_paths=1, delay=0).eval()
    with torch.no_grad():
        quantizer.expect.bias[D:] = told
    latent = 0.4 * gain * torch.randn(1, D, 20)
    scaled = gain * quantizer.effective_codebook()
    nearest = (latent.transpose(1, 2)[:, :, None] - scaled).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer(latent).codes, nearest)


def test_only_the_projection_follows_the_latents_at_the_codes_rate(quantizer: PredictiveSimVQ):
    assert {id(p) for p in quantizer.code_parameters()} == {id(p) for p in quantizer.projection.parameters()}


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


def test_matching_shares_the_prediction_between_equal_dimensions_and_leaves_still_ones_where_they_are():
    """With any weights that add up to the factor, however large, the equal ones would predict as well."""
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(K, D, memory=2)
    latent = autoregression(80, 50, 0.9)
    latent[:, 1], latent[:, 3] = latent[:, 0], 5.0
    quantizer.match(latent)
    expected = torch.tensor([[0.45, 0.45, 0, 0], [0.45, 0.45, 0, 0], [0, 0, 0.9, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(quantizer.taps.detach()[0], expected, atol=0.05, rtol=0)
    assert quantizer.projection.bias[3].item() == pytest.approx(5.0, rel=1e-4)


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
    assert not quantizer.expect.weight.any()  # what was expected of another latent
    assert torch.isfinite(quantizer.projection.weight).all()


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_matching_a_latent_that_never_changes_changes_nothing(quantizer: PredictiveSimVQ, value: float):
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.match(torch.full((4, D, 60), value))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


@pytest.mark.parametrize("shape", [(1, D), (1, D, 3, 3), (1, D + 1, 3), (1, D, 0)])
def test_latents_of_another_shape_are_refused(quantizer: PredictiveSimVQ, shape: tuple[int, ...]):
    with pytest.raises(ModelError, match="takes latents of shape"):
        quantizer(torch.zeros(shape))


def test_bad_values_and_codes_are_refused(quantizer: PredictiveSimVQ):
    quantizer.eval()
    with pytest.raises(ModelError, match="dimension 2 of vector 1 is nan"):
        quantizer(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, torch.nan, 0.0]).view(1, 2, D).transpose(1, 2))
    with pytest.raises(ModelError, match=f"0..{K - 1}, got {K}"):
        quantizer.lookup(torch.tensor([[K]]))
    with pytest.raises(ModelError, match="codes of shape"):
        quantizer.lookup(torch.tensor([0]))


@pytest.mark.parametrize(
    ("name", "value"), [("memory", 0), ("context_width", 0), ("num_paths", 0), ("delay", -1), ("delay", 2**31)]
)
def test_impossible_settings_are_refused_by_name(name: str, value: int):
    with pytest.raises(ConfigError, match=rf"quantizer\.{name} must be at"):
        PredictiveSimVQConfig(**{name: value})
    with pytest.raises(ConfigError, match=rf"quantizer\.{name} must be at"):
        PredictiveSimVQ(K, D, **{name: value})
