"""Models compute where they are: on a device that refuses what is on the CPU, and has no float64, as on the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.audio import read
from codec.model import weights
from codec.model.codec import QUANTIZERS, Codec


def both(directory: Path) -> tuple[Codec, Codec]:
    """A model on the CPU, and on the device."""
    near, far = weights.load(directory), weights.load(directory, "far")
    assert {tensor.device.type for tensor in far.state_dict().values()} == {far.device.type} == {"far"}
    return near, far


def second_of(speech: Path) -> Tensor:
    """(1, 1, 24000)."""
    return torch.from_numpy(read(speech)[0][None, :, 24000:48000])


def assert_alike(near: Tensor, far: Tensor) -> None:
    torch.testing.assert_close(far.cpu(), near, atol=1e-5, rtol=1e-4)


def round_trip(directory: Path, speech: Path) -> None:
    near, far = both(directory)
    wav, lengths = second_of(speech).expand(2, -1, -1), torch.tensor([24000, 9000])
    for given in ((), (lengths,), (lengths.to("far"),)):
        codes = near.encode(wav, *(some.cpu() for some in given))
        far_codes = far.encode(wav.to("far"), *given)
        assert far_codes.device.type == "far"
        assert torch.equal(far_codes.cpu(), codes)
        sound = far.decode(far_codes, *given)
        assert sound.device.type == "far"
        assert_alike(near.decode(codes, *(some.cpu() for some in given)), sound)


def streams(directory: Path, speech: Path) -> None:
    models, wav = both(directory), second_of(speech)[0, 0]
    encoders, decoders = ([kind(model) for model in models] for kind in (codec.StreamEncoder, codec.StreamDecoder))
    for piece in wav.split(5000):
        codes, far_codes = (encoder.push(piece.to(encoder.codec.device)) for encoder in encoders)
        assert torch.equal(far_codes, codes)
        assert_alike(*(decoder.push(codes.to(decoder.codec.device)) for decoder in decoders))
    for near, far in (encoders, decoders):
        far.load_state_dict(near.state_dict())  # from one device to the other
        near.load_state_dict(far.state_dict())
    assert torch.equal(*(encoder.flush() for encoder in encoders))
    joined = [decoder.join(decoder).select(torch.tensor([True, True])) for decoder in decoders]
    assert_alike(*(decoder.push(torch.tensor([[1], [2]])) for decoder in joined))


def refinement(directory: Path, speech: Path) -> None:
    encoders = [codec.RefiningEncoder(model, steps=2) for model in both(directory)]
    for encoder in encoders:
        encoder.push(second_of(speech).to(encoder.codec.device))
    assert torch.equal(*(encoder.flush() for encoder in encoders))


def matching(directory: Path, speech: Path) -> None:
    latent = torch.randn(1, 6, 200, generator=torch.Generator().manual_seed(0))
    for kind in ("vq", "simvq", "predictive", "ema", "fc", "lc"):
        near = QUANTIZERS[kind][1](64, 6).eval()
        far = copy.deepcopy(near).to("far")
        near.match(latent)
        far.match(latent.to("far"))
        assert_alike(near.effective_codebook(), far.effective_codebook())


@pytest.mark.parametrize("check", [round_trip, streams, refinement, matching])
def test_models_compute_where_they_are(
    on_far_device: Callable[..., None], check: Any, model_directory: Path, speech: Path
):
    on_far_device(check, model_directory, speech)
