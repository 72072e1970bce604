"""Import and export of published checkpoints, on small ones of exactly the published layout.

Channels are about a tenth of the published ones, kernels and the spectral head are not.
"""

import collections
import dataclasses
import pickle
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
import yaml
from folding import fold_weight_norm
from parity import LAYOUT, fill, kept
from safetensors.torch import load_file, save_file

import codec as package
from codec.cli import run
from codec.config import compose
from codec.errors import ConfigError, ModelError
from codec.model import upstream
from codec.model.codec import Codec
from codec.model.importer import (
    convert,
    export_checkpoint,
    export_state_dict,
    import_checkpoint,
    replace_codebook,
)
from codec.model.predictive import PredictiveSimVQConfig
from codec.model.rivals import FactorisedVQConfig

KINDS = ("wavtokenizer", "simvq")


def layout(kind, *roles):
    """Key -> shape of the keys with these roles, of all without any."""
    return {key: shape for key, (role, shape, _) in LAYOUT[kind].items() if not roles or role in roles}


def small_state(kind):
    """A state dict of the published layout, filled by the rule of `parity`."""
    dotted = {upstream.ema_key(key): key for key in LAYOUT[kind]}
    state = collections.OrderedDict()
    for key, (role, shape, note) in LAYOUT[kind].items():
        if role in ("derived-buffer", "loss-buffer", "ema-state"):
            value = kept(key, shape)
        elif role.startswith("ema"):
            value = fill(dotted[key], shape, averaged=True)
        else:
            value = fill(note if note and note != "loader" else key, shape)
        state[key] = torch.from_numpy(np.array(value))
    return state


STATES = {kind: small_state(kind) for kind in KINDS}


def checkpoint_of(state):
    """What Lightning wraps around a state dict."""
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.8.6",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"completed": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(5.5)}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"sample_rate": 24000, "initial_learning_rate": 2e-4, "resume_config": "a.yaml"},
        "MixedPrecision": {"scale": 65536.0, "_growth_tracker": 7},
    }


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """Kind and path of a small checkpoint."""
    path = tmp_path_factory.mktemp("checkpoints") / "model.ckpt"
    torch.save(checkpoint_of(STATES[request.param]), path)
    return request.param, path


def edited(tmp_path, kind, **changes):
    """A checkpoint with some tensors changed; None takes a key out."""
    state = {**STATES[kind], **changes}
    path = tmp_path / "edited.ckpt"
    torch.save({"state_dict": {key: value for key, value in state.items() if value is not None}}, path)
    return path


def stripped(tmp_path, kind):
    """A bare state dict of the raw codec alone, which is read faster."""
    path = tmp_path / "stripped.pt"
    torch.save({key: STATES[kind][key] for key in layout(kind, "inference")}, path)
    return path


def refuse(path, kind, tmp_path, match, **options):
    """Import must fail with one sentence that names the file, and leave nothing behind."""
    out = tmp_path / "out" / "model"
    before = sorted(tmp_path.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ModelError, ConfigError), match=match) as caught:
            import_checkpoint(path, kind, out, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((str(path), str(options.get("config"))))
    assert sorted(tmp_path.rglob("*")) == before


# What is imported ----------------------------------------------------------------------------------------------------


def test_every_key_is_accounted_for(checkpoint, tmp_path):
    kind, path = checkpoint
    report = import_checkpoint(path, kind, tmp_path / "model")
    reported = [*report.matched, *(key for keys in report.unused.values() for key in keys)]
    assert sorted(reported) == sorted(LAYOUT[kind])
    assert report.missing == []
    unused = {group: len(keys) for group, keys in report.unused.items()}
    if kind == "wavtokenizer":
        assert sorted(report.matched) == sorted(layout(kind, "inference"))
        assert unused == {
            "codebook statistics": 3,
            "SEANet decoder, never called": 62,
            "discriminators": 800,
            "tables that are computed": 3,
        }
    else:
        assert sorted(report.matched) == sorted([*layout(kind, "ema-inference"), "quantize.embedding.weight"])
        assert unused == {
            "raw weights beside their averages": 224,
            "SEANet decoder, never called": 62,
            "weight averages of SEANet decoder, never called": 62,
            "discriminators": 792,
            "weight averages of discriminators": 468,
            "tables that are computed": 3,
            "state of the weight averages": 2,
        }
    text = str(report)
    assert f"matched {len(report.matched)} keys" in text
    assert "missing none" in text
    assert all(group in text for group in unused)


def test_the_model_directory_holds_the_same_codec_and_a_card(checkpoint, tmp_path):
    kind, path = checkpoint
    report = import_checkpoint(path, kind, tmp_path / "model")
    codec, _ = convert(STATES[kind], kind)
    loaded = package.load(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    wav = torch.randn(1, 1, 5000)
    codes = loaded.encode(wav)
    assert codes.shape == (1, 16)
    assert torch.equal(codes, codec.encode(wav))
    assert torch.equal(loaded.decode(codes), codec.decode(codes))
    assert not loaded.is_streamable
    assert (loaded.sample_rate, loaded.hop_length, loaded.codebook_size) == (24000, 320, 48)
    assert loaded.config.encoder.is_causal == (kind == "simvq")
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(path) in card
    assert report.sha256 in card
    assert len(report.sha256) == 64


def test_weights_are_the_published_ones(checkpoint):
    kind, _ = checkpoint
    codec, report = convert(STATES[kind], kind)
    ours = codec.state_dict()
    for key, name in upstream.key_map(report.config, kind).items():
        source = STATES[kind][upstream.ema_key(key) if kind == "simvq" else key]
        assert torch.equal(ours[name], source[0] if key.endswith(("scale.weight", "shift.weight")) else source)
    assert len(ours) == len(report.matched)


def test_raw_weights_on_request():
    codec, report = convert(STATES["simvq"], "simvq", weights="raw")
    assert sorted(report.matched) == sorted(layout("simvq", "inference"))
    assert torch.equal(codec.quantizer.projection.weight, STATES["simvq"]["quantize.embedding_proj.weight"])
    assert len(report.unused["weight averages"]) == 224


def test_conditions_are_folded_into_row_0_and_said_to_differ_only_if_they_do():
    key = "backbone.convnext.3.norm.scale.weight"
    codec, report = convert(STATES["wavtokenizer"], "wavtokenizer")
    assert torch.equal(codec.decoder.blocks[3].norm.weight, STATES["wavtokenizer"][key][0])
    assert "26 adaptive norm tensors" in report.notes[0]
    equal = {
        key: value[:1].expand_as(value) if upstream.is_conditioned(key) else value
        for key, value in STATES["wavtokenizer"].items()
    }
    assert convert(equal, "wavtokenizer")[1].notes == []


def test_half_precision_and_a_stripped_state_dict_are_enough(tmp_path):
    state = {key: STATES["simvq"][key].half() for key in layout("simvq", "inference")}
    torch.save(state, tmp_path / "bare.pt")
    report = import_checkpoint(tmp_path / "bare.pt", "simvq", tmp_path / "model", weights="raw")
    assert report.unused == {}
    assert "discriminators" in report.missing
    assert package.load(tmp_path / "model").encoder.lstm.weight_ih_l0.dtype == torch.float32
    averages = {key: value for key, value in STATES["simvq"].items() if key in layout("simvq", "ema-inference")}
    codec, _ = convert({**averages, "quantize.embedding.weight": STATES["simvq"]["quantize.embedding.weight"]}, "simvq")
    assert codec.codebook_size == 48


@pytest.mark.parametrize("form", ["before-1.6", "safetensors", "lightning"])
def test_forms_of_files(form, tmp_path):
    path, state = tmp_path / "model.any", STATES["wavtokenizer"]
    if form == "before-1.6":
        torch.save(checkpoint_of(state), path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save(checkpoint_of(state), path)
    assert len(import_checkpoint(path, "wavtokenizer", tmp_path / "model").matched) == 223


def test_an_empty_directory_is_filled_and_a_full_one_is_left_alone(checkpoint, tmp_path):
    kind, path = checkpoint
    out = tmp_path / "model"
    out.mkdir()
    import_checkpoint(path, kind, out)
    before = (out / "config.json").read_bytes()
    with pytest.raises(ModelError, match="is not an empty directory"):
        import_checkpoint(path, kind, out)
    assert (out / "config.json").read_bytes() == before


# Discriminators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kept_discriminators_have_the_names_and_shapes_of_ours(kind):
    from codec.training.discriminators import Discriminators

    full = {4: 32, 8: 64, 16: 128, 64: 512, 128: 1024}  # the published number of channels
    with torch.device("meta"):
        ours = Discriminators(compose(["recipe=paper"]).adversary.discriminators).state_dict()
        state = {
            key: torch.empty([n if i > 1 or (i == 0 and "emb" in key) else full.get(n, n) for i, n in enumerate(shape)])
            for key, shape in layout(kind, "discriminator").items()
        }
    kept_ones = upstream.our_discriminators(kind, state)
    assert {name: t.shape for name, t in kept_ones.items()} == {name: t.shape for name, t in ours.items()}


def test_kept_discriminators_are_written(checkpoint, tmp_path):
    kind, path = checkpoint
    report = import_checkpoint(path, kind, tmp_path / "model", keep_discriminators=True)
    written = load_file(tmp_path / "model" / "discriminators.safetensors")
    assert "discriminators" not in report.unused
    assert f"kept {len(report.kept)} keys of discriminators" in str(report)
    reported = [*report.matched, *report.kept, *(key for keys in report.unused.values() for key in keys)]
    assert sorted(reported) == sorted(LAYOUT[kind])
    dac = "loss.dac." if kind == "simvq" else "dacdiscriminator.discriminator."
    assert torch.equal(
        written["groups.dac_spectrum.1.band_convs.2.3.parametrizations.weight.original1"],
        STATES[kind][dac + "discriminators.6.band_convs.2.3.0.weight_v"],
    )
    prefix = "loss." if kind == "simvq" else ""
    assert torch.equal(
        written["groups.resolution.2.band_convs.0.1.parametrizations.weight.original1"],
        STATES[kind][prefix + "multiresddisc.discriminators.2.convs.1.weight_v"].transpose(2, 3),
    )
    package.load(tmp_path / "model")


def test_condition_of_a_discriminator_becomes_part_of_its_last_convolution():
    place = "multiperioddisc.discriminators.2."
    state = {key: value for key, value in STATES["wavtokenizer"].items() if key.startswith("multiperioddisc.")}
    ours = upstream.our_discriminators("wavtokenizer", state)
    g, v = (ours[f"groups.period.2.post.parametrizations.weight.original{i}"] for i in range(2))
    features = torch.randn(1, v.shape[1], 9)
    folded = torch.nn.functional.conv1d(features, torch._weight_norm(v, g), padding=1)
    g, v = (state[f"{place}conv_post.weight_{part}"] for part in "gv")
    apart = torch.nn.functional.conv2d(features[..., None], torch._weight_norm(v, g), padding=(1, 0))
    apart += (state[f"{place}emb.weight"][0].view(1, -1, 1, 1) * features[..., None]).sum(1, keepdim=True)
    assert torch.allclose(folded, apart[..., 0], atol=1e-5)


@pytest.mark.parametrize(
    ("end", "value"),
    [
        ("conv_post.weight_g", None),
        ("conv_post.weight_v", None),
        ("emb.weight", torch.zeros(0, 128)),
        ("emb.weight", torch.zeros(())),
        ("emb.weight", torch.zeros(4, 3)),
    ],
)
def test_a_condition_that_does_not_fit_its_convolution_is_named(end, value, tmp_path):
    place = "multiperioddisc.discriminators.0."
    path = edited(tmp_path, "wavtokenizer", **{place + end: value})
    match = f"{place}emb.weight does not fit the convolution {place}conv_post"
    refuse(path, "wavtokenizer", tmp_path, match, keep_discriminators=True)


# The configuration ---------------------------------------------------------------------------------------------------


def wavtokenizer_yaml():
    """The settings of a published configuration, at the small checkpoint's sizes."""
    features = {
        "encodec_model": "encodec_24khz",
        "bandwidths": [6.6] * 4,
        "train_codebooks": True,
        "num_quantizers": 1,
        "dowmsamples": [8, 5, 4, 2],
        "vq_bins": 48,
        "vq_kmeans": 200,
    }
    backbone = {"input_channels": 64, "dim": 32, "intermediate_dim": 96, "num_layers": 12, "adanorm_num_embeddings": 4}
    head = {"dim": 32, "n_fft": 1280, "hop_length": 320, "padding": "same"}
    parts = {
        "feature_extractor": {"class_path": "decoder.feature_extractors.EncodecFeatures", "init_args": features},
        "backbone": {"class_path": "decoder.models.VocosBackbone", "init_args": backbone},
        "head": {"class_path": "decoder.heads.ISTFTHead", "init_args": head},
    }
    training = {"sample_rate": 24000, "initial_learning_rate": "2e-4", "mel_loss_coeff": 45}
    return {"model": {"class_path": "decoder.experiment.WavTokenizer", "init_args": {**training, **parts}}}


def simvq_yaml():
    settings = {
        "ddconfig": {"causal": True, "dimension": 64, "n_filters": 4},
        "quantconfig": {
            "target": "taming.modules.vqvae.quantize.SimVQ1D",
            "params": {"n_e": 48, "e_dim": 64, "beta": 0.5, "legacy": False},
        },
        "lossconfig": {"target": "taming.modules.losses.stft.VQSTFTWithDiscriminator", "params": {}},
        "sample_rate": 16000,
        "audio_normalize": False,
        "segment": "None",
    }
    return {"model": {"class_path": "taming.models.vq_audio.VQModel", "init_args": settings}, "trainer": {"devices": 1}}


YAMLS = {"wavtokenizer": wavtokenizer_yaml, "simvq": simvq_yaml}


def write_yaml(tmp_path, values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_configuration_that_agrees_is_taken(checkpoint, tmp_path):
    kind, path = checkpoint
    config = write_yaml(tmp_path, YAMLS[kind]())
    report = import_checkpoint(path, kind, tmp_path / "model", config=config)
    assert report.config.sample_rate == (16000 if kind == "simvq" else 24000)
    if kind == "simvq":
        assert report.config.quantizer.beta == 0.5


@pytest.mark.parametrize(
    ("kind", "setting", "value", "match"),
    [
        (
            "wavtokenizer",
            "backbone.init_args.dim",
            768,
            r"backbone\.init_args\.dim is 768, but the checkpoint needs 32",
        ),
        ("wavtokenizer", "backbone.init_args.num_layers", 11, r"num_layers is 11, but .* 12"),
        ("wavtokenizer", "feature_extractor.init_args.dowmsamples", [6, 5, 5, 4], r"dowmsamples is \[6, 5, 5, 4\]"),
        ("wavtokenizer", "feature_extractor.init_args.vq_bins", 4096, r"vq_bins is 4096, but .* 48"),
        ("wavtokenizer", "feature_extractor.init_args.num_quantizers", 8, "num_quantizers is 8"),
        ("wavtokenizer", "head.init_args.hop_length", 600, "hop_length is 600"),
        ("wavtokenizer", "head.init_args.padding", "center", "padding is 'center'"),
        ("wavtokenizer", "head.init_args.window", "kaiser", "window is not a setting that is known"),
        ("wavtokenizer", "sample_rate", "fast", "sample_rate must be a number"),
        ("wavtokenizer", "backbone", None, r"has no section model\.init_args\.backbone"),
        ("simvq", "ddconfig.ratios", [8, 5, 4, 3], r"ddconfig\.ratios is \[8, 5, 4, 3\]"),
        ("simvq", "ddconfig.causal", "yes", "causal must be true or false, got 'yes'"),
        ("simvq", "ddconfig.norm", "time_group_norm", "norm is 'time_group_norm'"),
        ("simvq", "quantconfig.params.n_e", 1024, r"n_e is 1024, but .* 48"),
        ("simvq", "quantconfig.params.beta", float("inf"), r"beta must be a number from 0 to 2\*\*31, got inf"),
        pytest.param("simvq", "quantconfig.params.beta", 10**400, "beta must be a number from 0", id="beyond floats"),
        ("simvq", "quantconfig.target", "taming.EMAVectorQuantizer", "only SimVQ1D"),
        ("simvq", "audio_normalize", True, "audio_normalize is True"),
    ],
)
def test_a_configuration_that_disagrees_is_refused_by_name(kind, setting, value, match, tmp_path):
    values = YAMLS[kind]()
    place = values["model"]["init_args"]
    *path, last = setting.split(".")
    for name in path:
        place = place[name]
    place[last] = value
    config = write_yaml(tmp_path, values)
    refuse(stripped(tmp_path, kind), kind, tmp_path, match, config=config)


def test_a_causal_encoder_can_be_told_only_by_the_configuration(tmp_path):
    values = simvq_yaml()
    values["model"]["init_args"]["ddconfig"]["causal"] = False
    path, config = edited(tmp_path, "simvq"), write_yaml(tmp_path, values)
    assert not import_checkpoint(path, "simvq", tmp_path / "model", config=config).config.encoder.is_causal


@pytest.mark.parametrize(
    "text",
    [
        *("model: [1, 2", "just words", "", "\x00", "model: {class_path: x}", "2026-11-31", "[" * 10_000),
        *("!!int ''", "!!bool x", "!!timestamp x"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    path = stripped(tmp_path, "simvq")
    refuse(path, "simvq", tmp_path, "is not YAML|has no section|class_path", config=tmp_path / "config.yaml")
    refuse(path, "simvq", tmp_path, "cannot be read", config=tmp_path / "missing.yaml")


def test_a_configuration_of_the_other_kind_is_refused(tmp_path):
    config = write_yaml(tmp_path, wavtokenizer_yaml())
    refuse(
        stripped(tmp_path, "simvq"), "simvq", tmp_path, "class_path is WavTokenizer, expected VQModel", config=config
    )


# Bad input -----------------------------------------------------------------------------------------------------------


class Foreign:
    """A class that no checkpoint needs; loading it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["lightning", "before-1.6", "pickle", "pickle-4"])
def test_a_pickle_with_foreign_classes_is_not_loaded(form, tmp_path):
    path, mark = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"state_dict": dict(STATES["wavtokenizer"]), "hyper_parameters": Foreign(mark)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["hyper_parameters"], protocol=4 if form == "pickle-4" else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "lightning")
    refuse(path, "wavtokenizer", tmp_path, "asks for .*open|asks for a class that it names indirectly")
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
@pytest.mark.parametrize("form", ["lightning", "before-1.6", "safetensors"])
def test_a_truncated_download_is_refused(form, share, tmp_path):
    path = tmp_path / "cut.ckpt"
    if form == "safetensors":
        save_file(dict(STATES["simvq"]), path)
    else:
        torch.save(checkpoint_of(STATES["simvq"]), path, _use_new_zipfile_serialization=form == "lightning")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refuse(path, "simvq", tmp_path, "cut off|cannot be read as a PyTorch file|is not a whole safetensors file")


def test_a_flipped_bit_is_noticed(tmp_path):
    path = edited(tmp_path, "simvq")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    refuse(path, "simvq", tmp_path, "damaged in .*; download it again")


def test_a_flipped_bit_in_a_name_is_noticed(tmp_path):
    path = edited(tmp_path, "simvq")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"data.pkl")] ^= 0x80  # in the archive's list, which is in UTF-8
    path.write_bytes(data)
    refuse(path, "simvq", tmp_path, "is cut off or damaged .*; download it again")


def test_a_shape_that_no_tensor_has_is_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refuse(tmp_path / "model.safetensors", "simvq", tmp_path, "is not a whole safetensors file")


def test_weights_of_8_bits_are_what_they_are_in_32(tmp_path):
    few = {key: tensor.to(torch.float8_e5m2) for key, tensor in STATES["simvq"].items() if tensor.is_floating_point()}
    for name, bits in (("few", {}), ("many", {key: tensor.float() for key, tensor in few.items()})):
        save_file(dict(STATES["simvq"]) | few | bits, tmp_path / f"{name}.safetensors")
        import_checkpoint(tmp_path / f"{name}.safetensors", "simvq", tmp_path / name)
    assert (tmp_path / "few" / "model.safetensors").read_bytes() == (
        tmp_path / "many" / "model.safetensors"
    ).read_bytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1328401234\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (LFS, "is a git-LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head>", "is a web page"),
        (b"\xef\xbb\xbf\n <html>Not found</html>", "is a web page"),
        (b'{"error": "Repository not found"}', "is neither a PyTorch file nor safetensors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is neither a PyTorch file nor safetensors"),
        (bytes(3), "is neither a PyTorch file nor safetensors"),
        (b"PK\x03\x04" + bytes(100), "is cut off or damaged"),
        (b"\x80\x02", "cannot be read as a PyTorch file"),
        (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little"), "cannot be read as a PyTorch file"),  # of an endless string
        (pickle.dumps([1, 2, 3], protocol=2), "cannot be read as a PyTorch file"),
        (bytes([99, 0, 0, 0, 0, 0, 0, 0]) + b'{"a": 1}', "is not a whole safetensors file"),
    ],
)
def test_something_else_than_weights_is_refused(content, match, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    refuse(path, "wavtokenizer", tmp_path, match)


def test_a_directory_and_a_missing_file_are_refused(tmp_path):
    refuse(tmp_path, "simvq", tmp_path, "is a directory")
    refuse(tmp_path / "none.ckpt", "simvq", tmp_path, "cannot be read")


def test_a_zip_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(tmp_path / "model.ckpt", "simvq", tmp_path, "is a zip archive, but not one that PyTorch wrote")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds list"),
        ({}, "holds dict"),
        (torch.zeros(3), "holds Tensor"),
        ({"epoch": 3, "model": {"a": torch.zeros(1)}}, "neither a checkpoint with a state_dict nor a state dict"),
        ({"state_dict": {}}, "its state_dict is empty"),
        ({"state_dict": {"quantize.embedding.weight": 3}}, "quantize.embedding.weight in its state_dict is no tensor"),
        ({"layer.weight": torch.zeros(3)}, "has no key of a simvq model; it begins with layer.weight"),
        ({"quantize.embedding.weight": torch.zeros(3, 4)}, "lacks encoder.model"),
    ],
)
def test_other_contents_are_refused(content, match, tmp_path):
    torch.save(content, tmp_path / "model.ckpt")
    refuse(tmp_path / "model.ckpt", "simvq", tmp_path, match)


def test_the_other_kind_is_refused(checkpoint, tmp_path):
    kind, path = checkpoint
    other = KINDS[1 - KINDS.index(kind)]
    refuse(path, other, tmp_path, f"is a {kind} checkpoint, not a {other} one")
    with pytest.raises(ConfigError, match="wavtokenizer or simvq, got 'encodec'"):
        import_checkpoint(path, "encodec", tmp_path / "model")
    with pytest.raises(ConfigError, match="ema or raw, got 'best'"):
        import_checkpoint(path, kind, tmp_path / "model", weights="best")


@pytest.mark.parametrize(
    "key",
    [
        "surprise",
        "backbone.convnext.3.extra.weight",
        "backbone.convnext.987654321.gamma",
        "encoder.model.13.lstm.weight_ih_l987654321",
        "loss.dac.discriminators.0.convs.0.0.weight",
        "model_ema.x",
    ],
)
def test_an_unknown_key_is_named(key, tmp_path):
    refuse(edited(tmp_path, "simvq", **{key: torch.zeros(2)}), "simvq", tmp_path, f"has the unknown key {key}$")


@pytest.mark.parametrize("kind", KINDS)
def test_any_missing_key_is_named(kind):
    for key in convert(STATES[kind], kind)[1].matched[::13]:
        state = {other: tensor for other, tensor in STATES[kind].items() if other != key}
        with pytest.raises(ModelError, match=f"lacks {key}"):
            convert(state, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_any_tensor_of_another_shape_is_named(kind):
    keys = [key for key in convert(STATES[kind], kind)[1].matched if not key.endswith(("embedding.weight", "embed"))]
    for key in keys[::29]:
        tensor = STATES[kind][key]
        axis = 1 if upstream.is_conditioned(key) and tensor.ndim > 1 else 0
        wider = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
        with pytest.raises(ModelError, match=rf"{key} has shape \({', '.join(map(str, wider.shape))}"):
            convert({**STATES[kind], key: wider}, kind)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("head.out.bias", torch.full((1282,), torch.nan), "head.out.bias has values that are NaN or infinite"),
        ("head.out.bias", torch.zeros(1282, dtype=torch.int64), "head.out.bias holds torch.int64"),
        ("decoder.model.0.conv.conv.weight_g", torch.zeros(5), "weight_g has shape .* does not fit .*weight_v"),
    ],
)
def test_a_bad_tensor_is_named(key, value, match, tmp_path):
    refuse(edited(tmp_path, "simvq", **{key: value}), "simvq", tmp_path, match, weights="raw")


def test_averages_and_discriminators_that_are_not_there_are_asked_for_in_vain(tmp_path):
    torch.save({key: STATES["simvq"][key] for key in layout("simvq", "inference")}, tmp_path / "raw.pt")
    refuse(tmp_path / "raw.pt", "simvq", tmp_path, "has no weight averages")
    refuse(tmp_path / "raw.pt", "simvq", tmp_path, "has no discriminators", weights="raw", keep_discriminators=True)


# Export --------------------------------------------------------------------------------------------------------------


def test_export_gives_back_what_was_imported(checkpoint):
    kind, _ = checkpoint
    exported = export_state_dict(convert(STATES[kind], kind)[0])
    assert set(exported) == {*layout(kind, "inference"), "head.istft.window"}
    for key, tensor in exported.items():
        source = STATES[kind][upstream.ema_key(key) if kind == "simvq" and key != "head.istft.window" else key]
        if upstream.is_conditioned(key) and kind == "wavtokenizer":
            source = source[:1].expand(4, -1)
        assert torch.allclose(tensor, source, rtol=0, atol=1e-6 if "window" in key else 0), key


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_exported_files_can_be_imported_again(checkpoint, suffix, tmp_path):
    kind, path = checkpoint
    import_checkpoint(path, kind, tmp_path / "first")
    export_checkpoint(tmp_path / "first", tmp_path / f"exported{suffix}")
    weights = "ema" if suffix == ".ckpt" else "raw"
    import_checkpoint(tmp_path / f"exported{suffix}", kind, tmp_path / "second", weights=weights)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with pytest.raises(FileExistsError):
        export_checkpoint(tmp_path / "first", tmp_path / f"exported{suffix}")


def test_an_exported_checkpoint_has_all_that_the_published_loaders_ask_for(checkpoint, tmp_path):
    kind, path = checkpoint
    import_checkpoint(path, kind, tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "exported.ckpt")
    state = torch.load(tmp_path / "exported.ckpt", weights_only=True)["state_dict"]
    if kind == "wavtokenizer":
        asked = {key: shape for key, (_, shape, note) in LAYOUT[kind].items() if note == "loader"}
    else:
        asked = layout(kind, "inference", "ema-inference", "ema-state", "derived-buffer")
    assert {key: list(tensor.shape) for key, tensor in state.items()} == asked


def test_folded_weight_norm_exports_the_same_weights():
    codec, _ = convert(STATES["wavtokenizer"], "wavtokenizer")
    before = export_state_dict(codec)
    fold_weight_norm(codec)
    after = export_state_dict(codec)
    assert set(before) == set(after)
    for key in (key for key in before if key.endswith("weight_v")):
        pair = [torch._weight_norm(state[key], state[key[:-1] + "g"]) for state in (before, after)]
        assert torch.allclose(*pair, rtol=1e-5, atol=1e-6)


def test_a_codec_without_published_counterpart_is_not_exported(model_directory, tmp_path):
    with pytest.raises(ModelError, match="no published counterpart"):
        export_checkpoint(model_directory, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_quantizer_without_published_counterpart_is_not_exported():
    """Its codes would look like a codebook's, and mean something else."""
    config = convert(STATES["simvq"], "simvq")[0].config
    dim = config.quantizer.codebook_dim
    for quantizer in (PredictiveSimVQConfig(codebook_dim=dim), FactorisedVQConfig(codebook_dim=dim)):
        codec = Codec(dataclasses.replace(config, quantizer=quantizer))
        with pytest.raises(ModelError, match=f"kind {quantizer.kind} has no published counterpart"):
            export_state_dict(codec)


# SimVQ in the place of a codebook ------------------------------------------------------------------------------------


def test_simvq_in_the_place_of_a_codebook_starts_with_the_same_codes_and_can_be_exported(tmp_path, capsys):
    path = stripped(tmp_path, "wavtokenizer")
    assert run(["import", str(path), str(tmp_path / "model"), "--from", "wavtokenizer", "--with-simvq"]) == 0
    assert "matched 223 keys" in capsys.readouterr().err
    codec, plain = package.load(tmp_path / "model"), convert(STATES["wavtokenizer"], "wavtokenizer")[0]
    wav = torch.randn(1, 1, 9000)
    assert torch.equal(codec.encode(wav), plain.encode(wav))
    assert torch.equal(
        export_state_dict(codec)[upstream.WAVTOKENIZER_CODEBOOK + "embed"], plain.quantizer.effective_codebook()
    )
    assert codec.config.quantizer.kind == "simvq"
    with pytest.raises(ModelError, match="kind simvq"):
        replace_codebook(codec)


def test_without_a_yaml_package_a_configuration_is_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path, config = stripped(tmp_path, "simvq"), tmp_path / "config.yaml"
    config.write_text("model: {}")
    refuse(path, "simvq", tmp_path, "pip install pyyaml", config=config)
