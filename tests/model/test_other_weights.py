"""Other weights and other speech than the stored ones, against networks written a second time in plain operations.

The stored numbers of `../shared/parity` are those of one clip and one fill. Here weights come from other seeds, speech
is other speech, and every way in which our modules cut up or prepare their work must give what `transcription`, which
does nothing of the kind, gives in float64.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transcription
from folding import fold_weight_norm
from parity import LAYOUT, offset_and_scale, unit_variance

from codec.model import importer, seanet, upstream, vocos
from codec.model.codec import Codec
from codec.streaming import StreamEncoder, WindowDecoder

CLEAR = 1e-3
"""Squared distance by which a nearest code must win to be the same in float32; the distances are about 100."""
NETWORKS = {
    "wavtokenizer-75": ("wavtokenizer", (2, 4, 5, 8)),
    "wavtokenizer-40": ("wavtokenizer", (4, 5, 5, 6)),
    "simvq": ("simvq", (2, 4, 5, 8)),
}


def other_state(kind: str, strides: tuple[int, ...], seed: str) -> transcription.State:
    """A checkpoint of the published layout with a tenth of the channels, filled from other seed strings."""
    kernels = {f"encoder.model.{3 + 3 * i}.conv.conv.weight_v": 2 * stride for i, stride in enumerate(strides)}
    state = {}
    for key, (role, shape, _) in LAYOUT[kind].items():
        if role != "inference":
            continue
        last = next((size for end, size in kernels.items() if key.endswith(end) and ".decoder." not in key), None)
        shape = [*shape[:-1], last] if last else shape
        shape = [4 * int(np.prod(strides)) + 2, *shape[1:]] if key.startswith("head.out.") else shape
        offset, scale = offset_and_scale(key, shape)
        values = offset + scale * unit_variance(seed + key, int(np.prod(shape)))
        state[key] = torch.from_numpy(values.astype(np.float32)).view(*shape)
    return state


class Case:
    """A network, a clip, and what the transcription makes of them."""

    def __init__(self, name: str, wav: torch.Tensor):
        self.kind, strides = NETWORKS[name]
        self.state = other_state(self.kind, strides, seed="other:")
        self.wav = wav
        exact = {key: value.double() for key, value in self.state.items()}
        self.latent = transcription.latent(exact, self.kind, wav.double())
        codebook = transcription.effective_codebook(exact, self.kind)
        self.codes, margins = transcription.codes_and_margins(codebook, self.latent)
        self.is_clear = margins > CLEAR
        self.wave = transcription.wave(exact, codebook[self.codes].T, int(np.prod(strides)))

    def codec(self) -> Codec:
        """Our network with these weights."""
        return importer.convert(self.state, self.kind, weights="raw")[0]

    def check_codes(self, codes: torch.Tensor) -> None:
        assert codes.shape == self.codes.shape
        assert self.is_clear.float().mean() > 0.98
        assert len(self.codes.unique()) > 10, "a test of few codes tests little"
        assert torch.equal(codes[self.is_clear], self.codes[self.is_clear])


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    samples, _ = soundfile.read(Path(__file__).parents[1] / "data" / "speech.flac", dtype="float32")
    return Case(request.param, torch.from_numpy(samples)[20_011:63_333])


@pytest.fixture(params=["one pass", "in stretches"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much at once as fits, or everything in the smallest stretches."""
    if request.param == "in stretches":
        monkeypatch.setattr(seanet, "CHUNK_SAMPLES", 4000)
        monkeypatch.setattr(vocos, "BLOCK_FRAMES", 17)
        monkeypatch.setattr(vocos, "TILE_FRAMES", 19)


def relative(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    return float((estimate - reference).norm() / reference.norm())


@pytest.mark.parametrize("is_folded", [False, True], ids=["weight norm", "folded"])
@torch.no_grad()
def test_both_ways_agree_with_the_transcription(case: Case, cut: None, is_folded: bool):
    codec = case.codec()
    if is_folded:
        fold_weight_norm(codec)
    case.check_codes(codec.encode(case.wav[None, None])[0])
    assert relative(codec.encoder(case.wav[None, None])[0], case.latent) < 1e-5
    assert relative(codec.decode(case.codes[None])[0, 0], case.wave) < 1e-5


@pytest.mark.parametrize("piece", [1000, 5003])
def test_streamed_encoding_agrees_with_the_transcription(case: Case, cut: None, piece: int):
    encoder = StreamEncoder(case.codec())
    case.check_codes(torch.cat([*map(encoder.push, case.wav.split(piece)), encoder.flush()]))


def test_windows_that_hold_everything_agree_with_the_transcription(case: Case, cut: None):
    decoder = WindowDecoder(case.codec(), window=len(case.codes) - 8, overlap=8)
    wav = torch.cat([*map(decoder.push, case.codes.split(50)), decoder.flush()])
    assert relative(wav, case.wave) < 1e-5


@pytest.mark.parametrize("case", ["wavtokenizer-75", "wavtokenizer-40"], indirect=True)
def test_simvq_in_the_place_of_the_codebook_agrees_with_the_transcription(case: Case):
    case.check_codes(importer.replace_codebook(case.codec()).encode(case.wav[None, None])[0])


def test_export_of_the_import_agrees_with_the_transcription(case: Case):
    exported = importer.export_state_dict(case.codec())
    state = {key: value.double() for key, value in exported.items()}
    assert set(state) - set(case.state) == {upstream.WINDOW}
    latent = transcription.latent(state, case.kind, case.wav.double())
    assert relative(latent, case.latent) < 1e-12
    codebook = transcription.effective_codebook(state, case.kind)
    hop_length = len(case.wave) // len(case.codes)
    assert relative(transcription.wave(state, codebook[case.codes].T, hop_length), case.wave) < 1e-6
