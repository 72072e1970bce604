"""Model directories: what is loaded is what was saved, and no time goes into numbers that would be overwritten."""

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codec.errors import ConfigError, ModelError
from codec.model.catalogue import describe
from codec.model.codec import Codec, CodecConfig
from codec.model.quantizer import VQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.model.weights import fingerprint, load, read_tensors, save
from codec.streaming import StreamDecoder, StreamEncoder, WindowDecoder


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


def test_weights_of_another_network_are_refused_by_name_and_number(tmp_path):
    save(small_reference(), tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    first, second, third, *_ = names = sorted(tensors)
    for changed, end in (
        ({name: tensors[name] for name in names[1:]}, f"lacks {first}"),
        ({name: tensors[name] for name in names[3:]}, f"lacks {first} and 2 more"),
        (tensors | {"b": torch.ones(1), "c": torch.ones(1)}, "has unknown b and 1 more"),
        (tensors | {name: tensors[name][None] for name in (second, third)}, f"another shape for {second} and 1 more"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=rf"model\.safetensors: .*{end}$"):
            load(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '{"sample_rate": 24000, "decoder": 3}', '{"sample_rate": 1, "decoder": {}}']
)
def test_what_is_no_configuration_of_a_model_is_refused_by_what_it_must_have(text, tmp_path):
    save(small_reference(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ModelError, match=r"config\.json: is not a model's configuration, which has sample_rate, .*size$"
    ):
        describe(tmp_path)


def test_a_type_of_weights_that_could_not_be_loaded_leaves_the_model_there_as_it_was(tmp_path):
    save(small_reference(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"floating-point numbers, such as torch.float16, got torch.int32"):
        save(small_reference(), tmp_path, dtype=torch.int32)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_stored_in_the_type_that_was_asked_for(dtype, tmp_path):
    model = small_reference()
    save(model, tmp_path, dtype=dtype)
    stored = read_tensors(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert stored[name].dtype == expected.dtype
        assert torch.equal(stored[name], expected), name


def test_weights_that_are_replaced_while_they_are_read_have_no_name_of_others(model_directory, tmp_path, monkeypatch):
    model = Path(shutil.copytree(model_directory, tmp_path / "model"))

    def read_before_training_goes_on(path: Path) -> dict[str, Tensor]:
        tensors = read_tensors(path)
        (model / "next").write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 0.125))
        (model / "next").replace(path)
        return tensors

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("codec.model.weights.read_tensors", read_before_training_goes_on)
        with pytest.raises(ModelError, match="was replaced while it was read, as by training that goes on; load it"):
            load(model)
    loaded = load(model)
    assert loaded.fingerprint == fingerprint(loaded)


def test_loading_draws_no_random_numbers(model_directory, tmp_path):
    save(small_reference(), tmp_path / "reference")
    for directory in (model_directory, tmp_path / "reference"):
        before = torch.get_rng_state()
        load(directory)
        assert torch.equal(torch.get_rng_state(), before), "initial values were drawn, to be overwritten"


@pytest.fixture
def set_default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def work_of(directory: Path) -> Iterator[Tensor]:
    """All that a model gives for some noise."""
    model = load(directory)
    yield from model.state_dict().values()
    wav = 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    codes, lengths = model.encode(wav), torch.tensor([9000])
    yield from (codes, model.decode(codes), model.encode(wav, lengths), model.decode(codes, lengths), model(wav).wav)
    encoder = StreamEncoder(model)
    decoder = StreamDecoder(model) if model.is_streamable else WindowDecoder(model, window=20, overlap=10)
    yield from (encoder.push(wav[0, 0, :7000]), encoder.push(wav[0, 0, 7000:]), encoder.flush(), encoder.flush())
    yield from (decoder.push(codes[0, :25]), decoder.push(codes[0, 25:]), decoder.flush(), decoder.flush())


def test_the_default_type_of_new_tensors_changes_nothing(model_directory, tmp_path, set_default_dtype):
    save(small_reference(), tmp_path / "reference")
    directories = (model_directory, tmp_path / "reference")
    expected = [list(work_of(directory)) for directory in directories]
    set_default_dtype(torch.float64)
    for directory, those in zip(directories, expected, strict=True):
        for tensor, other in zip(work_of(directory), those, strict=True):
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other)


def test_a_model_whose_parts_were_wrapped_is_not_saved(model_directory, tmp_path):
    """Its weights have other names then, as those of `torch.compile(model.decoder)` have."""
    model = load(model_directory)
    model.decoder = torch.nn.Sequential(model.decoder)
    with pytest.raises(ModelError, match=r"parts were replaced cannot be saved .*; compile a part in place"):
        save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    StreamDecoder(model)  # what its decoder can do is known all the same
