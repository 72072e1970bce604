"""Each known failure is recognised in the log that it leaves, a healthy run in none."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from codec.cli import run as run_command
from codec.errors import ConfigError
from codec.training import doctor
from codec.training.doctor import FAILURES, Diagnosis

STEPS = 5000
EVERY = 50
Values = dict[str, Any]


def diagnose(run: Path) -> Diagnosis:
    return doctor.diagnose(doctor.read_run(run))


def healthy(step: int, noise: random.Random) -> Values:
    """What a run without trouble logs: losses fall with some noise, discriminators join at step 1000."""
    values = {
        "loss/mel": (0.5 + math.exp(-step / 1500)) * noise.uniform(0.93, 1.07),
        "codes/utilisation": min(1.0, 0.8 + step / 10000),
        "codes/perplexity": 1500 * noise.uniform(0.95, 1.05),
        "learning_rate": 1e-3,
        "skipped_steps": 0.0,
        "data/waiting": 0.001,
        "steps_per_second": noise.uniform(1.1, 1.2),
    }
    if step > 1000:
        values |= {"discriminators/lead": noise.uniform(0.1, 0.2), "loss/discriminator": 5.0}
    if step % 500 == 0:
        values["validation/mel"] = 0.6 + math.exp(-step / 1500)
    return values


def write_run(run: Path, change: Callable[[int, Values], Values] = lambda step, values: {}, **settings: Any) -> Path:
    """A run folder with the log of a healthy run, apart from what `change` gives for a step."""
    import numpy as np
    from safetensors.numpy import save_file

    run.mkdir()
    config: dict[str, dict[str, Any]] = {
        "model": {"sample_rate": 24000, "quantizer": {"codebook_size": 4096}, "decoder": {"hop_length": 320}},
        "data": {"train": "audio", "validation": "dev", "batch_size": 8, "window_seconds": 3.0},
        "training": {"steps": 2 * STEPS, "log_every": EVERY, "save_every": 250},
    }
    for name, value in settings.items():
        part, setting = name.split("__")
        config[part][setting] = value
    (run / "config.json").write_text(json.dumps(config))
    save_file({"codec/w": np.zeros(3)}, run / "state.safetensors", {"counters": json.dumps({"step": STEPS})})
    noise = random.Random(0)
    with open(run / "log.jsonl", "w") as log:
        for step in range(EVERY, STEPS + 1, EVERY):
            values = healthy(step, noise)
            values |= (changed := change(step, values))
            event = changed.get("event")
            if event:
                log.write(json.dumps({"step": step, "event": event[0], "text": event[1]}) + "\n")
            log.write(json.dumps({"step": step} | {k: v for k, v in values.items() if k != "event"}) + "\n")
    return run


def names(run: Path) -> dict[str, bool]:
    """What was found, and whether it is serious."""
    return {finding.name: finding.is_serious for finding in diagnose(run).findings}


def after(start: int, **values: float) -> Callable[[int, Values], Values]:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return lambda step, _: named if step > start else {}


def diverging(step: int, values: Values) -> Values:
    return {"loss/mel": 0.6 + (step - 2500) / 1000} if step > 2500 else {}


def spiky(step: int, values: Values) -> Values:
    return {"loss/mel": 2.5 * values["loss/mel"]} if step % 500 == 0 else {}


def overfitting(step: int, values: Values) -> Values:
    return {"validation/mel": 0.7 + abs(step - 2000) / 10000} if "validation/mel" in values else {}


def bursts(step: int, values: Values) -> Values:
    sentence = "loss/mel was not finite in 25 steps; then gradient_norm/codec in 25"
    return {"skipped_steps": 25.0 * (step // 1000)} | ({"event": ("skipped", sentence)} if step % 1000 == 0 else {})


def full_disk(step: int, values: Values) -> Values:
    return {"event": ("failure", "saving the state failed: No space left on device")} if step == 3000 else {}


def failing_validation(step: int, values: Values) -> Values:
    return {"event": ("trouble", "validation failed: out of memory")} if step == 3000 else {}


FAILED: dict[str, tuple[Callable[[int, Values], Values], dict[str, Any]]] = {
    "NaN bursts": (bursts, {}),
    "codebook collapse": (after(3000, codes__perplexity=200.0), {}),
    "low perplexity": (after(0, codes__perplexity=30.0), {}),
    "no quantizer": (after(STEPS), {"training__quantizer_start": 2 * STEPS}),
    "winning discriminators": (after(3000, discriminators__lead=0.97), {}),
    "losing discriminators": (after(1000, discriminators__lead=0.004), {}),
    "diverging loss": (diverging, {}),
    "learning rate too high": (spiky, {}),
    "nothing is learned": (after(0, loss__mel=1.4), {}),
    "plateau": (after(1500, loss__mel=0.7), {}),
    "overfitting": (overfitting, {}),
    "no validation": (after(STEPS), {"data__validation": ""}),
    "short windows": (after(STEPS), {"data__window_seconds": 1.0}),
    "silent audio": (after(0, batch__peak=0.0), {}),
    "starving loader": (after(3000, data__waiting=0.4), {}),
    "slowing down": (after(4500, steps_per_second=0.3), {}),
    "files that could not be read or written": (full_disk, {}),
    "trouble beside training": (failing_validation, {}),
}


def test_a_healthy_run_resembles_no_failure(tmp_path: Path):
    diagnosis = diagnose(write_run(tmp_path / "run"))
    assert diagnosis.findings == []
    assert str(diagnosis).splitlines()[1] == "nothing here resembles a known failure"
    assert f"step {STEPS} of {2 * STEPS}, 1.1" in str(diagnosis)


@pytest.mark.parametrize("failure", FAILED)
def test_a_failure_is_recognised_by_its_log(tmp_path: Path, failure: str):
    change, settings = FAILED[failure]
    diagnosis = diagnose(write_run(tmp_path / "run", change, **settings))
    found = [finding.name for finding in diagnosis.findings]
    # What learns nothing has reached a plateau as well.
    assert failure in found
    assert len(found) <= (2 if failure == "nothing is learned" else 1)
    assert failure in str(diagnosis)
    assert "Try: " in str(diagnosis).splitlines()[2]


def test_fine_tuning_may_gain_little(tmp_path: Path):
    gain = write_run(tmp_path / "run", lambda step, _: {"loss/mel": 0.6 - step / 100_000}, training__init="stream")
    assert names(gain) == {}


def test_every_failure_has_its_case(tmp_path: Path):
    assert len(FAILURES) == len(FAILED) + 2  # the state and the silence are below


def test_bursts_are_explained_by_their_cause(tmp_path: Path):
    (finding,) = diagnose(write_run(tmp_path / "run", bursts)).findings
    assert finding.is_serious
    assert "125 of 5000 steps" in finding.evidence
    assert "loss/mel was not finite" in finding.evidence
    assert "training.learning_rate" in finding.advice


def test_an_encoder_that_began_as_a_linear_filter_is_to_be_standardized(tmp_path: Path):
    published = {"model__encoder": {"kind": "seanet"}}
    few = after(0, codes__perplexity=30.0)
    (finding,) = diagnose(write_run(tmp_path / "as_drawn", few, **published)).findings
    assert finding.advice.startswith("training.standardize_encoder=true, in a run from the start; ")
    (finding,) = diagnose(write_run(tmp_path / "ours", few, **published, training__standardize_encoder=True)).findings
    assert "standardize" not in finding.advice


def test_uneven_use_of_codes_is_not_told_of_a_run_that_has_hardly_begun(tmp_path: Path):
    few = after(0, codes__perplexity=30.0)
    begun = write_run(tmp_path / "begun", few)
    log = (begun / "log.jsonl").read_text().splitlines()
    (begun / "log.jsonl").write_text("\n".join(log[:4]) + "\n")
    assert "low perplexity" not in names(begun)
    (finding,) = diagnose(write_run(tmp_path / "tuned", few, training__init="stream")).findings
    assert "quantizer_start" not in finding.advice  # a model that is there has codes already


def test_a_damaged_state_is_named_with_what_remains(tmp_path: Path):
    run = write_run(tmp_path / "run")
    whole = (run / "state.safetensors").read_bytes()
    (run / "state.previous.safetensors").write_bytes(whole)
    (run / "state.safetensors").write_bytes(whole[:-10])
    (finding,) = diagnose(run).findings
    assert finding.name == "damaged state"
    assert "state.safetensors is not whole" in finding.evidence
    assert "other state" in finding.advice
    (run / "state.previous.safetensors").unlink()
    assert "training.init" in diagnose(run).findings[0].advice
    (run / "state.safetensors").unlink()
    assert "no state" in diagnose(run).findings[0].evidence


def test_a_run_can_go_on_from_its_portable_state(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "portable").mkdir()
    (run / "state.safetensors").rename(run / "portable" / "0.safetensors")
    assert diagnose(run).findings == []


def test_a_run_shorter_than_its_log_is_where_its_state_is(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "log.jsonl").unlink()
    assert f"step {STEPS} of {2 * STEPS}" in str(diagnose(run))


def test_a_run_past_its_end_is_not_said_to_be_at_a_step_of_fewer(tmp_path: Path):
    run = write_run(tmp_path / "run", training__steps=3)
    assert f"step {STEPS}, past training.steps=3, " in str(diagnose(run))


def test_a_silent_run_is_noticed_unless_it_is_finished(tmp_path: Path):
    run = write_run(tmp_path / "run")
    log = run / "log.jsonl"
    os.utime(log, (log.stat().st_atime, log.stat().st_mtime - 3 * 3600))
    assert names(run) == {"no sign of life": False}
    finished = write_run(tmp_path / "finished", training__steps=STEPS)
    os.utime(finished / "log.jsonl", (0, 0))
    assert names(finished) == {}


def test_steps_done_again_after_a_kill_count_once(tmp_path: Path):
    run = write_run(tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()
    wild = [json.dumps(json.loads(line) | {"loss/mel": 9.0}) for line in lines[60:]]
    (run / "log.jsonl").write_text("\n".join([*lines[:60], *wild, '{"step": 50', *lines[60:]]) + "\n")
    assert names(run) == {}


@pytest.mark.parametrize(
    "line",
    [
        '{"step": Infinity}',
        '{"step": 1e999}',
        '{"step": NaN}',
        '{"step": []}',
        '{"loss/mel": 9.0}',
        f'{{"step": 9999, "loss/mel": {"9" * 400}}}',
        '{"step": 9999, "event": "skipped"}',
        "[" * 200_000,
        "9",
    ],
    ids=lambda line: line[:24],
)
def test_damaged_lines_of_a_log_are_left_out(tmp_path: Path, line: str):
    run = write_run(tmp_path / "run")
    said = str(diagnose(run))
    with open(run / "log.jsonl", "a") as log:
        log.write(line + "\n")
    assert str(diagnose(run)) == said


@pytest.mark.parametrize(
    "value", ["x", True, [], {}, 0, -1, math.nan, math.inf, 10**400], ids=lambda value: str(value)[:9]
)
def test_settings_that_are_no_number_count_as_missing(tmp_path: Path, value: object):
    settings = ("training__steps", "training__log_every", "training__save_every", "training__commitment_weight")
    settings += ("data__batch_size", "data__window_seconds", "model__sample_rate", "model__quantizer", "model__decoder")
    nested = {"model__quantizer": {"codebook_size": value}, "model__decoder": {"hop_length": value}}
    few = after(0, codes__perplexity=30.0)
    damaged = write_run(tmp_path / "damaged", few, **dict.fromkeys(settings, value) | nested)
    without = write_run(tmp_path / "without", few, **dict.fromkeys(settings))
    said = asdict(diagnose(damaged)) | {"run": ""}
    assert said == asdict(diagnose(without)) | {"run": ""}
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_the_weight_of_the_commitment_that_is_too_large_is_told(tmp_path: Path):
    few = after(0, codes__perplexity=30.0)
    (finding,) = diagnose(write_run(tmp_path / "run", few, training__commitment_weight=20.0)).findings
    assert "a training.commitment_weight below 20;" in finding.advice
    (finding,) = diagnose(write_run(tmp_path / "old", few, training__commitment_weight=None)).findings
    assert "a smaller training.commitment_weight;" in finding.advice


def test_values_that_are_null_and_a_missing_config_are_read(tmp_path: Path):
    run = write_run(tmp_path / "run", lambda step, values: {"loss/mel": None} if step % 200 == 0 else {})
    (run / "config.json").unlink()
    assert names(run) == {}


@pytest.mark.parametrize("content", ["nothing", "missing", "a model"])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "folder"
    if content != "missing":
        folder.mkdir()
    if content == "a model":
        (folder / "config.json").write_text('{"sample_rate": 24000}')
    with pytest.raises(ConfigError, match=r"no such folder|is not the folder of a training run"):
        diagnose(folder)
    assert run_command(["doctor", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"codec: {folder}: ")


def test_the_command_reports_in_words_or_json_without_torch(tmp_path: Path):
    run = write_run(tmp_path / "run", bursts)
    program = (
        "import sys; from codec.cli import run; "
        f"assert run(['doctor', {str(run)!r}]) == 0; assert run(['doctor', {str(run)!r}, '--json']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *words, line = done.stdout.splitlines()
    assert words[1].startswith("problem NaN bursts: 125 of 5000 steps")
    assert json.loads(line)["findings"][0]["name"] == "NaN bursts"


def test_the_command_draws_what_was_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, picture = write_run(tmp_path / "run"), tmp_path / "curves.png"
    assert run_command(["doctor", str(run), "--curves", str(picture)]) == 0
    pixels = imread(picture)[..., :3]  # of the five curves that are there in three rows, each has its colour
    assert pixels.shape[:2] == (432, 800)
    is_curve = (pixels[..., 2] > pixels[..., 0] + 0.3).reshape(3, 144, 2, 400).sum(axis=(1, 3))
    assert (is_curve > 50).tolist() == [[True, True], [True, True], [True, False]]
    before = picture.read_bytes()
    assert run_command(["doctor", str(run), "--curves", str(picture)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert run_command(["doctor", str(run), "--curves", str(tmp_path / "curves.txt")]) == 2
    assert "ends in .png" in capsys.readouterr().err
