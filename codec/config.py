"""Settings of a training run, composed by hydra from `configs/` and `key=value` overrides into plain dataclasses.

The only user of hydra. Below it there are dataclasses that have checked themselves, never a DictConfig.
"""

import contextlib
import difflib
import functools
import importlib.util
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from codec.errors import ConfigError, ModelError
from codec.input import read_json
from codec.limits import refuse
from codec.model import catalogue
from codec.model.codec import DECODERS, ENCODERS, QUANTIZERS, CodecConfig, add_quantizers_of_others
from codec.training.discriminators import DiscriminatorsConfig
from codec.training.settings import Config, TrainingConfig, check, misfits, model_sentence
from codec.training.start import derived, initial_directory


@dataclass
class Schema(Config):
    """The root that hydra checks names and types against; `model` is checked by `CodecConfig.from_dict`."""

    model: Any = MISSING


PARTS = {"model/encoder": ENCODERS, "model/quantizer": QUANTIZERS, "model/decoder": DECODERS}
"""Of a model; each is chosen as a whole, as in `model/quantizer=fsq`."""


GONE = {"adversary": ("relative_features",), "training": ("compile",)}
"""Settings of earlier versions, in the saved settings of runs; they were off unless somebody set them."""

TEXTS = {
    f"{part}.{name}"
    for part, values in asdict(Config()).items()
    for name, value in values.items()
    if isinstance(value, str)
}
"""Settings that are texts, most of them paths, which may hold anything."""
_OF_MODEL = re.compile(r"\bmodel\.(encoder|quantizer|decoder|sample_rate)\b")
_SWEPT = re.compile(r",|=\w+\(")
"""In an override: several values, or one of hydra's functions that give some, as `choice(a,b)`."""


def _register() -> None:
    add_quantizers_of_others()
    OmegaConf.register_new_resolver("one_name", lambda name: name.replace("/", "."), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Schema)
    for group, kinds in PARTS.items():
        for kind, (config_class, _) in kinds.items():
            store.store(group=group, name=kind, node=config_class)


_register()


def compose(overrides: list[str], *, is_to_train: bool = True) -> Config:
    """The settings of a run.

    Args:
        overrides: hydra overrides, for example `["model=stream", "training.steps=100"]`. With `training.init`, model
            and discriminators are configured as the initial ones, where nothing else was chosen.
        is_to_train: whether, beside other mistakes, it is one that speech or device are not here.

    Raises:
        ConfigError: unknown or ill-typed settings, values out of range, unknown variants, and then also settings that
            do not fit together, or a `training.init` that cannot be used; all of them in one message.
    """
    mistakes = {override: mistake for override in overrides if (mistake := _mistake_of_form(override))}
    # `+foo=1` would be a setting that nobody looks at; without the plus hydra refuses it.
    overrides = [_quoted(override.lstrip("+")) for override in overrides if override not in mistakes]
    composed, more = _compose(overrides)
    return _checked(composed, [*mistakes.values(), *more], overrides, is_to_train)


def restore(saved: dict[str, Any], changes: dict[str, Any]) -> Config:
    """The settings of a run as it has saved them, some of them changed; both nested, by name.

    Raises:
        ConfigError: they are not those of a run, or not of this version; all mistakes in one message.
    """
    try:
        values = OmegaConf.merge(OmegaConf.structured(Schema), _without_gone(saved), changes)
    except OmegaConfBaseException as error:
        raise ConfigError(*_sentences(error)) from error
    return _checked(values, [], list(saved))  # type: ignore[arg-type]  # all that was saved was chosen


def _without_gone(saved: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without those that only earlier versions had."""
    return {
        part: {name: value for name, value in values.items() if name not in GONE.get(part, ())}
        if isinstance(values, dict)
        else values
        for part, values in saved.items()
    }


def to_yaml(config: Config) -> str:
    """All settings of a run as they would be used, as `configs/` would have them.

    Raises:
        ConfigError: they do not fit together, whatever the speech and the machine.
        ModelError: there is no such model as `training.init`.
    """
    refuse(misfits(config))
    return str(OmegaConf.to_yaml(OmegaConf.create(asdict(derived(config)))))


def sweep(overrides: list[str], task: Callable[[Config], object]) -> None:
    """One run for each combination of values, as in `["model=simvq-4k,simvq-65k", "training.seed=range(3)"]`.

    Hydra's sweeper makes the combinations, and its launcher starts the runs: here, one after the other, or wherever
    `hydra/launcher=...` says. The folder of a run is below `training.run` and named after what sets it apart.

    Args:
        overrides: hydra overrides; a text with a comma is in quotes.
        task: of the module level, so that it can be sent to another machine; called with the settings of a run. If it
            fails, the other runs take place all the same.

    Raises:
        ConfigError: as for `compose`, for any of the combinations, before the first run.
        CodecError: what the first task that failed has raised.
    """
    overrides = [override.lstrip("+") for override in overrides]
    overrides = [override if _SWEPT.search(override) else _quoted(override) for override in overrides]
    parsed, choices = _parsed(overrides)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    if any(_key(override).startswith("hydra.sweep.") for override in overrides):
        raise ConfigError("hydra.sweep is not yours to set: training.run names the folder of all runs")
    if "training.run" in swept:
        raise ConfigError("training.run must name one folder, below which each run gets its own")
    _check_runs(itertools.product(*choices))
    base = [override for override in overrides if _key(override) == "training.run"]
    named = [str(override.value()) for override in parsed if override.key_or_group == "training.run"]
    root = QuotedString(os.path.expanduser([TrainingConfig.run, *named][-1]), Quote.single).with_quotes()
    same = sorted({override.key_or_group for override in parsed} - swept | {"training.run"})
    folders = [
        f"hydra.sweep.dir={root}",
        "hydra.sweep.subdir='${one_name:${hydra.job.override_dirname}}'",
        f"hydra.job.config.override_dirname.exclude_keys={json.dumps(same)}",
        "training.run=${hydra:runtime.output_dir}",
        "hydra.output_subdir=null",
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    ]
    with _initialized():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.multirun(
                "config",
                functools.partial(_job, task),
                [*(override for override in overrides if override not in base), *folders],
                with_log_configuration=False,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(*_sentences(error)) from error
        except RuntimeError as error:
            if "srun" not in str(error):
                raise
            raise ConfigError("hydra/launcher: there is no srun here; submit from a machine of the cluster") from error


def _parsed(overrides: list[str]) -> tuple[list[Override], list[list[str]]]:
    """Overrides as hydra reads them, and for each those that it stands for, of which every run gets one."""
    try:
        with _composing() as loader:
            parsed = OverridesParser.create(loader).parse_overrides(overrides)
            choices = [
                [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
                if override.is_sweep_override()
                else [str(override.input_line)]
                for override in parsed
            ]
    except HydraException as error:
        raise ConfigError(*_sentences(error)) from error
    if empty := [override.input_line for override, values in zip(parsed, choices, strict=True) if not values]:
        raise ConfigError(f"{', '.join(map(repr, empty))}: there is no value to sweep over")
    return parsed, choices


def _check_runs(runs: Iterable[Sequence[str]]) -> None:
    """Refuse the mistakes in the overrides of several runs, each once, and runs that would spoil each other's cache."""
    mistakes: dict[str, None] = {}  # in order
    caches: dict[tuple[str, str], object] = {}
    for overrides in runs:
        try:
            config = compose(list(overrides))
            check(config, is_here=False)
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.args)
            continue
        rate, data = config.model.sample_rate, config.data
        held = {"train": (rate, data.sources)} | ({"validation": (rate, data.validation)} if data.validation else {})
        if any(caches.setdefault((data.cache, split), speech) != speech for split, speech in held.items()):
            mistakes[
                f"data.cache: {data.cache} would be that of runs of different speech or sample rates; give each "
                "its own, as in 'data.cache=cache/${model.sample_rate}'"
            ] = None
    refuse(mistakes)


def _job(task: Callable[[Config], object], composed: DictConfig) -> None:
    """What the launcher calls for each run, perhaps on another machine and in several processes."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    task(_checked(composed, [], list(HydraConfig.get().overrides.task)))


def _checked(composed: DictConfig, mistakes: list[str], overrides: list[str], is_to_train: bool = True) -> Config:
    """Dataclasses of what hydra has put together, if it has found no mistakes and there are no others."""
    mistakes += _of_groups(OmegaConf.select(composed, "adversary.discriminators"))
    parts: dict[str, Any] = {}
    for name in ("data", "mel", "adversary", "training", "model"):
        try:
            parts[name] = _read_model(composed.model) if name == "model" else OmegaConf.to_object(composed[name])
        except (ConfigError, OmegaConfBaseException) as error:
            mistakes += _sentences(error)
    if endless := list(_not_finite(OmegaConf.to_container(composed))):
        raise ConfigError(*_of_others(mistakes, endless), *endless)
    config = Config(**parts)  # with the defaults of those that hold a mistake
    for name in ({"data", "training"} - set(parts)) & set(composed):
        vars(getattr(config, name)).update(OmegaConf.to_container(composed[name]))  # plain values, unchecked
    if config.training.init:
        try:
            _take_over(config, chosen=[_key(override) for override in overrides])
        except ModelError as error:
            mistakes.append(f"training.init: {error}")
    if mistakes:
        further = _further_mistakes(config, mistakes, is_to_train)
        # In the place of a wrong model stands the default one, of which nobody wants to know.
        raise ConfigError(*mistakes, *(each for each in further if "model" in parts or not _OF_MODEL.search(each)))
    return config


def _of_groups(discriminators: Any) -> Iterator[str]:
    """The mistakes within each group of discriminators, which gets its defaults so that others are found."""
    for name in [name for name in discriminators or () if discriminators[name] is not None]:
        group = discriminators[name]
        try:
            OmegaConf.to_object(group)
        except (ConfigError, OmegaConfBaseException) as error:
            yield from (f"adversary.discriminators.{name}.{each}" for each in _sentences(error))
            discriminators[name] = OmegaConf.get_type(group)


def _further_mistakes(config: Config, mistakes: list[str], is_to_train: bool) -> list[str]:
    """What else does not fit together; what has to do with a setting that is named already is left out."""
    if not is_to_train:
        return _of_others(misfits(config), mistakes)
    try:
        check(config)
    except ConfigError as error:
        return _of_others(error.args, mistakes)
    return []


def _of_others(sentences: Iterable[str], named: list[str]) -> list[str]:
    """The sentences about settings that none of the others name."""
    setting = re.compile(rf"\b(?:{'|'.join(part.name for part in fields(Config))})\.(?:discriminators\.)?\w+")
    known = set(setting.findall(" ".join(named)))
    return [sentence for sentence in sentences if not known & set(setting.findall(sentence))]


def _not_finite(values: Any, name: str = "") -> Iterator[str]:
    """A sentence about each number that is none, or infinite: no setting may be."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _not_finite(value, f"{name}.{key}".strip("."))
    elif isinstance(values, float) and not math.isfinite(values):
        yield f"{name} must be a finite number, got {values}"


def _take_over(config: Config, chosen: list[str]) -> None:
    """Configure model and discriminators as those that training starts from, where nothing else was chosen.

    A recipe chooses the model, but its discriminators are for those who have none yet.
    """
    initial = initial_directory(config.training.init)
    chooses_model = any(re.split("[./]", key)[0] == "model" for key in chosen)
    chooses_discriminators = any(re.match(r"adversary($|\.discriminators)", key) for key in chosen)
    if not chooses_model and config.model == _read_model(_hydra([]).model):
        config.model = _model_of(initial)
    path = initial / catalogue.DISCRIMINATORS_CONFIG_NAME
    if not chooses_discriminators and path.is_file():
        try:
            values = read_json(path)
            merged: Any = OmegaConf.merge(OmegaConf.structured(DiscriminatorsConfig), values)
            refuse(_of_groups(merged))
            config.adversary.discriminators = OmegaConf.to_object(merged)  # type: ignore[assignment]
        except (ValueError, OmegaConfBaseException) as error:
            mistakes = "; ".join(_sentences(error))
            raise ModelError(
                f"{path}: does not describe discriminators ({mistakes}); remove it to begin with new ones"
            ) from error


def _compose(overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """All files and overrides as hydra puts them together, but for overrides that are mistakes; and those mistakes.

    Hydra stops at the first one, so the others are sought.
    """
    try:
        return _hydra(overrides), []
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, AttributeError) as error:
        mistakes: list[str] = []
        groups: list[str] = []  # such as model=stream; what others mean depends on them
        values: list[str] = []
        for override in sorted(overrides, key=lambda override: "." in _key(override)):
            try:
                _hydra([*groups, override])
                (values if "." in _key(override) else groups).append(override)
            except (HydraException, OmegaConfBaseException) as other:
                # Of what is in a list OmegaConf names only the place.
                is_place = re.compile(r"\d+:").match
                mistakes += [f"{override!r}: entry {said}" if is_place(said) else said for said in _sentences(other)]
            except (AssertionError, AttributeError):  # OmegaConf's
                mistakes.append(
                    f"{override!r}: the group is null here, and its settings cannot be given one by one; choose a "
                    f"variant that has it, such as adversary=paper, or write one, see configs/"
                )
            except (ValueError, TypeError):  # hydra's, without the name of the group
                mistakes.append(f"{override!r}: {_key(override)} must be a name, see configs/")
        unique = list(dict.fromkeys(mistakes or _sentences(error)))
        try:
            return _hydra([*groups, *values]), unique
        except (HydraException, OmegaConfBaseException):
            raise ConfigError(*unique) from error


def _hydra(overrides: list[str]) -> DictConfig:
    try:
        with _composing():
            return hydra_compose("config", overrides=overrides)
    except YAMLError as error:
        raise HydraException(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _composing() -> Iterator[ConfigLoader]:
    """Hydra ready to compose, as it is already in one of many runs."""
    is_ready = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if is_ready else _initialized():
        yield GlobalHydra.instance().config_loader()


def _initialized() -> contextlib.AbstractContextManager[None]:
    """Hydra with the files of `configs/`, which is installed as codec.configs and else stands beside the package."""
    if importlib.util.find_spec("codec.configs"):
        return initialize_config_module("codec.configs", job_name="codec", version_base="1.3")
    beside = Path(__file__).parents[1] / "configs"
    return initialize_config_dir(str(beside), job_name="codec", version_base="1.3")


def _mistake_of_form(override: str) -> str | None:
    """What is wrong with an override that is neither `key=value`, nor `~key`, which takes one away; else None."""
    key, value = _key(override), override.partition("=")[2]
    if not key or not ("=" in override or override.startswith("~")):
        return f"{override!r}: a setting is given as key=value"
    if (group := key.replace(".", "/")) != key and group in PARTS and re.fullmatch(r"[\w-]+", value):
        return f"{override!r}: a variant is chosen with a slash, {group}={value}"
    return None


def _quoted(override: str) -> str:
    """A text in quotes, so that hydra takes it as it stands; not a list of texts, whose user says where each ends."""
    key, _, value = override.partition("=")
    if key not in TEXTS or value.startswith(("[", "'", '"')) or "${" in value:
        return override
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _key(override: str) -> str:
    """`model.encoder.width` of `+model.encoder.width=3`."""
    return override.split("=", 1)[0].lstrip("+~")


def _model_of(initial: Path) -> CodecConfig:
    found = catalogue.describe(initial)
    try:
        return CodecConfig.from_dict(found.config)
    except ConfigError as error:
        raise ModelError(f"{found.directory / catalogue.CONFIG_NAME}: {error}") from error


def _read_model(values: Any) -> CodecConfig:
    plain = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values
    try:
        return CodecConfig.from_dict(plain)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(*map(model_sentence, error.args)) from error


def _unknown(name: str) -> str:
    """That there is no part of this name; it may be meant as a setting of one."""
    places = [f"{part}.{name}" for part, kind in get_type_hints(Config).items() if name in kind.__dataclass_fields__]
    return f"{name}: is not a setting{', it is ' + ' or '.join(places) if places else ''}"


def _misspelt(key: str) -> str:
    """That there is no setting of this name, and which is nearly spelt so."""
    part, name = key.rsplit(".", 1)
    others = OmegaConf.select(OmegaConf.structured(Schema), part, throw_on_missing=False) or {}
    near = difflib.get_close_matches(name, map(str, others), n=1)
    return f"{key}: is not a setting{f', {part}.{near[0]} is one' if near else ''}"


def _no_variant(group: str, name: str) -> str:
    """That there is no variant of this name, and which there are."""
    with _composing() as loader:
        variants = loader.get_group_options(group)
    return f"{group}={name}: there is no such variant{', but ' + ', '.join(variants) if variants else ''}"


def _sentences(error: Exception) -> Sequence[str]:
    """One for each mistake: ours may be many, even where hydra or OmegaConf have wrapped them."""
    ours = error if isinstance(error, ConfigError) else error.__cause__
    return ours.args if isinstance(ours, ConfigError) else [_one_sentence(error)]


def _one_sentence(error: BaseException) -> str:
    """Hydra explains itself over many lines and wraps what OmegaConf says; the first line of the cause is the point."""
    if isinstance(error, OverrideParseException):
        is_text = _key(error.override) in TEXTS
        advice = "; a text of unusual letters or signs needs quotes of its own, as in ['d (1)','d (2)']" * is_text
        return f"{error.override!r}: cannot be read{advice}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    sentence = re.sub(r"\s+", " ", lines[0]).rstrip(".") if lines else type(cause).__name__
    sentence = sentence.replace("a ListConfig, list or tuple", "a list")
    file = re.fullmatch(r"In '(.+)': \w+ raised while composing config:", sentence)
    if file and error.__context__:
        return f"{file[1]}: {_one_sentence(error.__context__)}"
    if sentence.startswith("Ambiguous value"):
        return f"{sentence}: a list is written [1,2]; for a run of each, add --multirun"
    if "hydra/launcher/submitit" in sentence:
        return "hydra/launcher: needs hydra-submitit-launcher, pip install 'codec[slurm]'"
    if unknown := re.search(r"Key '([\w/]+)' not in 'Schema'", sentence):
        return _unknown(unknown[1])
    if re.search(r"Key '\w+' (not in '|is not in struct)", sentence):
        return _misspelt(key)
    if copied := re.search(r"interpolation '\${([\w.]+)}': (.+)", sentence):
        return ": ".join(copied.groups())  # the setting at fault, not the one that takes it over
    if missing := re.search(r"Could not (?:find|load) '(.+)/(.+)'", sentence):
        return _no_variant(*missing.groups())
    if "is not a subclass of" in sentence:
        return f"{key}: holds several settings, each given as {key}.NAME=VALUE"
    return f"{key}: {sentence}" if key and key not in sentence else sentence
