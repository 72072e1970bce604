"""Every file under configs/ composes and builds, and the named recipes are what they say."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from codec import config as settings
from codec.config import compose
from codec.errors import ConfigError
from codec.model.codec import Codec
from codec.model.correlation import DECIMATION
from codec.training.discriminators import Discriminators, DiscriminatorsConfig
from codec.training.losses import MelLossConfig, SpectralLoss
from codec.training.settings import Config, misfits
from codec.training.start import commitment_weight

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml"))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    if hasattr(value, "__dataclass_fields__"):
        named = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return {key: leaf for name, item in named.items() for key, leaf in flat(item, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): value}


def differences(one: Config, other: Config) -> set[str]:
    a, b = flat(one), flat(other)
    return {name for name in a.keys() | b.keys() if a.get(name, "absent") != b.get(name, "absent")}


def chosen(file: Path) -> list[str]:
    """The overrides that choose a file of configs/."""
    overrides = [] if file == Path("config") else [f"{file.parent.as_posix()}={file.name}"]
    return [*overrides, "training.init="] if file == Path("recipe/finetune") else overrides  # which must be named


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_fits_together_and_builds(file):
    """On the meta device, where tensors have shapes and no memory, so that the largest are as cheap as the smallest."""
    if file.parts[0] == "hydra":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    config = compose(chosen(file))
    assert misfits(config) == []
    with torch.device("meta"):
        codec = Codec(config.model)
        Discriminators(config.adversary.discriminators)
    SpectralLoss(config.mel, codec.sample_rate)
    assert codec.num_frames(codec.sample_rate) == -(-codec.sample_rate // codec.hop_length)
    assert round(config.data.window_seconds * codec.sample_rate) > max(n_fft for n_fft, _, _ in config.mel.resolutions)


def test_every_file_says_what_it_is_for():
    for file in FILES:
        first = (CONFIGS / file).with_suffix(".yaml").read_text().splitlines()
        comment = [line for line in first[:2] if line.startswith("# ") and "@package" not in line]
        assert comment or file == Path("config"), file


def leaves(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all values of a file that are no groups, but for its list of defaults."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        elif key != "defaults":
            yield *above, key


def at(values: Any, path: tuple[str, ...]) -> Any:
    """The value at a path, `KeyError` where there is none."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return KeyError
        values = values[key]
    return values


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ in its place, to be changed."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    monkeypatch.setattr(
        settings, "initialize_config_module", lambda _, **how: initialize_config_dir(str(folder), **how)
    )
    return folder


@pytest.fixture
def composed_without(own_configs: Path) -> Callable[..., dict[str, Any]]:
    """What hydra puts together, references unresolved, for a file of configs/ that lacks some of its keys."""

    def composed(file: Path, paths: list[tuple[str, ...]]) -> dict[str, Any]:
        text = (CONFIGS / file).with_suffix(".yaml").read_text()
        values = OmegaConf.to_container(OmegaConf.create(text))
        for *above, last in paths:
            del at(values, tuple(above))[last]
        package = text.splitlines()[0] if text.startswith("# @package") else ""
        text = f"{package}\n{OmegaConf.to_yaml(OmegaConf.create(values))}"
        (own_configs / file).with_suffix(".yaml").write_text(text)
        return OmegaConf.to_container(settings._hydra(chosen(file)[:1]))

    return composed


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] != "hydra"], ids=str)
def test_every_key_of_a_file_changes_something(file: Path, composed_without: Callable[..., dict[str, Any]]):
    """To be quick, the file is composed without all of its keys at once; those of a group that is then gone, singly."""
    values = OmegaConf.to_container(OmegaConf.load((CONFIGS / file).with_suffix(".yaml")))
    paths = list(leaves(values))
    place = () if file.parts[0] in ("config", "recipe") else file.parts[:1]
    whole, bare = composed_without(file, []), composed_without(file, paths)
    repeated = [
        path
        for path in paths
        if at(bare, place + path) == at(whole, place + path)
        or (at(bare, place + path[:-1]) in (None, KeyError) and composed_without(file, [path]) == whole)
    ]
    assert repeated == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps: many", r"recipe/mine: training\.steps: Value 'many' .* could not be converted to Integer"),
        ("stepz: 1", r"recipe/mine: training\.stepz: is not a setting, training\.steps is one"),
        ("steps: [", r"while parsing .*recipe/mine\.yaml\", line 3, .*"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_name(own_configs: Path, line: str, said: str):
    (own_configs / "recipe" / "mine.yaml").write_text(f"# @package _global_\ntraining:\n  {line}")
    with pytest.raises(ConfigError, match=f"^{said}$"):
        compose(["recipe=mine"], is_to_train=False)


@pytest.mark.parametrize(
    ("name", "codebook_size", "bitrate"),
    [("4k", 4096, 0.9), ("8k", 8192, 0.975), ("65k", 65536, 1.2), ("262k", 262144, 1.35)],
)
def test_published_models_have_the_published_rates(name, codebook_size, bitrate):
    with torch.device("meta"):
        codec = Codec(compose([f"model=simvq-{name}"]).model)
    assert (codec.codebook_size, codec.hop_length, codec.frame_rate) == (codebook_size, 320, 75)
    assert codec.bitrate == pytest.approx(bitrate)
    assert (codec.quantizer.codebook_dim, codec.encoder.config.is_causal) == (512, True)


@pytest.mark.parametrize(
    ("name", "sample_rate", "frame_rate", "bitrate"),
    [
        ("stream", 24000, 75, 0.9),
        ("stream-16k", 16000, 50, 0.6),
        ("stream-50", 24000, 50, 0.6),
        ("stream-48k", 48000, 75, 0.9),
    ],
)
def test_variants_of_the_stream_have_their_rates_and_fit_together(name, sample_rate, frame_rate, bitrate):
    config = compose([f"model={name}", "recipe=stream-cpu"])
    with torch.device("meta"):
        codec = Codec(config.model)
    assert (codec.sample_rate, codec.frame_rate, codec.bitrate) == (sample_rate, frame_rate, bitrate)
    assert misfits(config) == []
    longest_lag = (config.model.encoder.num_lags - 1) * DECIMATION / sample_rate  # seconds
    assert longest_lag >= 1 / config.model.decoder.lowest_pitch


def test_paper_recipe_is_the_published_one():
    config = compose(["recipe=paper"])
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in Codec(config.model).parameters())
        num_judges = sum(p.numel() for p in Discriminators(config.adversary.discriminators).parameters())
    assert num_parameters == pytest.approx(74.0e6 - 2.1e6, abs=0.1e6)  # the frozen table is no parameter
    assert num_judges == pytest.approx(84.2e6, abs=0.1e6)
    assert config.mel == MelLossConfig([[1024, 256, 100]], "htk", 1e-7)
    data, training = config.data, config.training
    assert (data.batch_size, data.window_seconds, data.gain_db) == (128, 1.0, 0.0)
    for optimizer in (training, config.adversary):
        assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-4, [0.5, 0.9], 0.0)
    weights = (training.mel_weight, commitment_weight(config), training.adversarial_weight)
    assert (*weights, training.feature_matching_weight) == (45, 1000, 1, 1)
    assert (training.convergence_weight, training.loudness_weight, training.usage_weight) == (0, 0, 0)
    assert (training.disturbance_weight, training.intelligibility_weight) == (0, 0)
    assert training.quantizer_rate == 1
    assert (training.steps, training.warmup_steps, training.final_rate, training.ema_decay) == (138_600, 0, 1.0, 0.999)
    assert config.model.quantizer.beta == 0.25


def test_larger_codebooks_change_nothing_else():
    paper = compose(["recipe=paper"])
    for name in ("8k", "65k", "262k"):
        larger = compose(["recipe=paper", f"model=simvq-{name}"])
        assert differences(paper, larger) == {"model.quantizer.codebook_size"}


def test_our_recipe_differs_from_the_papers_where_it_says_so():
    found = differences(compose(["recipe=paper"]), compose(["recipe=libritts"]))
    assert {name for name in found if not name.startswith("adversary.discriminators.")} == {
        "data.batch_size",
        "data.window_seconds",
        "data.speaker_balance",
        "data.gain_db",
        "model.quantizer.relative_loss",
        "adversary.max_gradient_norm",
        "training.betas",
        "training.standardize_encoder",
        "training.warmup_steps",
        "training.final_rate",
        "training.clip_norm",
        "training.quantizer_start",
        "training.quantizer_rate",
        "training.usage_weight",
        "training.adversarial_start",
    }
    assert compose(["recipe=libritts"]).adversary.discriminators == DiscriminatorsConfig()


def test_a_source_tree_beside_an_installed_package_uses_its_own_files(tmp_path: Path):
    for folder in Path(settings.__file__).parent, CONFIGS:
        (tmp_path / folder.name).symlink_to(folder)
    # Without `site`, which would find codec.configs for a package that is installed with pip install -e.
    paths = os.pathsep.join([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    command = [sys.executable, "-S", "-m", "codec", "train", "--show", "recipe=stream-cpu"]
    shown = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == settings.to_yaml(compose(["recipe=stream-cpu"]))
