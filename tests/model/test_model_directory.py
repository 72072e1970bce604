"""Model directories: what is loaded is what was saved, and no time goes into numbers that would be overwritten."""

import pytest
import torch
from safetensors.torch import save_file

from codec.errors import ModelError
from codec.model.codec import Codec, CodecConfig
from codec.model.quantizer import VQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.model.weights import load, read_tensors, save
from codec.streaming import StreamDecoder


def small_reference() -> Codec:
    torch.manual_seed(0)
    encoder = SEANetEncoderConfig(latent_dim=8, num_filters=4)
    decoder = VocosDecoderConfig(latent_dim=8, width=16, inner_width=24, num_blocks=2, num_groups=4)
    return Codec(CodecConfig(24000, encoder, VQConfig(codebook_size=32, codebook_dim=8), decoder)).eval()


def test_a_loaded_model_is_the_saved_one_with_every_table_that_is_not_saved(model_directory, tmp_path):
    save(small_reference(), tmp_path / "reference")
    for directory in (model_directory, tmp_path / "reference"):
        loaded = load(directory)
        stored, built = read_tensors(directory / "model.safetensors"), Codec(loaded.config)
        tables = dict(built.named_buffers()).keys() - stored.keys()
        assert tables
        for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
            expected = built.get_buffer(name) if name in tables else stored[name]
            assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int8])
def test_weights_that_are_no_real_numbers_are_refused(dtype, tmp_path):
    save(small_reference(), tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model\.safetensors: .* has another kind of numbers for {name}"):
        load(tmp_path)


def test_loading_draws_no_random_numbers(model_directory, tmp_path):
    save(small_reference(), tmp_path / "reference")
    for directory in (model_directory, tmp_path / "reference"):
        before = torch.get_rng_state()
        load(directory)
        assert torch.equal(torch.get_rng_state(), before), "initial values were drawn, to be overwritten"


def test_a_model_whose_parts_were_wrapped_is_not_saved(model_directory, tmp_path):
    """Its weights have other names then, as those of `torch.compile(model.decoder)` have."""
    model = load(model_directory)
    model.decoder = torch.nn.Sequential(model.decoder)
    with pytest.raises(ModelError, match=r"parts were replaced cannot be saved .*; compile a part in place"):
        save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    StreamDecoder(model)  # what its decoder can do is known all the same
