"""Watching a run: code usage, broken steps, readable lines, alarms that speak up once, logs that survive."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codec.training.alarms import MEMORY, PATIENCE, Watch, attainable_perplexity
from codec.training.counters import BrokenSteps, CodeUsage, Means, perplexity
from codec.training.monitor import Monitor, effective_rank, terminal_line
from codec.training.run_files import append_record


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def monitor(run: Path) -> Monitor:
    return Monitor(run, 0, 100, Watch(attainable_perplexity=64, undecided_loss=6))


def test_usage_of_equally_frequent_codes():
    usage = CodeUsage(8, torch.device("cpu"))
    for _ in range(3):
        usage.add(torch.tensor([[0, 1], [2, 3]]), torch.tensor(True))
        usage.add(torch.tensor([[7, 7], [7, 7]]), torch.tensor(False))
    values = CodeUsage.summarise(usage.counts)
    assert values["codes/utilisation"] == 0.5
    assert values["codes/perplexity"] == pytest.approx(4)


def test_codes_fade_from_batch_to_batch():
    usage = CodeUsage(2, torch.device("cpu"))
    for code in (0, 1, 1, 1):
        usage.add(torch.tensor([[code]]), torch.tensor(True))
    assert usage.counts.tolist() == pytest.approx([MEMORY**3, 1 + MEMORY + MEMORY**2])


def test_a_code_is_in_use_for_a_hundred_batches_and_not_for_a_thousand():
    usage = CodeUsage(2, torch.device("cpu"))
    utilisation = []
    for batch in range(1000):
        usage.add(torch.tensor([[min(batch, 1)]]), torch.tensor(True))
        utilisation.append(CodeUsage.summarise(usage.counts)["codes/utilisation"])
    assert (utilisation[100], utilisation[-1]) == (1, 0.5)


def test_the_attainable_perplexity_is_that_of_a_new_code_in_each_frame():
    usage = CodeUsage(2000, torch.device("cpu"))
    for codes in torch.arange(2000).view(-1, 1, 2):
        usage.add(codes, torch.tensor(True))
    assert attainable_perplexity(2000, 2) == pytest.approx(perplexity(usage.counts).item(), rel=0.02)
    assert attainable_perplexity(100, 2) == 100  # there are no more


def test_perplexity_counts_equally_frequent_codes_and_is_1_where_nothing_was_counted():
    assert perplexity(torch.tensor([7, 7, 0, 7])) == pytest.approx(3)
    assert perplexity(1e-9 * torch.ones(5)) == pytest.approx(5)  # shares, whatever their sum
    assert perplexity(torch.zeros(4)) == 1


def test_effective_rank_counts_equal_directions():
    turned = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(turned @ torch.diag(torch.tensor([2.0, 2, 2, 0, 0, 0])) @ turned.T) == pytest.approx(3)


def test_means_are_those_of_the_finite_values_since_the_last_look():
    means = Means()
    for value in (1.0, math.nan, 2.0, 6.0):
        means.add({"loss/mel": torch.tensor(value), "loss/pitch": torch.tensor(math.inf)})
    means.add({"loss/mel": torch.tensor(3.0), "loss/adversarial": torch.tensor(5.0)})
    found = means.take()
    assert (found.pop("loss/mel"), found.pop("loss/adversarial")) == (3, 5)
    assert found.pop("loss/pitch").isnan()
    assert not found
    assert means.take() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_steps_name_the_cause_first(value: float):
    broken = BrokenSteps(torch.device("cpu"))
    fine, bad = torch.tensor(1.0), torch.tensor(value)
    broken.add(torch.tensor(0.0), {"loss/mel": fine, "loss/total": fine})
    assert broken.explain(broken.counts) == ""
    for _ in range(2):
        broken.add(torch.tensor(1.0), {"loss/mel": bad, "loss/total": bad, "gradient_norm/codec": bad})
    assert broken.skipped_in_a_row == broken.skipped == 2
    sentence = "loss/mel was not finite in 2 steps; then loss/total in 2, gradient_norm/codec in 2"
    assert broken.explain(broken.counts) == sentence
    assert broken.explain(broken.counts) == ""
    broken.add(torch.tensor(0.0), {"loss/mel": fine, "loss/total": fine})
    assert (broken.skipped_in_a_row, broken.skipped) == (0, 2)
    assert broken.explain(broken.counts) == ""
    broken.add(torch.tensor(1.0), {"loss/total": bad})
    broken.add(torch.tensor(0.0), {"loss/total": fine, "loss/adversarial": fine})
    assert broken.explain(broken.counts) == "loss/total was not finite in 1 step"


def test_the_terminal_line_stays_readable():
    values = {"loss/mel": 0.59718, "loss/adversarial": 14.0549, "discriminators/lead": -0.0717, "loss/total": 21.9}
    values |= {
        "codes/perplexity": 15690.4,
        "steps_per_second": 1.17422,
        "skipped_steps": 12345.0,
        "learning_rate": 1e-3,
    }
    line = terminal_line(199_950, 200_000, 359_940, values)
    assert line.startswith("step 199950/200000  4 d left  mel 0.597  adversarial 14.1  lead -0.0717  perplexity 15690")
    assert line.endswith("1.17 steps/s  12345 skipped")
    assert len(line) <= 120
    assert "  47 min left  " in terminal_line(100, 200, 47 * 60, values)


def test_an_alarm_needs_patience_and_is_raised_once():
    watch = Watch(attainable_perplexity=64, undecided_loss=6)
    calm = {"codes/perplexity": 40.0, "codes/utilisation": 0.9, "loss/discriminator": 5.0}
    low, fallen = (calm | {"codes/perplexity": share * 40.0} for share in (0.51, 0.49))
    assert watch.alarms(calm) == []
    assert not any(watch.alarms(low) for _ in range(PATIENCE + 3))
    raised = [watch.alarms(fallen) for _ in range(PATIENCE + 3)]
    assert [len(sentences) for sentences in raised] == [0] * (PATIENCE - 1) + [1] + [0] * 3
    assert raised[PATIENCE - 1] == ["the codebook is collapsing: perplexity 20, it was 40"]
    watch.alarms(calm)
    assert not any(watch.alarms({}) for _ in range(PATIENCE))  # before there are codes
    assert any(watch.alarms(fallen) for _ in range(PATIENCE))  # a new occasion


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"codes/perplexity": 1.1, "codes/utilisation": 0.1}, "hardly any codes are in use: perplexity 1 of 64"),
        ({"loss/discriminator": 0.1}, "the discriminators are winning: their loss is 0.1, 6 would be undecided"),
    ],
)
def test_alarming_values_have_their_sentence(values: dict[str, float], sentence: str):
    watch = Watch(attainable_perplexity=64, undecided_loss=6)
    values = values | watch.derive(values)
    assert [watch.alarms(values) for _ in range(PATIENCE)][-1] == [sentence]


def test_logs_hold_values_events_and_null_for_what_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with monitor(tmp_path) as watching:
        for step in range(1, PATIENCE + 1):
            values = {"loss/mel": torch.tensor(math.nan), "loss/discriminator": torch.tensor(0.06)}
            watching.log(step, values, {"learning_rate": 1e-3})
        watching.log_codebook(3, torch.tensor([1.0, 2.0, 0.0]), torch.eye(3))
    first, *_, alarm, codebook = records(tmp_path)
    assert first["loss/mel"] is None
    assert first["discriminators/lead"] == pytest.approx(0.99)
    assert (alarm["step"], alarm["event"]) == (PATIENCE, "alarm")
    assert codebook["codes/effective_rank"] == pytest.approx(3)
    assert f"step {PATIENCE}  alarm: the discriminators are winning" in capsys.readouterr().err


def test_a_line_that_was_cut_short_stays_alone(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    append_record(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "loss')
    append_record(path, {"step": 3})
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2, "loss', '{"step": 3}']


def test_a_full_disk_costs_lines_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monitor(tmp_path) as watching:
        watching.log(1, {"loss/mel": torch.tensor(1.0)}, {})
        with monkeypatch.context() as patch:
            patch.setattr("codec.training.monitor.append_record", full)
            watching.log(2, {"loss/mel": torch.tensor(1.0)}, {})
            watching.log(3, {"loss/mel": torch.tensor(1.0)}, {})
        watching.log(4, {"loss/mel": torch.tensor(1.0)}, {})
    assert [record["step"] for record in records(tmp_path)] == [1, 4]
    assert capsys.readouterr().err.count("the logs cannot be written (No space left on device)") == 1


def test_a_disk_that_tensorboard_fills_is_told_without_a_traceback(tmp_path: Path):
    """In a process whose files must not grow beyond what the lines need: TensorBoard dies, the run does not."""
    code = f"""
import resource, torch
from pathlib import Path
from codec.training.alarms import Watch
from codec.training.monitor import Monitor
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
with Monitor(Path({str(tmp_path)!r}), 0, 10, Watch(64, 6)) as monitor:
    for step in range(1, 11):
        monitor.log(step, {{"loss/mel": torch.tensor(1.0)}}, {{}})
        monitor.log_codebook(step, 2.0 ** torch.linspace(0, 100, 1000), None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    complaints = {line for line in done.stderr.splitlines() if not line.startswith("step ")}
    assert complaints == {"codec: the logs cannot be written (File too large)"}
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 11))


def test_other_processes_keep_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with Monitor(None, 0, 100, Watch(64, 6)) as watching:
        watching.log(1, {"loss/mel": torch.tensor(1.0)}, {})
        watching.event(1, "alarm", "nobody hears this")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_everything_to_watch_is_in_tensorboard(tiny_run: list[str], training_folder: Path, tmp_path: Path):
    """Read with TensorBoard's own reader from the events of a whole run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from codec.config import compose
    from codec.training.trainer import Trainer

    validation = [f"data.validation={training_folder}", "training.validate_every=6", "training.validation_clips=3"]
    Trainer(compose([*tiny_run, *validation])).fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"audio": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    losses = ("mel", "quantizer", "pitch", "adversarial", "feature_matching", "discriminator", "total")
    expected = {f"loss/{name}" for name in losses} | {
        *("gradient_norm/codec", "gradient_norm/discriminators", "discriminators/lead"),
        *("codes/utilisation", "codes/perplexity", "codes/effective_rank"),
        *("validation/mel", "validation/perplexity", "learning_rate", "steps_per_second", "skipped_steps"),
    }
    assert expected <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("loss/mel")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("validation/mel")] == [6, 12]
    width = 24  # W acts in at most as many directions as it has columns
    assert all(1 <= event.value <= width for event in events.Scalars("codes/effective_rank"))
    assert tags["histograms"] == ["codes/log10_share"]
    for example in range(3):
        for kind in ("reference", "estimate"):
            heard = events.Audio(f"{kind}/{example}")
            assert [sound.step for sound in heard] == ([6] if kind == "reference" else [6, 12])
            assert heard[0].sample_rate == 24000
            assert heard[0].encoded_audio_string.startswith(b"RIFF")
        (image, _) = events.Images(f"reference above estimate/{example}")
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.height == 2 * 513 + 4


def test_a_resumed_run_keeps_its_points_in_tensorboard_and_does_those_after_its_state_again(tmp_path: Path):
    """Of what is there already TensorBoard leaves out what lies at or behind the step that a new file begins with."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    watch = Watch(attainable_perplexity=64, undecided_loss=6)
    for first, steps in ((0, range(1, 6)), (3, range(4, 6))):  # killed after step 5, gone on with from step 3
        with Monitor(tmp_path, first, 10, watch) as log:
            for step in steps:
                log.log(step, {"loss/mel": torch.tensor(1.0)}, {})
    events = [event for path in (tmp_path / "tensorboard").iterdir() for event in EventFileLoader(str(path)).Load()]
    assert sorted(event.step for event in events if event.HasField("session_log")) == [1, 4]
