"""The reference family: the published networks' numbers, and equal results however the work is cut up.

Expected numbers: `../shared/parity`, made by the published code in float32 with weights from an arithmetic rule. Its
README says how far that code lies from itself with other thread counts; the limits here are the ones it suggests.
"""

import zlib

import numpy as np
import pytest
import torch
import transcription
from folding import fold_weight_norm
from parity import MODELS, expected, fill, keys, needs_parity, speech, tensors, unit_variance
from torch import nn

from codec.config import compose
from codec.errors import ConfigError
from codec.model import importer, seanet, timeconv, upstream, vocos
from codec.model.seanet import SEANetEncoder, SEANetEncoderConfig, SEANetStream
from codec.model.vocos import VocosDecoder, VocosDecoderConfig, VocosStream
from codec.model.weights import blank
from codec.streaming import StreamEncoder


def kind_of(model):
    return model.split("-")[0]


@pytest.fixture(scope="module", params=MODELS)
def published(request):
    """Name, codec and state dict of a published network; SimVQ's with averaged weights, under the plain keys."""
    model = request.param
    roles = ["inference"] if kind_of(model) == "wavtokenizer" else ["ema-inference"]
    state = tensors(model, *roles)
    if kind_of(model) == "simvq":
        key = "quantize.embedding.weight"  # frozen, so it has no average
        state[key] = fill(key, keys(model)[key]["shape"])
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    codec, _ = importer.convert(state, kind_of(model))
    names = {upstream.ema_key(key): key for key in upstream.key_map(codec.config, kind_of(model))}
    return model, codec, {names.get(key, key): value for key, value in state.items()}


def largest(estimate, reference):
    return np.abs(estimate.numpy() - reference).max()


def relative(estimate, reference):
    return np.linalg.norm(estimate.numpy() - reference) / np.linalg.norm(reference)


# The fill rule -------------------------------------------------------------------------------------------------------


def test_fill_rule_has_the_published_check_values():
    assert unit_variance("head.out.bias", 3).tolist() == [0.15827693270556792, -0.2599281129995079, -1.599135419472707]
    values = fill("head.out.bias", [1282])
    assert values[:3] == pytest.approx([0.0079138465, -0.012996405, -0.07995677], abs=1e-8)
    assert zlib.crc32(values.tobytes()) == 2702744847


@needs_parity
@pytest.mark.parametrize("model", MODELS)
def test_filled_tensors_have_the_stored_checksums(model):
    small = {
        key: entry for key, entry in keys(model).items() if entry["rule"] != "kept" and "same_tensor_as" not in entry
    }
    by_rule = {(entry["rule"], entry["role"]): key for key, entry in small.items() if np.prod(entry["shape"]) < 1e6}
    assert len(by_rule) > 10
    for key in by_rule.values():
        entry = small[key]
        value = fill(entry.get("ema_of", key), entry["shape"], averaged="ema_of" in entry)
        assert zlib.crc32(value.tobytes()) == entry["crc32"], key


# Parity --------------------------------------------------------------------------------------------------------------


@needs_parity
@torch.no_grad()
def test_published_numbers(published):
    model, codec, _ = published
    reference = expected(model)
    for clip in ("short", "long"):
        wav = torch.from_numpy(speech(clip))[None, None]
        assert codec.encode(wav)[0].tolist() == reference[f"codes_{clip}"].tolist()
        decoded = codec.decode(torch.from_numpy(reference[f"codes_{clip}"]).long()[None])[0, 0]
        assert largest(decoded, reference[f"wave_{clip}"]) < 5e-6
        assert relative(decoded, reference[f"wave_{clip}"]) < 1e-4
    latent = codec.encoder(torch.from_numpy(speech("short"))[None, None])
    assert largest(latent[0], reference["latent_short"]) < 1e-4
    assert relative(latent[0], reference["latent_short"]) < 1e-4
    quantized = codec.quantizer(latent).quantized
    # SimVQ's own code gives latent + (code - latent), a rounding away from the code vector.
    assert largest(quantized[0], reference["quantized_short"]) <= (0 if kind_of(model) == "wavtokenizer" else 1e-5)
    assert largest(codec.decoder.trunk(quantized)[0], reference["backbone_short"]) < 5e-5


@needs_parity
@torch.no_grad()
def test_the_transcription_has_the_published_numbers(published):
    model, codec, state = published
    reference = expected(model)
    latent = transcription.latent(state, kind_of(model), torch.from_numpy(speech("short")))
    codebook = transcription.effective_codebook(state, kind_of(model))
    codes, margins = transcription.codes_and_margins(codebook, latent)
    wave = transcription.wave(state, codebook[codes].T, codec.hop_length)
    assert codes.tolist() == reference["codes_short"].tolist()
    assert largest(margins, reference["margin_short"]) < 0.01
    assert largest(latent, reference["latent_short"]) < 1e-4
    assert largest(wave, reference["wave_short"]) < 5e-6


@needs_parity
@torch.no_grad()
def test_other_weights_of_full_size_give_the_numbers_of_the_transcription(published, monkeypatch):
    """Each tensor's values moved on by a number of places that its key tells: another network, as healthy as before."""
    model, codec, state = published
    kind = kind_of(model)
    state = {key: value.flatten().roll(zlib.crc32(key.encode())).view_as(value) for key, value in state.items()}
    names = upstream.key_map(codec.config, kind)
    other = blank(codec.config).eval()
    other.load_state_dict(
        {name: state[key][0] if upstream.is_conditioned(key) else state[key] for key, name in names.items()}
    )
    wav = torch.from_numpy(speech("long"))[7000:19111]
    latent = transcription.latent(state, kind, wav)
    codebook = transcription.effective_codebook(state, kind)
    codes, margins = transcription.codes_and_margins(codebook, latent)
    wave = transcription.wave(state, codebook[codes].T, codec.hop_length)
    monkeypatch.setattr(seanet, "CHUNK_SAMPLES", 3000)
    monkeypatch.setattr(vocos, "BLOCK_FRAMES", 16)
    monkeypatch.setattr(vocos, "TILE_FRAMES", 16)
    encoder = StreamEncoder(other)
    for ours in (other.encode(wav[None, None])[0], torch.cat([*map(encoder.push, wav.split(2001)), encoder.flush()])):
        assert (ours != codes)[margins > 0.01].sum() == 0
        assert (ours != codes).sum() <= 1
    assert relative(other.encoder(wav[None, None])[0], latent.numpy()) < 1e-5
    assert relative(other.decode(codes[None])[0, 0], wave.numpy()) < 1e-5


@needs_parity
@torch.no_grad()
def test_bfloat16_moves_few_codes_and_little_sound(published):
    model, codec, _ = published
    reference = expected(model)
    with torch.autocast("cpu", torch.bfloat16):
        codes = codec.encode(torch.from_numpy(speech("long"))[None, None])[0]
        decoded = codec.decode(torch.from_numpy(reference["codes_short"]).long()[None])[0, 0]
    # 8 bits of mantissa: measured 1.5 to 3.2 % of the codes, and noise 35 dB below the sound.
    assert (codes.numpy() != reference["codes_long"]).mean() < 0.06
    assert decoded.dtype == torch.float32
    assert relative(decoded, reference["wave_short"]) < 10 ** (-30 / 20)


@needs_parity
@torch.no_grad()
def test_folded_weight_norm_gives_the_same_numbers(published):
    _, codec, _ = published  # folded for good, so this comes last of the tests with published codecs
    before = codec.encoder(torch.from_numpy(speech("short"))[None, None])
    fold_weight_norm(codec)
    after = codec.encoder(torch.from_numpy(speech("short"))[None, None])
    assert largest(after[0], before[0].numpy()) == 0
    assert not any("parametrizations" in name for name in codec.state_dict())


@needs_parity
@pytest.mark.parametrize("model", MODELS)
def test_the_named_variants_are_the_published_networks(model):
    shapes = {key: entry["shape"] for key, entry in keys(model).items()}
    assert upstream.infer_config(kind_of(model), shapes) == compose([f"model={model}"]).model


@needs_parity
def test_published_numbers_of_the_raw_weights():
    model = "simvq-4k"
    state = {key: torch.from_numpy(value) for key, value in tensors(model, "inference").items()}
    codec, report = importer.convert(state, "simvq", weights="raw")
    reference = expected(model)
    codes = codec.encode(torch.from_numpy(speech("long"))[None, None])
    assert codes[0].tolist() == reference["codes_raw_long"].tolist()
    assert (reference["codes_raw_long"] != reference["codes_long"]).any()
    codes = torch.from_numpy(reference["codes_raw_short"]).long()[None]
    assert largest(codec.decode(codes)[0, 0], reference["wave_raw_short"]) < 5e-6
    assert report.weights == "raw"


# Equal however it is cut up ------------------------------------------------------------------------------------------


def tiny_encoder(**settings):
    torch.manual_seed(0)
    return SEANetEncoder(SEANetEncoderConfig(latent_dim=6, num_filters=4, **settings)).double().eval()


def tiny_decoder(**settings):
    torch.manual_seed(0)
    config = VocosDecoderConfig(latent_dim=6, width=16, inner_width=24, num_groups=4, num_blocks=2, **settings)
    decoder = VocosDecoder(config).eval()
    for parameter in decoder.parameters():  # far from their start, where most of them do nothing
        nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("strides", [[2, 4, 5], [3, 5], [4, 5, 5, 6]], ids=str)
def test_encoding_in_stretches_equals_one_pass(is_causal, strides, monkeypatch):
    encoder = tiny_encoder(strides=strides, is_causal=is_causal)
    hop_length = encoder.hop_length
    monkeypatch.setattr(seanet, "CHUNK_SAMPLES", 5 * hop_length)
    for num_samples in (8 * hop_length, 21 * hop_length + 1, 40 * hop_length - 1, 33 * hop_length + hop_length // 2):
        wav = torch.randn(2, 1, num_samples, dtype=torch.float64)
        whole = encoder(wav)  # with gradients, hence in one pass
        with torch.no_grad():
            assert torch.allclose(encoder(wav), whole, rtol=0, atol=1e-12)
        assert whole.shape == (2, 6, -(-num_samples // hop_length))


@pytest.mark.parametrize("num_samples", [1, 2, 7, 39, 40, 41, 80])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "centred"])
def test_signals_shorter_than_the_padding_can_be_encoded(num_samples, is_causal):
    latent = tiny_encoder(strides=[2, 4, 5], is_causal=is_causal)(torch.randn(1, 1, num_samples, dtype=torch.float64))
    assert latent.shape == (1, 6, -(-num_samples // 40))
    assert torch.isfinite(latent).all()


def test_reflection_has_zeros_behind_a_signal_that_is_too_short():
    x = torch.tensor([1.0, 2.0])[None, :, None]
    assert seanet.reflect(x, 1, 0).flatten().tolist() == [2, 1, 2]
    # Continued by zeros to 1 2 0 0, mirrored on both sides, the two zeros taken off the end again.
    assert seanet.reflect(x, 3, 2).flatten().tolist() == [0, 0, 2, 1, 2, 0, 0]


def test_causal_encoder_sees_no_future_frame():
    encoder = tiny_encoder(strides=[2, 4, 5], is_causal=True)
    wav = torch.randn(1, 1, 40 * 12, dtype=torch.float64)
    changed = wav.clone()
    changed[..., 40 * 7 :] += 1
    difference = (encoder(wav) - encoder(changed)).abs().amax(1)[0]
    assert (difference[:7] == 0).all()
    assert (difference[7:] > 0).all()


@pytest.mark.parametrize("num_frames", [1, 3, 8, 29])
def test_decoding_in_blocks_equals_one_pass(num_frames, monkeypatch):
    monkeypatch.setattr(vocos, "BLOCK_FRAMES", 4)
    monkeypatch.setattr(vocos, "TILE_FRAMES", 5)
    decoder = tiny_decoder(n_fft=40, hop_length=10)
    latent = torch.randn(2, 6, num_frames)
    whole = decoder(latent)  # with gradients, hence in one pass
    with torch.no_grad():
        assert torch.allclose(decoder(latent), whole, rtol=1e-4, atol=1e-5)
    assert whole.shape == (2, 1, 10 * num_frames)


@torch.no_grad()
def test_attention_in_tiles_survives_scores_that_would_overflow(monkeypatch):
    monkeypatch.setattr(vocos, "TILE_FRAMES", 4)
    query, key, value = torch.randn(3, 1, 11, 8).double()
    usual = nn.functional.scaled_dot_product_attention(100 * query, 100 * key, value)
    assert torch.allclose(vocos.attend(100 * query, 100 * key, value), usual, atol=1e-5)


def test_items_of_a_batch_do_not_touch_each_other():
    encoder, decoder = tiny_encoder(strides=[2, 4, 5], is_causal=False), tiny_decoder(n_fft=40, hop_length=10)
    wav, latent = torch.randn(3, 1, 410, dtype=torch.float64), torch.randn(3, 6, 9)
    with torch.no_grad():
        assert torch.allclose(encoder(wav)[1:2], encoder(wav[1:2]), atol=1e-12)
        assert torch.allclose(decoder(latent)[1:2], decoder(latent[1:2]), atol=1e-4)


# The head ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_head_inverts_a_short_time_fourier_transform():
    n_fft, hop_length, num_frames = 64, 16, 12
    wav = torch.randn(1, num_frames * hop_length)
    head = vocos.InverseSTFTHead(n_fft + 2, n_fft, hop_length).eval()
    # A head that hands its input on, and as input the spectra of the windows centred on each hop.
    head.output.weight.copy_(torch.eye(n_fft + 2))
    head.output.bias.zero_()
    padded = nn.functional.pad(wav, ((n_fft - hop_length) // 2,) * 2)
    spectra = torch.fft.rfft(padded.unfold(-1, n_fft, hop_length) * torch.hann_window(n_fft))
    features = torch.cat([spectra.abs().log(), spectra.angle()], dim=-1)
    assert torch.allclose(head(features), wav, atol=1e-4)


def test_an_absurd_log_magnitude_gives_a_finite_sound_and_gradient():
    head = vocos.InverseSTFTHead(8, 64, 16)
    x = torch.full((1, 5, 8), 1e4, requires_grad=True)
    wav = head(x)
    wav.sum().backward()
    assert torch.isfinite(wav).all()
    assert torch.isfinite(x.grad).all()


# Derived weights -----------------------------------------------------------------------------------------------------


def test_kept_weights_follow_the_parameters():
    layer = timeconv.TimeConv1d(3, 5, 3)
    nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(1, 9, 3)

    def usual():
        return nn.functional.conv1d(x.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2)

    layer.eval()
    with torch.no_grad():
        assert torch.allclose(layer(x), usual(), atol=1e-6)
        layer.parametrizations.weight.original0.mul_(3)
        assert torch.allclose(layer(x), usual(), atol=1e-6)
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
        assert torch.allclose(layer(x), usual(), atol=1e-6)
        layer.train()
        layer.parametrizations.weight.original0.data.mul_(2)  # behind torch's back
        layer.eval()
        assert torch.allclose(layer(x), usual(), atol=1e-6)


def test_training_reaches_every_parameter():
    encoder, decoder = tiny_encoder(strides=[2, 4, 5]).float().train(), tiny_decoder(n_fft=160, hop_length=40).train()
    decoder(encoder(torch.randn(2, 1, 800))).square().sum().backward()
    for module in (encoder, decoder):
        assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("width", [1, 5])
def test_convolution_over_time_is_the_usual_one(stride, groups, width):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 17, 8), torch.randn(12, 8 // groups, width), torch.randn(12)
    usual = nn.functional.conv1d(x.transpose(1, 2), weight, bias, stride=stride, groups=groups).transpose(1, 2)
    ours = timeconv.conv1d(x, weight, bias, stride, groups)
    assert torch.allclose(ours, usual, atol=1e-5)
    assert ours.is_contiguous()


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("piece", [1, 13, 40, 333])
@torch.no_grad()
def test_streamed_encoding_equals_one_pass(is_causal, piece, monkeypatch):
    monkeypatch.setattr(seanet, "CHUNK_SAMPLES", 200)
    encoder = tiny_encoder(strides=[2, 4, 5], is_causal=is_causal)
    for num_samples in (1, 39, 40, 41, 160, 321, 999):
        stream = SEANetStream(encoder)
        wav = torch.randn(1, 1, num_samples, dtype=torch.float64)
        parts = [stream.push(part) for part in wav.split(piece, dim=-1)]
        together = torch.cat([*parts, stream.flush()], dim=-1)
        assert together.shape == (1, 6, -(-num_samples // 40))
        assert torch.allclose(together, encoder(wav), rtol=0, atol=1e-12)
    assert SEANetStream(encoder).flush().shape == (1, 6, 0)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "centred"])
@torch.no_grad()
def test_lookahead_of_a_stream_is_what_a_frame_depends_on(is_causal):
    encoder = tiny_encoder(strides=[2, 4, 5], is_causal=is_causal)
    stream, wav = SEANetStream(encoder), torch.randn(1, 1, 40 * 30, dtype=torch.float64)
    end = 40 * 11 + stream.lookahead_samples  # of what frame 10 depends on
    assert stream.push(wav[..., : end - 1]).shape[-1] == 10
    assert stream.push(wav[..., end - 1 : end]).shape[-1] == 1
    depends = []
    for sample in (end - 1, end):
        changed = wav.clone()
        changed[..., sample] += 1
        depends.append(bool((encoder(changed) != encoder(wav))[0, :, 10].any()))
    assert depends == [True, False]


@pytest.mark.parametrize("piece", [1, 7, 100])
@torch.no_grad()
def test_decoding_in_windows_is_complete_and_equal_where_one_window_is_enough(piece):
    decoder = tiny_decoder(n_fft=40, hop_length=10)
    for num_frames in (1, 16, 25, 26, 63, 100):
        stream = VocosStream(decoder, window=16, overlap=10)
        latent = torch.randn(2, 6, num_frames)
        wav = torch.cat([*(stream.push(part) for part in latent.split(piece, dim=-1)), stream.flush()], dim=-1)
        assert wav.shape == (2, 1, 10 * num_frames)
        if num_frames <= 26:
            assert torch.allclose(wav, decoder(latent), atol=1e-5)
    with pytest.raises(ConfigError, match="at least 1 and 8, got 16 and 3"):
        VocosStream(decoder, window=16, overlap=3)


@torch.no_grad()
def test_windows_agree_where_nothing_spans_the_whole_signal():
    decoder = tiny_decoder(n_fft=40, hop_length=10)
    decoder.prenet = nn.Identity()
    stream, latent = VocosStream(decoder, window=16, overlap=20), torch.randn(1, 6, 90)
    wav = torch.cat([stream.push(latent), stream.flush()], dim=-1)
    assert torch.allclose(wav, decoder(latent), atol=1e-5)


@torch.no_grad()
def test_streams_keep_no_more_in_memory_than_they_need():
    encoding, decoding = (
        SEANetStream(tiny_encoder(strides=[2, 4, 5])),
        VocosStream(tiny_decoder(n_fft=40, hop_length=10), 16, 10),
    )
    encoding.push(torch.randn(1, 1, 40 * 100, dtype=torch.float64))
    decoding.push(torch.randn(1, 6, 100))
    for kept in (encoding._wav, *encoding._features, decoding._latent, decoding._fading):
        assert kept.untyped_storage().nbytes() == kept.nbytes


# How training starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_weight_norm", [True, False])
def test_standardized_convolutions_have_mean_0_and_variance_1(has_weight_norm):
    encoder = tiny_encoder(has_weight_norm=has_weight_norm)
    wav = 0.05 * torch.randn(3, 1, 40 * encoder.hop_length, dtype=torch.float64)
    with torch.no_grad():
        encoder(wav)  # weights derived before are not kept
    encoder.standardize(wav)
    outputs = []
    for layer in encoder.modules():
        if isinstance(layer, timeconv.TimeConv1d):
            layer.register_forward_hook(lambda _layer, _input, output: outputs.append(output.detach().clone()))
    encoder(wav)
    assert len(outputs) == 18  # the first, four in each stage, the last
    for output in outputs:
        deviation, mean = torch.std_mean(output, dim=(0, 1), correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)


def test_only_a_standardized_encoder_is_more_than_a_linear_filter():
    """An affine map, which cannot tell how loud a sound is, gives f(x) + f(-x) = 2 f(0)."""
    torch.manual_seed(0)
    encoder = SEANetEncoder(SEANetEncoderConfig(num_filters=8))
    wav = 0.05 * torch.randn(1, 1, 40 * encoder.hop_length)

    def even_share():
        with torch.no_grad():
            plus, minus, rest = (encoder.convolve(sound, 0, 40) for sound in (wav, -wav, 0 * wav))
        return ((plus + minus - 2 * rest).norm() / (plus - minus).norm()).item()

    assert even_share() < 0.1
    encoder.standardize(wav)
    assert even_share() > 0.5


def test_a_channel_that_does_not_vary_stays_as_it_is():
    encoder = tiny_encoder(num_lstm_layers=0)
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    encoder.standardize(torch.zeros(1, 1, 10 * encoder.hop_length, dtype=torch.float64))
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter, before[name])
