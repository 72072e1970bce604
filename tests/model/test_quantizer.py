"""SimVQ against the paper's properties, autograd and brute force."""

import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import codec
from codec import errors
from codec.model.predictive import PredictiveSimVQ
from codec.model.quantizer import USAGE_ROWS, VQ, Quantizer, SimVQ, VQConfig, rotate
from codec.model.rivals import FeatureVQ
from codec.model.search import CODE_TILE, full_float32, half_squared_norms_of_products, nearest_code

K, D = 64, 6


@pytest.fixture
def quantizer() -> SimVQ:
    torch.manual_seed(0)
    return SimVQ(K, D)


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor that an operation has made, not counting views."""

    num_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.num_values = max(self.num_values, result.numel())
        return result


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


def test_search_equals_brute_force_in_float64_across_tiles():
    """3,000 codes in three tiles, far from the origin, where ||x||^2 would swallow the differences in float32."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(3000, 32, generator=generator) + 10
    vectors = codebook[torch.randperm(3000, generator=generator)[:400]] + 0.7 * torch.randn(
        400, 32, generator=generator
    )
    distance = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.gather(1, nearest_code(vectors, codebook)[:, None]).squeeze(1)
    assert (found / distance.amin(1) - 1).max() < 1e-6  # float32 keeps 7 digits


def test_of_equal_codes_the_lowest_is_taken():
    codebook = torch.randn(5, D, generator=torch.Generator().manual_seed(0)).repeat(700, 1)  # several tiles
    assert torch.equal(nearest_code(codebook[:5] + 1e-3, codebook), torch.arange(5))


@pytest.mark.parametrize("bias", [0.0, 100.0], ids=["centred", "far from the origin"])
@pytest.mark.parametrize("dim", [D, 200], ids=["one block", "several blocks"])
def test_searching_in_the_space_of_c_finds_the_nearest_effective_code(dim: int, bias: float):
    """In float64 among the effective codes. W is singular, as it may become, and takes long rows to short ones."""
    torch.manual_seed(0)
    quantizer = SimVQ(2500, dim)
    with torch.no_grad():
        quantizer.projection.weight.copy_(torch.randn(dim, dim) * torch.logspace(0, -4, dim))
        quantizer.projection.weight[:, -1] = 0
        quantizer.projection.bias += bias
        effective = quantizer.effective_codebook().double()
        vectors = (effective[torch.randperm(2500)[:300]] + 0.3 * torch.randn(300, dim).double()).float()
    codes = quantizer(vectors).codes
    assert torch.equal(quantizer.eval()(vectors).codes, codes)
    distance = torch.cdist(vectors.double(), effective, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.gather(1, codes[:, None]).squeeze(1)
    assert (found / distance.amin(1) - 1).max() < 1e-5  # float32, after products over the whole width


@pytest.mark.parametrize("fused", [False, True])
def test_search_in_training_sees_what_an_optimizer_has_changed(quantizer: SimVQ, fused: bool):
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.5, fused=fused)
    vectors = latents(200, D)
    quantizer(vectors).loss.backward()
    optimizer.step()
    distance = torch.cdist(vectors.double(), quantizer.effective_codebook().detach().double())
    assert torch.equal(quantizer(vectors).codes, distance.argmin(dim=1))


def test_norms_of_products_equal_the_products_norms():
    rows, weight = latents(40, 200), torch.randn(200, 200, generator=torch.Generator().manual_seed(2))
    expected = (rows.double() @ weight.double().T).square().sum(1) / 2
    torch.testing.assert_close(half_squared_norms_of_products(rows, weight).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_codes_do_not_depend_on_batch_or_order(count: int):
    torch.manual_seed(0)
    quantizer = SimVQ(2500, 64).eval()
    pairs = torch.randint(2500, (257, 2), generator=torch.Generator().manual_seed(1))
    latent = quantizer.lookup(pairs).mean(dim=2)  # midway between two codes, where rounding decides
    whole = quantizer(latent).codes
    chunks = torch.cat([quantizer(chunk).codes for chunk in latent.split(count)])
    order = torch.randperm(257, generator=torch.Generator().manual_seed(2))
    assert torch.equal(chunks, whole)
    assert torch.equal(quantizer(latent[order]).codes, whole[order])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_codes_on_a_gpu_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    quantizer, latent = SimVQ(20_000, 64).eval(), latents(500, 64)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)  # must make no difference
    on_cpu, on_gpu = quantizer(latent).codes, quantizer.cuda()(latent.cuda()).codes.cpu()
    assert (on_cpu != on_gpu).float().mean() < 0.01  # ties in float32


@pytest.fixture
def tf32() -> Iterator[None]:
    """Products on a GPU may leave out 13 of 23 bits."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_codes_are_computed_without_tf32(tf32: None):
    seen = []

    class Watched(SimVQ):
        def _project(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return super()._project(rows)

    Watched(K, D).eval().effective_codebook()
    assert seen == ["ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_callers_at_the_same_time_keep_tf32_out_until_the_last_has_left(tf32: None):
    first, second = full_float32(), full_float32()
    with first:
        second.__enter__()
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_tiling_does_not_change_codes(quantizer: SimVQ, monkeypatch: pytest.MonkeyPatch):
    vectors, effective = latents(101, D), quantizer.effective_codebook().detach()
    whole = nearest_code(vectors, effective)
    monkeypatch.setattr("codec.model.search.SEARCH_TILE", 7 * K)
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


def test_vanilla_vq_moves_only_selected_codes():
    """What SimVQ is there to avoid."""
    torch.manual_seed(0)
    vanilla = VQ(K, D)
    before = vanilla.codebook.detach().clone()
    output = vanilla(latents(1, D, 3))
    output.loss.backward()
    torch.optim.SGD(vanilla.parameters(), lr=0.1).step()
    moved = (vanilla.codebook != before).any(dim=1).nonzero().squeeze(1)
    assert set(moved.tolist()) <= set(output.codes.flatten().tolist())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trailing", [(), (7,), (4, 5)], ids=["vectors", "speech", "images"])
def test_every_step_is_the_papers_update_rule_in_float64(bias: bool, trailing: tuple[int, ...]):
    """The rule of the paper in numpy, step by step, from the codes that brute force finds; with a bias, of z - b."""
    torch.manual_seed(0)
    quantizer, eta = SimVQ(K, D, bias=bias, beta=0.5, codebook_weight=2.0), 0.2
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=eta * D / (2 * quantizer.codebook_weight))
    c = quantizer.codebook.double().numpy()
    for _ in range(4):
        latent = torch.randn(9, D, *trailing)
        w = quantizer.projection.weight.detach().double().numpy().T
        b = quantizer.projection.bias.detach().double().numpy() if bias else np.zeros(D)
        z = latent.movedim(1, -1).reshape(-1, D).double().numpy()
        d = np.eye(K)[np.square(z[:, None] - (c @ w + b)).sum(-1).argmin(1)]  # (N, K)
        expected = (np.eye(D) - eta * c.T @ d.T @ d @ c / len(z)) @ w + eta * c.T @ d.T @ (z - b) / len(z)
        optimizer.zero_grad()
        quantizer(latent).loss.backward()
        optimizer.step()
        found = quantizer.projection.weight.detach().double().numpy().T
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # float32 against float64


def test_latent_gets_the_straight_through_gradient_and_the_commitment(quantizer: SimVQ):
    latent = latents(1, D, 50).requires_grad_()
    output = quantizer(latent)
    upstream = torch.randn(output.quantized.shape, generator=torch.Generator().manual_seed(2))
    ((output.quantized * upstream).sum() + output.loss).backward()
    commitment = quantizer.beta * 2 / latent.numel() * (latent - output.quantized).detach()
    torch.testing.assert_close(latent.grad, upstream + commitment, atol=1e-6, rtol=1e-4)


def test_rotation_trick_turns_the_gradient_with_the_latent():
    """The value stays; at |q| = |z| the gradient keeps its length and its angle to the vector it is the gradient at."""
    vectors = latents(40, D).requires_grad_()
    selected = torch.nn.functional.normalize(vectors.detach() + latents(80, D)[40:], dim=1)
    upstream = latents(120, D)[80:]
    output = rotate(vectors, selected)
    (output * upstream).sum().backward()
    torch.testing.assert_close(output, selected)
    scale = selected.norm(dim=1) / vectors.detach().norm(dim=1)
    torch.testing.assert_close(vectors.grad.norm(dim=1), scale * upstream.norm(dim=1))
    cosines = [torch.cosine_similarity(g, v, dim=1) for g, v in ((vectors.grad, vectors), (upstream, selected))]
    torch.testing.assert_close(cosines[0].detach(), cosines[1], atol=1e-5, rtol=1e-4)


def test_rotation_trick_passes_vectors_without_direction_straight_and_survives_opposite_ones():
    vectors = torch.tensor([[0.0, 0.0], [1e-20, 0.0], [1.0, 0.0], [1.0, 0.0]]).requires_grad_()
    selected = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    output = rotate(vectors, selected)
    upstream = latents(4, 2)
    (output * upstream).sum().backward()
    assert torch.equal(output, selected)
    assert torch.equal(vectors.grad[:3], upstream[:3])
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("num_clips", [1, 2])
def test_vectors_to_learn_from_lie_in_memory_one_after_another_however_many_clips_there_are(num_clips: int):
    """Else `torch.compile` makes another program for one clip, whose gradient is wrong with the rotation trick."""
    strides = []

    class Watched(SimVQ):
        def learn(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            strides.append(vectors.stride())
            return super().learn(vectors)

    Watched(K, D, rotation_trick=True)(latents(num_clips, D, 20))
    assert strides == [(D, 1)]


def test_codebook_takes_part_in_gradients_whatever_was_asked_of_it_before(quantizer: SimVQ):
    quantizer.eval()
    with torch.inference_mode():
        quantizer.encode(latents(1, D, 20))
    weight = torch.ones(D, 3, requires_grad=True)
    (quantizer.effective_codebook() @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, quantizer.effective_codebook().sum(0)[:, None].expand(D, 3))


def test_rotation_trick_changes_the_latents_gradient_only():
    outputs = []
    for rotation_trick in (False, True):
        torch.manual_seed(0)
        outputs.append(SimVQ(K, D, rotation_trick=rotation_trick)(latents(1, D, 20)))
    assert torch.equal(outputs[0].codes, outputs[1].codes)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    torch.testing.assert_close(outputs[0].quantized, outputs[1].quantized)


def test_uniform_codebook_is_uniform_and_has_the_gaussians_variance():
    torch.manual_seed(0)
    uniform = SimVQ(20_000, D, codebook_init="uniform").codebook
    assert uniform.abs().max() <= (3 / D) ** 0.5
    for rows in (uniform, SimVQ(20_000, D).codebook):
        torch.testing.assert_close(rows.var(), torch.tensor(1 / D), rtol=0.02, atol=0)


def test_trained_codebook_is_a_parameter_under_the_same_name():
    trained, frozen = SimVQ(K, D, is_codebook_trained=True), SimVQ(K, D)
    assert set(trained.state_dict()) == set(frozen.state_dict()) == {"codebook", "projection.weight", "projection.bias"}
    output = trained(latents(1, D, 3))
    output.loss.backward()
    moved = trained.codebook.grad.any(dim=1).nonzero().squeeze(1)
    assert set(moved.tolist()) == set(output.codes.flatten().tolist())


def test_weights_scale_the_two_losses():
    def loss(**weights: float) -> torch.Tensor:
        torch.manual_seed(0)
        return SimVQ(K, D, **weights)(latents(1, D, 20)).loss

    assert loss(beta=0.0, codebook_weight=0.0) == 0
    torch.testing.assert_close(loss(beta=0.5, codebook_weight=2.0), 2.5 * loss(beta=0.0, codebook_weight=1.0))


def test_training_keeps_no_table_of_codes():
    """The graph and what is saved for backward hold N x D and D x D tensors: nothing as long as the codebook."""
    saved = []
    quantizer = SimVQ(5000, D)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        quantizer(latents(1, D, 10).requires_grad_())
    assert saved
    assert max(saved) < 5000


def test_quantizer_is_public():
    quantizer = codec.SimVQ(codebook_size=16, codebook_dim=4)
    assert quantizer(torch.randn(1, 4, 5)).codes.shape == (1, 5)


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


@pytest.mark.parametrize("kind", [SimVQ, PredictiveSimVQ])
def test_matching_is_exact_where_training_computes_in_16_bit(kind: type[SimVQ]):
    weights = []
    for is_on in (False, True):
        torch.manual_seed(0)
        quantizer = kind(64, D)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            quantizer.match(latents(2, D, 200))
        weights.append(quantizer.projection.weight)
    assert torch.equal(*weights)


def test_relative_loss_does_not_depend_on_the_latents_scale():
    torch.manual_seed(0)
    quantizer, latent = SimVQ(K, D, relative_loss=True), latents(1, D, 300)
    quantizer.match(latent)
    small = quantizer(latent).loss
    quantizer.match(latent * 100)
    torch.testing.assert_close(quantizer(latent * 100).loss, small, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [VQ, SimVQ, partial(SimVQ, is_codebook_trained=True), FeatureVQ],
    ids=["vq", "simvq", "simvq with a trained codebook", "features"],
)
def test_relative_loss_is_divided_by_the_variance_of_the_effective_codebook(kind: Callable[..., VQ]):
    """As SimVQ takes the rows' variance to be alike in all directions, they are made so, and lie about their mean."""
    torch.manual_seed(0)
    quantizer = kind(K, D, relative_loss=True, beta=0.5)
    with torch.no_grad():
        rows = torch.linalg.qr(latents(K, D) - latents(K, D).mean(0))[0] * (K - 1) ** 0.5  # of variance 1
        is_frozen = not isinstance(quantizer.codebook, torch.nn.Parameter)
        quantizer.codebook.copy_(rows * D**-0.5 if is_frozen else 3 * rows + 2)
        if isinstance(quantizer, FeatureVQ):
            quantizer.codebook.mul_(5).add_(2)
    latent = latents(1, D, 50)
    output = quantizer(latent)
    error = (latent - output.quantized).square().mean()
    variance = quantizer.effective_codebook().var(0).mean()
    torch.testing.assert_close(output.loss, 1.5 * error / variance)


def test_kept_codebook_follows_changes_in_place(quantizer: SimVQ):
    quantizer.eval()
    before = quantizer.effective_codebook()
    with torch.no_grad():
        quantizer.projection.bias += 1
    torch.testing.assert_close(quantizer.effective_codebook(), before + 1)


@pytest.mark.parametrize(("value", "named"), [(math.nan, "nan"), (math.inf, "inf"), (-3e19, "-3e[+]19")])
def test_value_that_cannot_be_quantized_is_named(quantizer: SimVQ, value: float, named: str):
    latent = latents(1, D, 4)
    latent[0, 2, 1] = value
    for is_training in (True, False):
        with pytest.raises(errors.ModelError, match=f"dimension 2 of vector 1 is {named}"):
            quantizer.train(is_training)(latent)


def test_half_precision_latents_are_computed_in_float32_and_their_overflow_is_refused(quantizer: SimVQ):
    quantizer.eval()
    latent = (100 * latents(1, D, 50)).half()  # squared beyond the range of half precision
    assert torch.equal(quantizer(latent).codes, quantizer(latent.float()).codes)
    with pytest.raises(errors.ModelError, match=r"is -?inf"):
        quantizer(latent * 1000)


def test_half_precision_weights_are_used_in_float32():
    torch.manual_seed(0)
    halved = SimVQ(K, D).half()
    restored = SimVQ(K, D)
    restored.load_state_dict(halved.state_dict())
    latent = latents(1, D, 50)
    assert torch.equal(halved.eval()(latent).quantized, restored.eval()(latent).quantized)


def test_broken_weights_are_refused(quantizer: SimVQ):
    with torch.no_grad():
        quantizer.projection.weight[0, 0] = float("inf")
    with pytest.raises(errors.ModelError, match="codes with NaN or infinite"):
        quantizer.eval()(latents(1, D, 4))


@pytest.mark.parametrize("settings", [{"codebook_size": 1}, {"codebook_init": "zeros"}, {"beta": -1.0}])
def test_impossible_settings_are_refused(settings: dict):
    with pytest.raises(errors.ConfigError, match=next(iter(settings))):
        VQConfig(**settings)


def test_a_training_loop_can_leave_non_finite_latents_to_the_loss(quantizer: SimVQ):
    quantizer.checks_values = False
    latent = latents(1, D, 4)
    latent[0, 2, 1] = float("nan")
    assert not torch.isfinite(quantizer(latent).loss)
    with pytest.raises(errors.ModelError, match="NaN or infinite"):
        quantizer.eval()(latent)


@pytest.mark.parametrize("shape", [(1, D + 1, 4), (1, D, 0), (D,)], ids=["wrong width", "empty", "no batch"])
def test_wrong_shapes_are_refused_by_name(quantizer: SimVQ, shape: tuple[int, ...]):
    with pytest.raises(errors.ModelError, match=r"latents of shape \(B, 6, \.\.\.\)"):
        quantizer(torch.zeros(shape))


@pytest.mark.parametrize("code", [-1, K])
def test_codes_out_of_range_are_refused_by_value(quantizer: SimVQ, code: int):
    with pytest.raises(errors.ModelError, match=rf"0\.\.63, got {code}"):
        quantizer.lookup(torch.tensor([[0, code]]))


def test_latents_and_codes_of_wrong_type_are_refused(quantizer: SimVQ):
    with pytest.raises(errors.ModelError, match=r"floating point latents, got torch\.int64"):
        quantizer(torch.zeros(1, D, 4, dtype=torch.int64))
    for latent in (torch.zeros(1, D, 4, device="meta"), torch.zeros(1, D, 4).to_sparse()):
        with pytest.raises(errors.ModelError, match="a latent must be a dense tensor with values, got torch"):
            quantizer(latent)
    with pytest.raises(errors.ModelError, match=r"integers, got torch\.float32"):
        quantizer.lookup(torch.zeros(1, 4))


def test_search_runs_in_float32_under_autocast(quantizer: SimVQ):
    quantizer.eval()
    latent = latents(1, D, 200)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = quantizer(latent)
    assert torch.equal(under_autocast.codes, quantizer(latent).codes)


@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "training"])
def test_codes_stand_for_float32_under_autocast(is_training: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # with it products know no autocast
    quantizers = [SimVQ(K, D).train(is_training) for _ in range(2)]
    quantizers[1].load_state_dict(quantizers[0].state_dict())
    codes = torch.arange(K)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        under_autocast = quantizers[0].lookup(codes)
    with torch.no_grad():
        assert under_autocast.dtype == torch.float32
        assert torch.equal(under_autocast, quantizers[1].lookup(codes))
        assert torch.equal(quantizers[0].lookup(codes), quantizers[1].lookup(codes))


def test_usage_loss_is_what_soft_assignments_lack_of_even_use():
    """Against the formula in float64, one vector after the other."""
    torch.manual_seed(0)
    quantizer = SimVQ(K, D)
    vectors = latents(200, D) / D + quantizer.effective_codebook()[0].detach()  # most are near one code
    codes = quantizer.effective_codebook().detach().double()
    distances = (vectors.double()[:, None] - codes).square().sum(-1)
    temperature = distances.amin(1).mean()
    usage = torch.stack([torch.softmax(-row / temperature, 0) for row in distances]).mean(0)
    expected = math.log(K) + float((usage * usage.log()).sum())
    assert quantizer.usage_loss(vectors).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"is_codebook_trained": True}], ids=str)
def test_usage_loss_has_value_and_gradients_of_the_plain_formula(settings: dict[str, bool]):
    """In float64, from all effective codes, where ours takes vectors through W instead, and norms tile by tile."""
    torch.manual_seed(0)
    quantizer = SimVQ(3 * 4 * CODE_TILE + 5, D, **settings)  # several tiles, the last one small
    quantizer.match(latents(1000, D))
    vectors = latents(70, D).requires_grad_()
    trained = [vectors, *quantizer.parameters()]
    loss = quantizer.usage_loss(vectors)
    found = torch.autograd.grad(loss, trained)

    exact, z = copy.deepcopy(quantizer).double(), vectors.detach().double().requires_grad_()
    codes = exact.projection(exact.codebook)
    distances = torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist").square()
    usage = torch.softmax(-distances / distances.detach().amin(1).mean(), 1).mean(0)
    expected = math.log(len(codes)) + (usage * usage.log()).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, of_exact in zip(found, torch.autograd.grad(expected, [z, *exact.parameters()]), strict=True):
        assert (gradient - of_exact).abs().max() < 1e-4 * of_exact.abs().max()


def test_gradients_of_usage_loss_shared_by_two_processes_average_to_the_joint_one(quantizer: SimVQ):
    """Two threads, each of which waits for the other's value of what they average."""
    halves = [half.clone().requires_grad_() for half in (latents(40, D) * torch.linspace(0.3, 2, 40)[:, None]).chunk(2)]
    copies = [copy.deepcopy(quantizer) for _ in halves]
    barrier, values = threading.Barrier(2, timeout=60), [torch.zeros(())] * 2

    def loss_of(place: int) -> torch.Tensor:
        def average(value: torch.Tensor) -> torch.Tensor:
            values[place] = value.detach()
            barrier.wait()
            mean = (values[0] + values[1]) / 2
            barrier.wait()
            return mean

        loss = copies[place].usage_loss(halves[place], average)
        loss.backward()
        return loss.detach()

    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(loss_of, range(2)))
    joint = torch.cat([half.detach() for half in halves]).requires_grad_()
    expected = quantizer.usage_loss(joint)
    expected.backward()
    torch.testing.assert_close(losses, [expected.detach()] * 2)
    torch.testing.assert_close(torch.cat([half.grad for half in halves]) / 2, joint.grad)
    for parameter, *shares in zip(quantizer.parameters(), *(c.parameters() for c in copies), strict=True):
        torch.testing.assert_close((shares[0].grad + shares[1].grad) / 2, parameter.grad)


def test_usage_loss_makes_no_effective_codebook():
    """It would be larger than all else: nothing that is made has as many values, but for the frozen rows themselves."""
    torch.manual_seed(0)
    quantizer, vectors = SimVQ(1 << 14, 256), latents(40, 256).requires_grad_()
    made = Largest()
    with made:
        quantizer.usage_loss(vectors).backward()
    assert USAGE_ROWS * quantizer.codebook_size <= made.num_values < quantizer.codebook.numel() / 3


def test_usage_loss_brings_collapsed_latents_back_to_many_codes():
    torch.manual_seed(0)
    quantizer = SimVQ(K, D)
    vectors = (0.02 * latents(400, D)).requires_grad_()
    before = len(quantizer(vectors).codes.unique())
    optimizer = torch.optim.Adam([vectors], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer.usage_loss(vectors).backward()
        optimizer.step()
    assert before < K / 4
    assert len(quantizer(vectors).codes.unique()) > K * 3 / 4


def test_usage_loss_has_a_gradient_where_codes_are_out_of_reach(quantizer: SimVQ):
    vectors = (1e-3 * latents(50, D) + quantizer.effective_codebook()[0].detach()).requires_grad_()
    loss = quantizer.usage_loss(vectors)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(K), abs=1e-3)  # a single code
    assert vectors.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())


def test_usage_loss_of_a_large_codebook_reads_as_many_vectors_as_its_memory_allows(monkeypatch):
    monkeypatch.setattr("codec.model.quantizer.USAGE_TILE", 4 * K)
    torch.manual_seed(0)
    quantizer = SimVQ(K, D)
    vectors = latents(10, D)
    assert quantizer.usage_loss(vectors).item() == pytest.approx(quantizer.usage_loss(vectors[::3]).item(), rel=1e-6)


def test_a_single_code_is_no_batch(quantizer: SimVQ):
    with pytest.raises(errors.ModelError, match=r"codes must be \(B, \.\.\.\), got a single one"):
        quantizer.lookup(torch.tensor(1))


def test_a_quantizer_that_lacks_a_method_is_named_when_it_is_made():
    class Half(Quantizer):
        def make_effective_codebook(self) -> torch.Tensor:
            return torch.zeros(K, D)

        def search(self, vectors: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(vectors), dtype=torch.int64)

    with pytest.raises(TypeError, match=r"Half .*(learn|loss)"):
        Half(K, D)
