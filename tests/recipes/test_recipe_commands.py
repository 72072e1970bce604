"""Every command in a recipe's README is one that the program understands, with settings that compose."""

import re
import shlex
from pathlib import Path

import click
import pytest

from codec.cli import commands
from codec.config import compose
from codec.training.start import commitment_weight

ROOT = Path(__file__).parents[2]
READMES = sorted((ROOT / "recipes").glob("*/README.md"))


def commands_of(path: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


# But for those of a package that is not installed.
COMMANDS = [(path.parent.name, line) for path in READMES if path.parent.name != "own" for line in commands_of(path)]


@pytest.mark.parametrize(("recipe", "line"), COMMANDS, ids=[f"{recipe}-{line[:60]}" for recipe, line in COMMANDS])
def test_command_is_understood(recipe, line):
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["codec", *words[words.index("codec") + 1 :]]
    if words[0] == "python":
        text = "".join(path.read_text() for path in (ROOT / words[1]).parent.glob("*.py"))
        assert (ROOT / words[1]).is_file()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []
    elif words[0] == "codec":
        group: click.Command = commands
        arguments = words[1:]
        while isinstance(group, click.Group):
            name = arguments.pop(0)
            group = group.commands[name]
        context = group.make_context(name, list(arguments), resilient_parsing=False)
        if name == "train":
            # Of several runs the first one, wherever it takes place, and from a model that is here.
            settings = [setting for setting in context.params["settings"] if not setting.startswith("hydra")]
            settings = [re.sub("^(training.init)=.*", r"\1=stream", setting) for setting in settings]
            assert compose([re.sub(r",[^]]*$", "", setting) for setting in settings]).data.train
    else:
        assert words[:2] == ["pip", "install"]


def test_folder_that_is_not_there_is_one_sentence(run):
    assert run("stream/invariance.py", "nowhere") == (2, "", "codec: nowhere: no such folder\n")


def test_too_little_speech_is_one_sentence(run, speech):
    sentence = f"codec: {speech.parent}: gives 0 utterances of 60 s only\n"
    assert run("libritts/benchmark_evaluation.py", speech.parent, "--seconds", 60) == (2, "", sentence)


def test_a_step_that_cannot_be_measured_is_one_sentence(run):
    code, _, sentence = run("libritts/benchmark_step.py", "--device", "nothing")
    assert (code, sentence.count("\n")) == (2, 1)
    assert sentence.startswith("codec: device 'nothing' is not available here")


def test_table_of_differences_holds_the_values_of_the_recipes():
    paper, ours = compose(["recipe=paper"]), compose(["recipe=libritts"])
    text = (ROOT / "recipes" / "libritts" / "README.md").read_text()
    windows = [f"{config.data.batch_size} x {config.data.window_seconds:g} s" for config in (paper, ours)]
    assert f"| window | {windows[0]} | {windows[1]} |" in text
    assert paper.training.adversarial_seconds >= paper.data.window_seconds
    assert f"| discriminators see | all of a window | {ours.training.adversarial_seconds:g} s of it |" in text
    assert f"at most {ours.training.clip_norm:g}, discriminators {ours.adversary.max_gradient_norm:g} |" in text
    assert f"1e-4 after {ours.training.warmup_steps:,} steps of warm-up" in text
    assert f"last {ours.training.decay_steps:,} |" in text
    assert f"| first {ours.training.quantizer_start:,} steps |" in text
    assert f"usage loss x {ours.training.usage_weight:g}, W {ours.training.quantizer_rate:g} times as fast |" in text
    commitment = [commitment_weight(config) for config in (paper, ours)]
    betas = [config.training.betas for config in (paper, ours)]
    assert f"| x {commitment[0]:g} | x {commitment[1]:g}, relative" in text
    assert "| {}, {} | {}, {};".format(*betas[0], *betas[1]) in text
    assert f"from step {ours.training.adversarial_start:,} on |" in text
    assert f"to the power of {ours.data.speaker_balance:g} |" in text
    assert f"+-{ours.data.gain_db:g} dB |" in text
    assert f"{paper.training.steps:,} steps" in text


def test_slurm_job_trains_with_settings_that_compose():
    script = (ROOT / "recipes" / "libritts" / "train.slurm").read_text().replace("\\\n", "")
    words = shlex.split(re.search("^srun .*", script, re.MULTILINE)[0])
    config = compose([word for word in words[words.index("train") + 1 :] if "=" in word])
    num_processes = int(re.search("--nodes=(.*)", script)[1]) * int(re.search("--gpus-per-node=(.*)", script)[1])
    assert config.data.batch_size % num_processes == 0


def test_links_lead_somewhere():
    for path in READMES:
        for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path}: {link}"
