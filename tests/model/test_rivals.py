"""Every quantizer behind the same interface; each rival against its own definition, or the library's."""

import inspect
import math
import sys
from dataclasses import make_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from codec import errors
from codec.config import compose
from codec.model import rivals, weights
from codec.model.codec import QUANTIZERS, Codec, CodecConfig, add_quantizers_of_others
from codec.model.decoder import SpectralDecoderConfig
from codec.model.encoder import SpectralEncoderConfig
from codec.model.quantizer import Quantizer
from codec.model.rivals import EMAVQ, FSQ, LFQ, FactorisedVQ, FeatureVQ, fsq_levels

K, D = 64, 6
FROM_LIBRARY = ("fsq", "lfq")


def make(kind: str, codebook_size: int = K, **settings: Any) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[kind][1](codebook_size, D, **settings)


def latents(count: int, seed: int = 1) -> torch.Tensor:
    """(2, D, count), unequal directions, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, D, count, generator=generator) * torch.arange(1, D + 1)[:, None] + 3


# -- all of them


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_class_and_settings_have_the_same_defaults_but_for_the_relative_loss(kind: str):
    config_class, quantizer_class = QUANTIZERS[kind]
    defaults = {
        name: parameter.default
        for each in reversed(quantizer_class.__mro__)  # an heir's override those it inherits
        for name, parameter in inspect.signature(each.__init__).parameters.items()
    }
    settings = {name: value for name, value in vars(config_class()).items() if value != []}  # as None for a class
    differing = {name for name, value in settings.items() if value != defaults.get(name)}
    assert differing <= {"kind", "codebook_size", "codebook_dim", "relative_loss"}


class Entry:
    """As an installed package would have it."""

    name, value = "theirs", "package:KIND"

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (ImportError("no module named package"), r"cannot be loaded \(ImportError: no module named package\)"),
        (3, "must be a dataclass"),
        (QUANTIZERS["vq"], "whose kind is 'theirs'"),
        ((type("Plain", (), {"kind": "theirs"}), QUANTIZERS["vq"][1]), "must be a dataclass"),
        (
            (make_dataclass("Config", [("kind", str, "theirs")]), int),
            "derived from .*Quantizer",
        ),
    ],
    ids=["broken", "no pair", "other kind", "no dataclass", "no quantizer"],
)
def test_a_package_whose_quantizer_cannot_be_used_is_named_and_hinders_no_other(
    loaded: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("codec.plugins.entry_points", lambda group: [Entry(loaded)])
    add_quantizers_of_others.cache_clear()
    config = CodecConfig().to_dict()
    assert CodecConfig.from_dict(config) == CodecConfig()
    config["quantizer"]["kind"] = "theirs"
    with pytest.raises(errors.ConfigError, match=f"entry point theirs of codec.quantizers, package:KIND: .*{message}"):
        CodecConfig.from_dict(config)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_output_has_the_shapes_of_the_interface(kind: str):
    quantizer, latent = make(kind), latents(50)
    for mode in (True, False):
        output = quantizer.train(mode)(latent)
        assert output.codes.shape == (2, 50)
        assert output.codes.dtype == torch.int64
        assert 0 <= output.codes.min()
        assert output.codes.max() < K
        assert output.quantized.shape == latent.shape
        assert output.loss.shape == ()
    assert quantizer.effective_codebook().shape == (K, D)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_lookup_in_eval_mode_is_the_quantized_latent_bit_for_bit(kind: str):
    quantizer = make(kind)
    quantizer(latents(50))  # one step of training, for what starts with it
    output = quantizer.eval()(latents(30, seed=2))
    assert torch.equal(quantizer.lookup(output.codes), output.quantized)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_training_and_eval_mode_choose_the_same_codes(kind: str):
    quantizer = make(kind, **({"decay": 0.999} if kind == "ema" else {}))
    quantizer.match(latents(200))
    expected = quantizer.eval()(latents(30, seed=2)).codes
    assert torch.equal(quantizer.train()(latents(30, seed=2)).codes, expected)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_gradient_reaches_the_latent(kind: str):
    latent = latents(50).requires_grad_()
    output = make(kind)(latent)
    (output.quantized * latents(50, seed=3)).sum().backward()
    assert (latent.grad != 0).any(dim=1).all()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_matching_lays_the_codes_over_the_latents(kind: str):
    """Uniformly used, 64 codes in 6 dimensions leave a part of the variance, but far less than all of it."""
    quantizer, latent = make(kind).eval(), latents(2000)
    quantizer.match(latent)
    output = quantizer(latent)
    assert (latent - output.quantized).square().mean() < 0.6 * latent.var(dim=(0, 2)).mean()
    assert len(output.codes.unique()) > K / 2


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_encoding_teaches_nothing_in_training_either(kind: str):
    quantizer, latent = make(kind).train(), latents(200)
    quantizer(latent)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    codes = quantizer.encode(latent)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(codes, quantizer.eval().encode(latent))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_matching_leaves_out_what_is_broken(kind: str, value: float):
    broken, latent = torch.full((1, D, 200), value), latents(200)
    expected, quantizer = make(kind), make(kind)
    expected.match(latent)
    quantizer.match(torch.cat([latent, broken]))
    assert torch.equal(quantizer.effective_codebook(), expected.effective_codebook())


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_unchecked_broken_latents_get_valid_codes_in_training_and_an_error_outside(kind: str):
    quantizer, latent = make(kind), latents(50)
    latent[0, 2, 1] = float("nan")
    quantizer.match(latent)
    quantizer.checks_values = False
    output = quantizer(latent)
    assert 0 <= output.codes.min()
    assert output.codes.max() < K
    with pytest.raises(errors.ModelError, match="dimension 2 of vector 1 is nan"):
        quantizer.eval()(latent)
    assert torch.isfinite(quantizer.effective_codebook()).all()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_half_precision_model_file_gives_the_same_codes_again(kind: str, tmp_path):
    torch.manual_seed(0)
    config = QUANTIZERS[kind][0](codebook_size=1 << 17 if kind == "lfq" else 256, codebook_dim=16)
    encoder = SpectralEncoderConfig(width=16, num_blocks=1)
    codec = Codec(CodecConfig(encoder=encoder, quantizer=config, decoder=SpectralDecoderConfig(width=24, num_blocks=2)))
    wav = 0.1 * torch.randn(1, 1, 9600)
    codec.quantizer.match(codec.encoder(wav))
    weights.save(codec, tmp_path, dtype=torch.float16)
    rounded = {name: value.half().to(value.dtype) for name, value in codec.state_dict().items()}
    codec.load_state_dict(rounded)
    loaded = weights.load(tmp_path)
    assert loaded.config == codec.config
    codes = codec.eval().encode(wav)
    assert torch.equal(loaded.encode(wav), codes)
    assert torch.equal(loaded.decode(codes), codec.decode(codes))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_default_codec_takes_any_quantizer_by_name(kind: str):
    config = compose(["model=stream", f"model/quantizer={kind}"]).model
    assert type(config.quantizer) is QUANTIZERS[kind][0]
    assert config.quantizer.codebook_dim == config.encoder.latent_dim
    assert CodecConfig.from_dict(config.to_dict()) == config
    assert Codec(config).bits_per_code == 12


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("ema", "decay", 1.0),
        ("ema", "dead_share", -0.1),
        ("fc", "factor_dim", 0),
        ("fsq", "levels", [8, 8]),
        ("fsq", "levels", ["a", "b"]),
        ("fsq", "levels", [8.0, 8.0, 8.0, 8.0]),
        ("fsq", "codebook_size", 1000),
        ("lfq", "codebook_size", 1000),
        ("lfq", "entropy_weight", -1.0),
        ("lc", "beta", -1.0),
        ("lc", "codebook_size", 1),
    ],
)
def test_impossible_settings_are_refused_by_name(kind: str, setting: str, value: Any):
    with pytest.raises(errors.ConfigError, match=setting):
        QUANTIZERS[kind][0](**{setting: value})


@pytest.mark.parametrize("kind", FROM_LIBRARY)
def test_missing_library_is_named_with_the_command_that_installs_it(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'codec\[rivals\]'"):
        make(kind)


# -- EMA


def test_running_means_are_those_of_the_library():
    """One update from the same state: there counts and sums, here shares of the batch."""
    latent = latents(150)
    ours = make("ema", decay=0.9, dead_share=0.0, kmeans_iterations=0)
    ours.match(latent)
    num_vectors = 300
    theirs = VectorQuantize(dim=D, codebook_size=K, decay=0.9, rotation_trick=False, eps=0.0).train()
    state = theirs._codebook
    state.embed.copy_(ours.codebook[None])
    state.cluster_size.fill_(num_vectors / K)
    state.embed_avg.copy_(ours.codebook[None] * num_vectors / K)
    quantized, codes, _ = theirs(latent.movedim(1, -1))
    output = ours(latent)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized.movedim(1, -1), quantized)
    torch.testing.assert_close(ours.codebook, state.embed[0], rtol=1e-4, atol=1e-4)


def test_codes_that_are_not_chosen_are_replaced_by_latents_of_the_batch():
    quantizer = make("ema", decay=0.5, kmeans_iterations=0)
    quantizer.match(latents(200))
    with torch.no_grad():
        quantizer.codebook[:10] += 1000
        quantizer.sums[:10] = quantizer.codebook[:10] / K
    batch = latents(200, seed=2)
    for _ in range(5):  # 0.5^4 is below a tenth of an equal share
        quantizer(batch)
    vectors = batch.movedim(1, -1).reshape(-1, D)
    assert (torch.cdist(quantizer.codebook[:10], vectors).amin(1) < 15).all()


def with_far_codes() -> Quantizer:
    """A quantizer that replaces at once what is not chosen, and of which ten codes never are."""
    quantizer = make("ema", decay=0.0, kmeans_iterations=0)
    quantizer.match(latents(200))
    with torch.no_grad():
        quantizer.codebook[:10] += 1000
    return quantizer


def test_codes_are_replaced_by_finite_latents_only():
    quantizer, batch = with_far_codes(), latents(200, seed=2)
    before = quantizer.codebook.clone()
    quantizer.checks_values = False
    batch[1] = math.nan
    quantizer(batch)
    is_replaced = (quantizer.codebook != before).any(dim=1)[:10]
    assert is_replaced.any()
    fresh = quantizer.codebook[:10][is_replaced]
    assert (fresh[:, None] == batch[0].T).all(dim=2).any(dim=1).all()


def test_a_code_that_is_chosen_moves_to_the_mean_of_its_latents():
    quantizer = make("ema", decay=0.8, dead_share=0.0)
    quantizer.match(latents(300))
    for _ in range(60):
        codes = quantizer(latents(300)).codes.flatten()
    vectors = latents(300).movedim(1, -1).reshape(-1, D)
    for code in codes.unique():
        torch.testing.assert_close(quantizer.codebook[code], vectors[codes == code].mean(0), rtol=1e-2, atol=1e-2)


def test_k_means_leaves_less_error_than_random_latents():
    left = []
    for iterations in (0, 20):
        quantizer = make("ema", kmeans_iterations=iterations).eval()
        quantizer.match(latents(1000))
        left.append(float((quantizer(latents(1000)).quantized - latents(1000)).square().mean()))
    assert left[1] < 0.85 * left[0]


def test_first_batch_in_training_starts_the_codebook_and_later_ones_do_not():
    quantizer = make("ema")
    quantizer(latents(200))
    assert (quantizer(latents(200)).quantized - latents(200)).square().mean() < 0.4 * latents(200).var()
    started = quantizer.codebook.clone()
    restored = EMAVQ(K, D, decay=1 - 1e-9)
    restored.load_state_dict(quantizer.state_dict())
    restored(100 * latents(200))
    torch.testing.assert_close(restored.codebook, started)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_broken_latents_do_not_enter_the_codebook(value: float):
    quantizer, latent = make("ema"), latents(100)
    with_holes = torch.cat([latent, torch.full((2, D, 7), value)], dim=2)
    quantizer.checks_values = False
    for _ in range(2):  # it starts with the first batch
        quantizer(with_holes)
    assert quantizer.codebook.abs().max() < 10 * latent.abs().max()
    assert torch.isfinite(quantizer.usage).all()


@pytest.mark.parametrize(
    "first", [torch.full((2, D, 5), torch.nan), torch.ones(1, D, 1)], ids=["broken", "a single one"]
)
def test_a_batch_with_too_few_latents_leaves_the_start_to_the_next(first: torch.Tensor):
    quantizer, expected = make("ema"), make("ema")
    quantizer.checks_values = False
    quantizer(first)
    quantizer(latents(200))
    expected(latents(200))
    assert torch.equal(quantizer.codebook, expected.codebook)
    assert quantizer.num_updates == expected.num_updates


def test_a_state_from_before_the_start_is_started_again():
    quantizer = make("ema")
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents(200))
    quantizer.load_state_dict(before)
    quantizer(latents(200))
    assert (quantizer(latents(200)).quantized - latents(200)).square().mean() < 0.4 * latents(200).var()


def test_statistics_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch):
    """Two processes with the same latents have twice the sums, and the same means as one."""
    alone, one_of_two = make("ema"), make("ema")
    for quantizer in (alone, one_of_two):
        quantizer.match(latents(100))
    alone(latents(100, seed=2))
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        all_reduce=lambda tensor: tensor.mul_(2),
        broadcast=lambda tensor, source: None,
    )
    monkeypatch.setattr(rivals, "dist", fake)
    one_of_two(latents(100, seed=2))
    torch.testing.assert_close(one_of_two.codebook, alone.codebook)
    torch.testing.assert_close(one_of_two.usage, alone.usage)


def test_all_processes_start_with_the_codebook_of_the_first(monkeypatch: pytest.MonkeyPatch):
    sent: list[torch.Tensor] = []
    fake = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, all_reduce=lambda tensor: None)
    monkeypatch.setattr(rivals, "dist", fake)
    fake.broadcast = lambda tensor, source: sent.append(tensor.clone())
    first, second = make("ema", decay=1 - 1e-9), make("ema", decay=1 - 1e-9)
    first(latents(200))
    started = sent[0]
    fake.broadcast = lambda tensor, source: tensor.copy_(sent.pop(0))
    second(latents(200, seed=3))
    assert not sent
    torch.testing.assert_close(first.codebook, started)
    torch.testing.assert_close(second.codebook, started)


def test_all_processes_replace_codes_by_latents_of_the_first(monkeypatch: pytest.MonkeyPatch):
    sent: list[torch.Tensor] = []
    fake = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, all_reduce=lambda tensor: None)
    monkeypatch.setattr(rivals, "dist", fake)
    first, second = with_far_codes(), with_far_codes()
    fake.broadcast = lambda tensor, source: sent.append(tensor.clone())
    first(latents(200, seed=2))
    fake.broadcast = lambda tensor, source: tensor.copy_(sent.pop(0))
    second(latents(200, seed=3))
    assert torch.equal(second.codebook[:10], first.codebook[:10])


# -- the others


def test_factorised_codes_are_unit_vectors_and_nearest_by_cosine():
    quantizer, latent = make("fc", factor_dim=3).eval(), latents(100)
    assert isinstance(quantizer, FactorisedVQ)
    low = quantizer.project_in(latent.movedim(1, -1).reshape(-1, D))
    rows = quantizer.factors.effective_codebook()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(K))
    cosines = torch.cosine_similarity(low[:, None].double(), rows[None].double(), dim=-1)
    assert torch.equal(quantizer(latent).codes.flatten(), cosines.argmax(1))


def test_a_projector_without_bias_starts_as_identity_too():
    quantizer = make("lc", bias=False)
    quantizer.match(latents(200))
    torch.testing.assert_close(quantizer.effective_codebook(), quantizer.codebook)


def test_features_stay_frozen_and_the_projector_starts_as_identity():
    quantizer, latent = make("lc"), latents(100)
    assert isinstance(quantizer, FeatureVQ)
    quantizer.match(latent)
    vectors = latent.movedim(1, -1).reshape(-1, D)
    assert (quantizer.codebook[:, None] == vectors).all(2).any(1).all()
    torch.testing.assert_close(quantizer.effective_codebook(), quantizer.codebook)
    features = quantizer.codebook.clone()
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.1)
    quantizer(latents(100, seed=2)).loss.backward()
    optimizer.step()
    assert torch.equal(quantizer.codebook, features)
    assert not torch.equal(quantizer.effective_codebook(), features)


def test_fsq_codes_are_all_points_of_a_grid():
    quantizer = make("fsq")
    assert isinstance(quantizer, FSQ)
    points = quantizer._low_codebook()
    assert len(points.unique(dim=0)) == K
    assert [len(points[:, i].unique()) for i in range(points.shape[1])] == [8, 8]


@pytest.mark.parametrize("bits", range(2, 19))
def test_fsq_levels_multiply_to_the_codebook_size(bits: int):
    levels = fsq_levels(1 << bits)
    assert math.prod(levels) == 1 << bits
    assert set(levels) <= {4, 8}


def test_lfq_codes_are_the_signs_of_the_low_latent():
    quantizer, latent = make("lfq").eval(), latents(100)
    assert isinstance(quantizer, LFQ)
    low = quantizer.project_in(latent.movedim(1, -1).reshape(-1, D))
    bits = (low > 0).long() * 2 ** torch.arange(5, -1, -1)
    assert torch.equal(quantizer(latent).codes.flatten(), bits.sum(1))
    assert torch.equal(quantizer._low_codebook()[bits.sum(1)], torch.sign(low))


def test_lfq_entropy_loss_takes_as_many_latents_as_memory_allows(monkeypatch: pytest.MonkeyPatch):
    quantizer = make("lfq")
    monkeypatch.setattr(rivals, "LFQ_ENTROPY_TILE", 100 * K)
    quantizer(latents(200))
    assert quantizer.signs.frac_per_sample_entropy == 100 / 400
