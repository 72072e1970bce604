"""Mistakes in the settings of a run are all named at once, before anything is built."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from codec.cli import run
from codec.config import compose
from codec.errors import ConfigError
from codec.model import catalogue
from codec.model.codec import QUANTIZERS
from codec.training.settings import check, defining_settings, differences

BOXED = catalogue.boxed_models()["stream"]


def mistakes(overrides: list[str], num_processes: int = 1) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides), num_processes)
    assert "\n" not in str(caught.value)
    return list(caught.value.args)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=1", "training.stepz"),
        ("training.steps=many", "training.steps"),
        ("training.steps=0", "at least 1"),
        ("training.mel_weight=-1", "training.mel_weight must be at least 0, got -1"),
        ("training.learning_rate=0", "positive"),
        ("training.precision=fp16", "bf16 or float32"),
        ("training.betas=[0.5]", "two numbers"),
        ("training.ema_decay=1", "in \\[0, 1\\)"),
        ("training.freeze=[encoder]", "training.freeze needs training.init"),
        ("training.freeze=[ears]", "at most two of encoder, quantizer, decoder"),
        ("training.freeze=[[encoder]]", "at most two of encoder, quantizer, decoder"),
        ("model.encoder.colour=1", "colour"),
        ("model=nothing", "nothing"),
        ("+colour=1", "colour"),
        ("data.window_seconds=0", "positive"),
        ("data.cache=", "data.cache must name a folder, it is empty"),
        ("+training.stepz=1", "training.stepz"),
        ("++training.stepz=1", "training.stepz"),
        ("~training", "training"),
        ("++training.steps=0", "training.steps must be at least 1, got 0"),
        ("model.encoder.width=0", "model.encoder.width must be at least 1, got 0"),
        ("model.decoder.pitch_width=0", "model.decoder.pitch_width must be at least 1, got 0"),
        ("model.quantizer.codebook_size=1", "codebook_size must be at least 2"),
        ("mel.scale=bark", "mel.scale must be one of htk, slaney, got 'bark'"),
        ("model.sample_rate=fast", "^model.sample_rate: Value 'fast' of type 'str' could not be converted to Integer"),
    ],
)
def test_a_mistake_is_named(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_unknown_names_and_wrong_types_are_named_together(training_folder: Path):
    settings = ["training.stepz=1", "data.batch_size=many", "training.steps=5", "model=simvq-4k"]
    with pytest.raises(ConfigError) as caught:
        compose([*settings, f"data.train={training_folder}"])
    assert str(caught.value).count("; ") == 1
    assert "training.stepz" in str(caught.value)
    assert "data.batch_size" in str(caught.value)


def test_mistakes_of_every_kind_are_named_together():
    found = mistakes(
        [
            "recipe=papre",
            "modle=stream",
            "training.stepz=1",
            "training.steps=0",
            "data.window_seconds=-1",
            "data.train=/nowhere",
            "model.decoder.hop_length=160",
            "mel.resolutions=[[64,128,10]]",
        ]
    )
    recipes = "finetune, finetune-stream, libritts, paper, stream-cpu, stream-gpu"
    # Nothing is said of what follows from a window of -1 s alone.
    assert found == [
        f"recipe=papre: there is no such variant, but {recipes}",
        "modle: is not a setting",
        "training.stepz: is not a setting, training.steps is one",
        "data.window_seconds must be positive, got -1.0",
        "training.steps must be at least 1, got 0",
        "data.train: there is no /nowhere",
        "encoder and decoder must have the same hop length, got 320 and 160",
        "mel.resolutions [64, 128, 10]: the hop leaves out samples between STFTs of 64",
    ]


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("model.quantizer=fsq", "'model.quantizer=fsq': a variant is chosen with a slash, model/quantizer=fsq"),
        ("model/quantizer=fsk", "model/quantizer=fsk: there is no such variant, but ema, fc, fsq, "),
        ("adversary.discriminators=small", "adversary.discriminators: holds several settings, each given as "),
        ("adversary.discriminators.perod.x=1", "adversary.discriminators.perod: is not a setting, adversary.discr"),
        ("model/quantizr=fsq", "model/quantizr: is not a setting"),
        ("model=[strem]", "model=strem: there is no such variant, but "),
        ("model/encoder=seanet", "model/stream: model.encoder.lookahead: is not a setting"),
        ("model.decodr.width=3", "model.decodr: is not a setting"),
    ],
)
def test_a_slip_is_told_with_what_is_meant(override: str, advice: str, training_folder: Path):
    (found,) = mistakes([f"data.train={training_folder}", override])
    assert found.startswith(advice)


@pytest.mark.parametrize("override", ["recipe=stream-cpu", "model/quantizer=fsq", "training.steps=7"])
def test_a_plus_changes_nothing(override: str):
    assert compose([f"+{override}"], is_to_train=False) == compose([override], is_to_train=False)


@pytest.mark.parametrize(
    "override",
    [
        "adversary.discriminators.resolution.n_ffts=[256]",
        "adversary.discriminators.resolution={n_ffts:[256],overlap:[4]}",
    ],
)
def test_a_group_that_is_null_is_told_with_what_has_it(override: str, training_folder: Path):
    (found,) = mistakes([f"data.train={training_folder}", override])
    assert found.startswith(
        f"{override!r}: the group is null here, and its settings cannot be given one by one; choose"
    )
    assert "training.steps must be at least 1, got 0" in mistakes(["training.steps=0", override])
    if "={" in override:
        config = compose([f"data.train={training_folder}", "adversary=paper", override])
        assert config.adversary.discriminators.resolution.n_ffts == [256]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.window_seconds=1e308", "data.window_seconds must be at most 86400, got 1e+308"),
        ("data.gain_db=1e30", "data.gain_db must be at most 100, got 1e+30"),
        ("data.workers=100000000000000000000000", "data.workers must be at most 1000, got 1e+23"),
        ("training.adversarial_seconds=1e308", "training.adversarial_seconds must be at most 86400, got 1e+308"),
        (
            "training.max_skipped_in_a_row=4294967296",
            "training.max_skipped_in_a_row must be below 2 ** 32, got 4294967296",
        ),
    ],
)
def test_numbers_that_nobody_means_are_refused(override: str, sentence: str, training_folder: Path):
    assert mistakes([f"data.train={training_folder}", override]) == [sentence]


def test_every_part_names_all_its_values_out_of_range():
    settings = ["data.batch_size=0", "data.window_seconds=-1", "data.workers=-1", "data.speaker_balance=2"]
    settings += ["data.degraded=7", "data.speed=-1", "data.gain_db=-3", "adversary.learning_rate=0"]
    settings += ["adversary.betas=[3]", "adversary.max_gradient_norm=-1", "mel.scale=foo", "mel.floor=-1"]
    settings += ["training.seed=-1", "training.clip_norm=0"]
    with pytest.raises(ConfigError) as caught:
        compose(settings)
    named = [sentence.split()[0] for sentence in caught.value.args]
    assert sorted(named) == sorted([*(setting.split("=")[0] for setting in settings), "data.train"])


def test_a_mistake_is_told_whole_whatever_is_in_it():
    found = mistakes(['data.train="x; y"', "training.steps=-1"])
    assert found == ["training.steps must be at least 1, got -1", "data.train: there is no x; y"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            [
                "adversary=paper",
                "adversary.discriminators.period.periods=[0]",
                "adversary.discriminators.period.kernel_sizes=[2]",
                "adversary.discriminators.resolution.n_ffts=[3]",
                "adversary.discriminators.resolution.loss=foo",
                "adversary.betas=[7,7]",
            ],
            [
                "adversary.discriminators.period.channels, kernel_sizes, strides",
                "adversary.discriminators.period.kernel_sizes",
                "adversary.discriminators.period.periods",
                "adversary.discriminators.resolution.loss",
                "adversary.discriminators.resolution.n_ffts and overlap",
                "adversary.betas",
            ],
        ),
        (
            [
                "adversary.discriminators.period.strides=[3,3,3,0,1]",
                "adversary.discriminators.scale.strides=[1,2,2,4,-4,1]",
                "adversary.discriminators.spectrum.n_ffts=[2048,1024,16]",
                "adversary.discriminators.spectrum.overlap=[4096,4,4]",
                "adversary.discriminators.spectrum.kernel_sizes=[[3],[3,9],[3,9],[3,9],[3,3]]",
            ],
            [
                "adversary.discriminators.period.strides",
                "adversary.discriminators.scale.strides",
                "adversary.discriminators.spectrum.kernel_sizes",
                "adversary.discriminators.spectrum.band_edges",
                "adversary.discriminators.spectrum.overlap",
            ],
        ),
        (
            ["mel.resolutions=[[255,64,20],[256,64,20]]"],
            ["mel.resolutions [255, 64, 20]: the length of an STFT must be even"],
        ),
        (
            ["mel.resolutions=[[256,64,20],3]"],
            ["'mel.resolutions=[[256,64,20],3]': entry 1: Invalid value assigned: int is not a list"],
        ),
        (
            ["mel={resolutions:[[256,64,20],3]}"],
            ["'mel={resolutions:[[256,64,20],3]}': entry 1: Invalid value assigned: int is not a list"],
        ),
        (
            [
                "adversary.discriminators.period.periods=[0]",
                "adversary.discriminators.scale.groups=[3,3,3,3,3,3]",
            ],
            ["adversary.discriminators.period.periods", "adversary.discriminators.scale: cannot be built"],
        ),
        (
            [
                "model.encoder.width=0",
                "model.encoder.short_n_fft=0",
                "model.encoder.num_lags=0",
                "model.quantizer.codebook_size=1",
                "model.quantizer.beta=-1",
                "model.quantizer.memory=0",
                "model.decoder.hop_length=0",
                "model.decoder.attention_heads=0",
                "model.decoder.lowest_pitch=0",
                "model.sample_rate=0",
            ],
            [
                "model.encoder.width",
                "model.encoder.short_n_fft",
                "model.encoder.num_lags",
                "model.quantizer.codebook_size",
                "model.quantizer.beta",
                "model.quantizer.memory",
                "model.decoder.hop_length",
                "model.decoder.attention_heads",
                "model.decoder:",
                "model.sample_rate",
            ],
        ),
        (
            ["model=simvq-4k", "model.decoder.width=7", "model.decoder.num_blocks=0", "model.decoder.n_fft=321"],
            ["model.decoder.num_blocks", "model.decoder.width", "model.decoder.n_fft"],
        ),
        (
            ["model/quantizer=lfq", "model.quantizer.codebook_size=6", "model.quantizer.beta=-1"],
            ["model.quantizer.beta", "model.quantizer.codebook_size"],
        ),
        (
            ["model/quantizer=ema", "model.quantizer.decay=1", "model.quantizer.codebook_dim=0"],
            ["model.quantizer.codebook_dim", "model.quantizer.decay"],
        ),
        (
            [
                "model.decoder.sample_rate=16000",
                "model.decoder.hop_length=160",
                "model.decoder.n_fft=640",
                "model.quantizer.codebook_dim=9",
                "training.standardize_encoder=true",
            ],
            [
                "training.standardize_encoder",
                "encoder and decoder must have the same hop length",
                "model.sample_rate and model.decoder.sample_rate",
                "model.encoder.latent_dim, model.quantizer.codebook_dim and model.decoder.latent_dim",
            ],
        ),
        (
            ["training.init=/nonexist", "training.steps=0", "data.validation=/none", "training.freeze=[encoder]"],
            ["training.steps", "training.init: unknown model '/nonexist'", "data.validation: there is no /none"],
        ),
        (
            ["model=3", "adversary=[3]", "recipe=true", "training.steps=0"],
            ["'model=3': model must be a name", "'adversary=[3]': ", "'recipe=true': ", "training.steps"],
        ),
        (
            ["init=stream", "learning_rate=1", "+sample_rate=16000"],
            [
                "init: is not a setting, it is training.init",
                "learning_rate: is not a setting, it is adversary.learning_rate or training.learning_rate",
                "sample_rate: is not a setting, it is model.sample_rate",
            ],
        ),
    ],
)
def test_mistakes_of_one_kind_are_named_together_as_they_are_set(
    training_folder: Path, overrides: list[str], named: list[str]
):
    advice = ("boxed models: ", "or give a directory")
    found = [each for each in mistakes([f"data.train={training_folder}", *overrides]) if not each.startswith(advice)]
    assert [each[: len(name)] for each, name in zip(found, named, strict=True)] == named


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_or_endless_are_refused_by_name(value: str):
    names = ["data.window_seconds", "training.adversarial_seconds", "training.learning_rate", "training.betas.1"]
    settings = [f"{name}={value}" for name in names[:3]] + [f"training.betas=[0.5,{value}]"]
    with pytest.raises(ConfigError) as caught:
        compose([*settings, "data.batch_size=0"])
    for name in names:
        assert f"{name} must be a finite number, got {value}" in str(caught.value)
    assert str(caught.value).count("data.window_seconds") == 1
    assert "data.batch_size must be at least 1, got 0" in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "speech/josé",
        "my speech/(1)/a,b",
        "speaker=1",
        "it's",
        'a"b',
        "語り",
        "C:\\séance\\",
        "glob(1",
        "a[1]",
        "été'\\'",
        "2024",
        "2024_01",
        "1e3",
        "null",
        "a,b",
        "\\\\server\\share",
    ],
)
def test_a_path_may_hold_any_letters_and_signs(place: str):
    config = compose([f"data.train={place}", f"data.validation={place}", f"training.run={place}"], is_to_train=False)
    assert (config.data.train, config.data.validation, config.training.run) == (place, place, place)


def test_texts_in_quotes_and_lists_of_them_are_read_as_before():
    config = compose(["data.train=['speech/josé', b]", 'training.run="runs/(é)"'], is_to_train=False)
    assert config.data.train == ["speech/josé", "b"]
    assert config.training.run == "runs/(é)"


@pytest.mark.parametrize("override", ["data.train=[speech/josé,b]", "training.freeze=[é]", "training.steps=1é"])
def test_what_cannot_be_read_is_named_with_what_to_do(override: str):
    (sentence,) = (each for each in mistakes([override]) if override.split("=")[0] in each)
    assert sentence.startswith(f"'{override}': cannot be read")
    assert ("quotes" in sentence) == override.startswith("data.train")


def test_several_values_are_told_from_a_list():
    with pytest.raises(ConfigError, match=r"training.steps=1,2': a list is written \[1,2\]; .*, add --multirun"):
        compose(["training.steps=1,2", "data.train=x"])


@pytest.mark.parametrize("override", ["=3", "training.steps", "", "=", "+=1"])
def test_what_is_no_setting_is_refused(override: str):
    with pytest.raises(ConfigError, match="a setting is given as key=value"):
        compose([override, "training.steps=5"])


def test_settings_that_do_not_fit_together_are_named_together(tiny_run: list[str]):
    check(compose(tiny_run))
    found = mistakes(
        [
            *tiny_run,
            "data.train=/nowhere",
            "data.window_seconds=0.01",
            "mel.resolutions=[[1024,256,80],[64,128,40]]",
            "model.quantizer.codebook_dim=16",
            "training.intelligibility_weight=1",
        ],
        num_processes=3,
    )
    assert found == [
        "data.train: there is no /nowhere",
        "data.batch_size must be a multiple of the 3 processes, got 4",
        "model.encoder.latent_dim, model.quantizer.codebook_dim and model.decoder.latent_dim must be equal, "
        "got (8, 16, 8)",
        "mel.resolutions [1024, 256, 80] needs more than 512 samples, data.window_seconds gives 240",
        "mel.resolutions [64, 128, 40]: the hop leaves out samples between STFTs of 64",
        "mel.resolutions [64, 128, 40]: an STFT of 64 has only 33 bins for 40 mel bands",
        "adversary.discriminators.spectrum needs more than 256 samples, the shorter of data.window_seconds and "
        "training.adversarial_seconds gives 240",
        "training.disturbance_weight needs windows of at least 0.032 s, data.window_seconds gives 0.01",
        "training.intelligibility_weight needs windows of at least 0.396542 s, data.window_seconds gives 0.01",
    ]


def test_a_home_folder_is_meant_where_shells_leave_its_sign():
    texts = ["data.train=['~/a',b]", "data.validation=~/c", "data.cache=~/d", "training.run=~/e"]
    config = compose(texts, is_to_train=False)
    home = str(Path.home())
    assert (config.data.train, config.data.validation) == ([f"{home}/a", "b"], f"{home}/c")
    assert (config.data.cache, config.training.run) == (f"{home}/d", f"{home}/e")


def test_a_mistake_in_the_model_is_not_followed_by_mistakes_of_the_default_one():
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=libritts", "model.decoder.width=24"], is_to_train=False)
    assert caught.value.args == ("model.decoder.width must be a multiple of num_groups 32, got 24",)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to every folder")
def test_a_run_that_cannot_be_written_is_refused_before_speech_is_decoded(training_folder: Path, tmp_path: Path):
    (tmp_path / "above").mkdir(0o500)
    overrides = [f"data.train={training_folder}", f"training.run={tmp_path}/above/run"]
    assert mistakes(overrides) == [f"training.run: {tmp_path}/above cannot be written to"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train="], "data.train must name a manifest or a folder"),
        (["data.validation=/nowhere"], "data.validation: there is no /nowhere"),
        ([f"training.run={__file__}"], f"training.run must name a folder, {__file__} is a file"),
        ([f"training.run={BOXED}"], f"{BOXED} holds a model, which training would damage; choose another folder"),
        (["training.standardize_encoder=true"], "is for a seanet encoder, model.encoder.kind is spectral"),
        (["data.window_seconds=0.01"], "is 240 samples, shorter than a frame, which has 320"),
        (["model.decoder.hop_length=160"], "the same hop length, got 320 and 160"),
        (["data.batch_size=100000000"], "are 5556 hours of speech in a step, more than 24"),
        (["training.device=toaster"], "training.device: device 'toaster' is not available here"),
        (["training.record=true"], "training.record needs an NVIDIA GPU"),
        (["adversary.discriminators.scale.groups=[3,3,3,3]"], "adversary.discriminators.scale: cannot be built (in_ch"),
        (
            ["adversary.discriminators.period.periods=[]"],
            "adversary.discriminators.period.periods must be numbers",
        ),
        (
            ["adversary.discriminators.period.periods=[0]"],
            "adversary.discriminators.period.periods must be numbers",
        ),
        (["training.adversarial_seconds=0.01"], "adversary.discriminators.spectrum needs more than 256 samples"),
    ],
)
def test_settings_that_do_not_fit_together(tiny_run: list[str], overrides: list[str], message: str):
    assert any(message in found for found in mistakes([*tiny_run, *overrides]))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_fits_together(training_folder: Path, kind: str):
    check(compose([f"model/quantizer={kind}", f"data.train={training_folder}"]))


def test_differences_name_what_both_trees_have():
    saved = {"a": {"b": 1, "c": [1, 2], "old": 3}, "group": None, "same": 1.0}
    present = {"a": {"b": 2, "c": [1, 3], "new": 4}, "group": {"d": 1}, "same": 1}
    assert differences(saved, present) == [
        "a.b was 1 and is 2",
        "a.c was [1, 2] and is [1, 3]",
        "group was null and is set",
    ]


def test_defining_settings_ignore_how_long_one_trains():
    one, other = (defining_settings(compose([f"training.steps={steps}", "data.batch_size=3"])) for steps in (1, 2))
    assert one == other
    assert differences(one, defining_settings(compose(["model.decoder.width=48"]))) == [
        "model.decoder.width was 384 and is 48"
    ]


def test_all_settings_are_shown_as_they_would_be_used(capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--show", "recipe=stream-cpu", "data.batch_size=3", "model.decoder.width=48"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    expected = asdict(compose(["recipe=stream-cpu", "data.batch_size=3", "model.decoder.width=48"]))
    assert shown == {**expected, "training": {**expected["training"], "commitment_weight": 20.0}}
    assert (shown["data"]["batch_size"], shown["model"]["decoder"]["width"]) == (3, 48)


def test_what_others_decide_is_shown_too(capsys: pytest.CaptureFixture[str]):
    for settings, start in ([], 20_000), (["training.init=stream"], 0):
        assert run(["train", "--show", *settings]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["training"]["adversarial_start"] == start


def test_settings_that_do_not_fit_together_are_not_shown(capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--show", "model.decoder.sample_rate=16000"]) == 2
    assert "model.sample_rate and model.decoder.sample_rate must be equal" in capsys.readouterr().err


def test_settings_are_shown_without_speech_so_that_none_is_no_mistake(capsys: pytest.CaptureFixture[str]):
    mistakes = "codec: training.steps must be at least 1, got 0; data.window_seconds 0.01 is 240 samples, shorter than"
    assert run(["train", "--show", "training.steps=0", "data.window_seconds=0.01", "training.device=cuda:99"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(mistakes)
    assert "data.train" not in shown
    assert "training.device" not in shown
    assert run(["train", "training.steps=0"]) == 2
    assert "data.train must name" in capsys.readouterr().err


def test_a_rate_at_which_the_encoder_hears_no_low_voice_is_refused(training_folder: Path):
    found = mistakes([f"data.train={training_folder}", "model.sample_rate=48000"])
    sentence = (
        "model.encoder.num_lags must be at least 292 for a period of model.decoder.lowest_pitch 55 Hz at 48000 Hz"
    )
    assert found == [f"{sentence}, got 147"]


@pytest.mark.parametrize("rate", [30, 60, 499])
def test_a_rate_at_which_nothing_is_heard_of_speech_is_refused(rate: int, training_folder: Path):
    found = mistakes([f"data.train={training_folder}", f"model.sample_rate={rate}", "model=wavtokenizer-75"])
    assert f"model.sample_rate must be at least 500 Hz, so that losses can tell what is heard, got {rate}" in found


@pytest.mark.parametrize("override", ["hydra.run.dir=elsewhere", "+hydra.foo=1", "hydra/launcher=basic"])
def test_hydras_own_settings_are_for_several_runs(override: str, capsys: pytest.CaptureFixture[str]):
    assert run(["train", override, "data.train=nowhere"]) == 2
    assert "hydra's own settings are for --multirun; the folder of a run is training.run" in capsys.readouterr().err
