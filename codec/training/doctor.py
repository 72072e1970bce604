"""Reads a training run and says in words which known failures it resembles, and what to try.

Needs what a run leaves behind and nothing else: neither torch nor the audio. Each failure is one function from the
record of a run to a finding, if there is one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import safetensors

from codec.errors import ConfigError
from codec.input import parse_json
from codec.training.alarms import COLLAPSE, FEW_CODES, WINNING, attainable_perplexity
from codec.training.run_files import LOG_NAME, PORTABLE_NAME, PREVIOUS_NAME, STATE_NAME, read_settings

RECENT = 9
"""Logged values that count as the present of a run; their median is compared."""
BEYOND = 1e15
"""What no setting reaches that is a number; one that does is damaged."""


@dataclass
class Record:
    """What a run has left behind."""

    run: Path
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # by name: step and value, nan if broken
    events: list[dict[str, Any]] = field(default_factory=list)  # step, event (its kind), text
    states: dict[str, str] = field(default_factory=dict)  # file name -> what is wrong with it, empty if nothing
    saved_step: int = 0  # of the newest whole state
    seconds_silent: float = 0.0  # since the last line of the log

    @property
    def step(self) -> int:
        """The last step that was logged or saved."""
        return max([self.saved_step, *(points[-1][0] for points in self.series.values())])

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name; where the default is a number, one that can be counted with."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        is_damaged = type(default) in (int, float) and not (type(value) in (int, float) and 0 < value < BEYOND)
        return default if value is None or is_damaged else value

    def values(self, name: str) -> list[float]:
        """The finite values of a series."""
        return [value for _, value in self.series.get(name, []) if math.isfinite(value)]

    def now(self, name: str) -> float:
        """Median of the recent values; nan where there are none."""
        return median(self.values(name)[-RECENT:] or [math.nan])


@dataclass
class Finding:
    """One failure that a run resembles."""

    name: str
    is_serious: bool  # else worth knowing
    evidence: str
    advice: str


@dataclass
class Diagnosis:
    """What the doctor says about a run."""

    run: str
    step: int
    last_step: int
    steps_per_second: float | None
    findings: list[Finding]

    def __str__(self) -> str:
        speed = f", {self.steps_per_second:.3g} steps/s" if self.steps_per_second else ""
        end = f" of {self.last_step}" if self.step <= self.last_step else f", past training.steps={self.last_step}"
        lines = [f"{self.run}: step {self.step}{end}{speed}"]
        for finding in sorted(self.findings, key=lambda finding: not finding.is_serious):
            lines.append(f"{'problem' if finding.is_serious else 'note':8}{finding.name}: {finding.evidence}")
            lines.append(f"{'':8}Try: {finding.advice}")
        if not any(finding.is_serious for finding in self.findings):
            lines.append("nothing here resembles a known failure")
        return "\n".join(lines)


def diagnose(record: Record) -> Diagnosis:
    """Compare the record of a run with every known failure."""
    findings = [finding for judge in FAILURES if (finding := judge(record)) is not None]
    speed = record.now("steps_per_second")
    last_step = record.setting("training.steps", record.step)
    return Diagnosis(str(record.run), record.step, last_step, None if math.isnan(speed) else speed, findings)


# ----------------------------------------------------------------------------------------------------------- reading


def read_run(run: Path) -> Record:
    """The record of a run folder; damaged lines of its log are left out.

    Raises:
        ConfigError: the folder is missing or not that of a run.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder")
    record = Record(run, read_settings(run))
    if not (run / LOG_NAME).is_file() and "training" not in record.config:
        raise ConfigError(f"{run}: is not the folder of a training run, it has neither {LOG_NAME} nor its settings")
    if (run / LOG_NAME).is_file():
        record.seconds_silent = time.time() - (run / LOG_NAME).stat().st_mtime
        for line in (run / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines():
            _read_line(record, line)
    for name in (f"{PORTABLE_NAME}/0.safetensors", PREVIOUS_NAME, STATE_NAME):
        if (run / name).exists():
            _read_state(record, name)
    return record


def _read_line(record: Record, line: str) -> None:
    try:
        values = parse_json(line)
        step = int(values.pop("step"))
        if "event" in values:
            record.events.append({"step": step, "event": str(values["event"]), "text": str(values["text"])})
            return
        numbers = {k: float(v) if isinstance(v, int | float) else math.nan for k, v in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return
    for name, value in numbers.items():
        points = record.series.setdefault(name, [])
        while points and points[-1][0] >= step:  # the run went back to an earlier state: those steps were done again
            points.pop()
        points.append((step, value))


def _read_state(record: Record, name: str) -> None:
    try:
        with safetensors.safe_open(record.run / name, framework="numpy") as file:
            record.saved_step = int(parse_json((file.metadata() or {})["counters"])["step"])
        record.states[name] = ""
    except (KeyError, TypeError, OverflowError):
        record.states[name] = "is not a training state"
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        record.states[name] = f"is not whole ({error})"


# ------------------------------------------------------------------------------------------------- one failure each


def _broken_steps(record: Record) -> Finding | None:
    skipped = max(record.values("skipped_steps"), default=0.0)
    texts = [event["text"] for event in record.events if event["event"] == "skipped"]
    returns = [event for event in record.events if event["event"] == "return"]
    if not skipped and not texts:
        return None
    evidence = f"{skipped:.0f} of {record.step} steps were skipped because values were not finite"
    if texts:
        evidence += f", in {len(texts)} logged intervals; the last: {texts[-1]}"
    if returns:
        evidence += f"; training returned to an earlier state {len(returns)} times"
    causes = [text.split(" ")[0] for text in texts]
    if "batch/peak" in causes:
        advice = "codec prepare check on the manifest: the audio itself has samples that are not numbers"
    elif causes and set(causes) <= {"gradient_norm/discriminators", "loss/discriminator"}:
        advice = "half of adversary.learning_rate"
    elif causes and set(causes) == {"gradient_norm/codec"}:
        advice = (
            "training.precision=float32; if that ends it, 16 bit is to blame; if not, half of training.learning_rate"
        )
    else:
        advice = "half of training.learning_rate, or a longer training.warmup_steps; then training.precision=float32"
    return Finding("NaN bursts", bool(returns) or skipped > 0.001 * record.step, evidence, advice)


def _collapse(record: Record) -> Finding | None:
    perplexity = record.values("codes/perplexity")
    now, best = record.now("codes/perplexity"), max(perplexity, default=0.0)
    if len(perplexity) < RECENT or now >= COLLAPSE * best:
        return None
    step = next(step for step, value in record.series["codes/perplexity"] if value == best)
    return Finding(
        "codebook collapse",
        True,
        f"perplexity of the recent codes is {now:.0f}, it was {best:.0f} at step {step}",
        f"{_less_commitment(record)} or a smaller training.learning_rate, from a state before the fall or anew",
    )


def _few_codes(record: Record) -> Finding | None:
    utilisation, now = record.now("codes/utilisation"), record.now("codes/perplexity")
    attainable = _attainable_perplexity(record)
    is_new = len(record.values("codes/perplexity")) < RECENT
    if is_new or not (utilisation > 0 and now < FEW_CODES * attainable):
        return None
    advice = _less_commitment(record)
    if not record.setting("training.init", ""):
        advice = (
            "a larger training.quantizer_start, so that latents have taken shape when the codebook is matched to them; "
            f"{advice}; a narrower latent (model.quantizer.codebook_dim)"
        )
        is_seanet = record.setting("model.encoder.kind", "") == "seanet"
        if is_seanet and not record.setting("training.standardize_encoder", False):
            advice = f"training.standardize_encoder=true, in a run from the start; {advice}"
    return Finding(
        "low perplexity",
        True,
        f"the codes are used as unevenly as if there were {now:.0f} of {attainable:.0f}, utilisation {utilisation:.0%}",
        advice,
    )


def _less_commitment(record: Record) -> str:
    weight = record.setting("training.commitment_weight", math.nan)  # null in runs of earlier versions
    return f"a training.commitment_weight below {weight:g}" if weight > 0 else "a smaller training.commitment_weight"


def _attainable_perplexity(record: Record) -> float:
    frames = (
        record.setting("data.batch_size", 0)
        * record.setting("data.window_seconds", 0)
        * record.setting("model.sample_rate", 0)
        / record.setting("model.decoder.hop_length", 1)
    )
    return attainable_perplexity(record.setting("model.quantizer.codebook_size", 0), frames)


def _discriminators_win(record: Record) -> Finding | None:
    lead = record.now("discriminators/lead")
    if not lead > WINNING:
        return None
    return Finding(
        "winning discriminators",
        True,
        f"their loss is only {1 - lead:.0%} of what it is when they tell nothing apart, so the codec learns little "
        "from them",
        "a smaller adversary.learning_rate, a later training.adversarial_start, smaller discriminators "
        "(adversary=small), or a larger training.feature_matching_weight",
    )


def _discriminators_lose(record: Record) -> Finding | None:
    lead = record.values("discriminators/lead")
    if len(lead) < 3 * RECENT or median(lead[len(lead) // 2 :]) > 0.02:
        return None
    return Finding(
        "losing discriminators",
        True,
        f"over the second half of their training they tell nothing apart (lead {median(lead[len(lead) // 2 :]):.3f})",
        "a larger adversary.learning_rate or training.adversarial_seconds, or larger discriminators (adversary=full)",
    )


def _no_quantizer(record: Record) -> Finding | None:
    start, steps = record.setting("training.quantizer_start", 0), record.setting("training.steps", 0)
    if record.setting("training.init", "") or not 0 < steps <= start:
        return None
    return Finding(
        "no quantizer",
        True,
        f"training.steps {steps} end before training.quantizer_start {start}, so codes of this model mean nothing",
        "more training.steps, or a smaller training.quantizer_start",
    )


def _divergence(record: Record) -> Finding | None:
    smooth = _smooth(record.values("loss/mel"))
    if len(smooth) < 2 * RECENT or smooth[-1] < 1.3 * min(smooth):
        return None
    return Finding(
        "diverging loss",
        True,
        f"the mel loss is {smooth[-1]:.3g} and was {min(smooth):.3g}",
        "half of training.learning_rate, from the model in `best` (training.init) or from the start; if it rose when "
        "the discriminators joined, a smaller training.adversarial_weight",
    )


def _spikes(record: Record) -> Finding | None:
    mel = record.values("loss/mel")
    smooth = _smooth(mel)
    spikes = sum(value > 1.5 * around for value, around in zip(mel[len(mel) - len(smooth) :], smooth, strict=True))
    if len(smooth) < 3 * RECENT or spikes < 0.05 * len(smooth):
        return None
    return Finding(
        "learning rate too high",
        True,
        f"the mel loss jumps: {spikes} of {len(smooth)} logged values are half as high again as those before them",
        "half of training.learning_rate, a longer training.warmup_steps, or larger batches",
    )


def _no_progress(record: Record) -> Finding | None:
    smooth = _smooth(record.values("loss/mel"))
    is_new = not record.setting("training.init", "")  # a trained model has little left to learn
    if not is_new or len(smooth) < 4 * RECENT or min(smooth) < 0.9 * smooth[0]:
        return None
    return Finding(
        "nothing is learned",
        True,
        f"the mel loss began at {smooth[0]:.3g} and was never better than {min(smooth):.3g}",
        "a tenth of training.learning_rate, then ten times as much; and listen to the reference clips in TensorBoard",
    )


def _plateau(record: Record) -> Finding | None:
    """Only while the learning rate is constant: the descent at the end is the remedy."""
    name = "validation/mel" if len(record.values("validation/mel")) >= 3 * RECENT else "loss/mel"
    values, rates = record.values(name), record.values("learning_rate")
    third = len(values) // 3
    if third < RECENT or rates[-1:] < [0.95 * max(rates, default=0.0)]:
        return None
    before, after = median(values[third : 2 * third]), median(values[2 * third :])
    if not 0.99 * before <= after < 1.3 * before:
        return None
    return Finding(
        "plateau",
        False,
        f"{name} went from {before:.3g} to {after:.3g} over the last third, at a constant learning rate",
        "training.steps close to the present step, so that the final descent of the learning rate begins; after that "
        "more data or a larger model. With discriminators a constant mel loss may hide better sound: listen",
    )


def _overfitting(record: Record) -> Finding | None:
    points = record.series.get("validation/mel", [])
    values = [value for _, value in points]
    if len(values) < 5 or not values[-1] > 1.03 * min(values):
        return None
    step = points[values.index(min(values))][0]
    if step > 0.7 * points[-1][0]:
        return None
    return Finding(
        "overfitting",
        True,
        f"validation/mel was best at step {step} ({min(values):.3g}) and is {values[-1]:.3g} now",
        "more or more varied data, fewer steps; the model in `best` is the one to take",
    )


def _no_validation(record: Record) -> Finding | None:
    if record.setting("data.validation", "") or not record.config:
        return None
    return Finding(
        "no validation",
        False,
        "data.validation is empty, so nothing tells whether the model serves speech it was not trained on",
        "data.validation=FOLDER with a few minutes of other speakers",
    )


def _short_windows(record: Record) -> Finding | None:
    seconds = record.setting("data.window_seconds", math.inf)
    if seconds >= 1.5:
        return None
    return Finding(
        "short windows",
        False,
        f"windows of {seconds:g} s; with 3 s a published ablation gains 0.36 PESQ over 1 s",
        "data.window_seconds=3 with a smaller data.batch_size",
    )


def _silent_audio(record: Record) -> Finding | None:
    peaks = record.values("batch/peak")
    if not peaks or max(peaks) > 0:
        return None
    return Finding(
        "silent audio",
        True,
        "every logged batch holds nothing but zeros",
        "codec prepare on the folder of data.train: it measures every file and leaves out silent ones",
    )


def _starving(record: Record) -> Finding | None:
    waiting = record.now("data/waiting")
    if not waiting > 0.1:
        return None
    return Finding(
        "starving loader",
        True,
        f"{waiting:.0%} of the time goes into waiting for audio",
        "data.cache on a local disk, or more memory, so that the cache of decoded audio stays in it",
    )


def _slower(record: Record) -> Finding | None:
    speeds = record.values("steps_per_second")
    if len(speeds) < 4 * RECENT or median(speeds[-RECENT:]) > 0.5 * median(speeds):
        return None
    return Finding(
        "slowing down",
        False,
        f"{median(speeds[-RECENT:]):.3g} steps/s of late, {median(speeds):.3g} before",
        "a look at what else uses this machine, its memory and its temperature",
    )


def _trouble_with_files(record: Record) -> Finding | None:
    events = [event for event in record.events if event["event"] in ("failure", "data")]
    if not events:
        return None
    return Finding(
        "files that could not be read or written",
        True,
        f"{len(events)} times, the last at step {events[-1]['step']}: {events[-1]['text']}",
        "room on the disk of the run, and a look at the disk of the data",
    )


def _trouble(record: Record) -> Finding | None:
    events = [event for event in record.events if event["event"] == "trouble"]
    if not events:
        return None
    return Finding(
        "trouble beside training",
        True,
        f"{len(events)} times, the last at step {events[-1]['step']}: {events[-1]['text']}",
        "what the sentence says; a model that cannot be validated can hardly be used",
    )


def _states(record: Record) -> Finding | None:
    damaged = [f"{name} {damage}" for name, damage in record.states.items() if damage]
    is_young = record.step < record.setting("training.save_every", 0)
    if not damaged and (record.states or is_young):
        return None
    if len(damaged) < len(record.states):
        advice = "the same command again: it goes on from the other state by itself"
    else:
        advice = "training.init with the model in `best` or `last`; the run itself cannot be gone on with"
    return Finding("damaged state", True, "; ".join(damaged) or "there is no state to go on from", advice)


def _silence(record: Record) -> Finding | None:
    steps, speed = record.setting("training.steps", 0), record.now("steps_per_second")
    expected = record.setting("training.log_every", 50) / speed if speed > 0 else math.inf
    if record.step >= steps or record.seconds_silent < max(1800, 20 * expected):
        return None
    return Finding(
        "no sign of life",
        False,
        f"the log ends at step {record.step} of {steps}, {record.seconds_silent / 3600:.1f} hours ago",
        "the same command again: it goes on where the last state was saved",
    )


def _smooth(values: list[float]) -> list[float]:
    """Running medians over the last `RECENT` values; the first of them ends at the first full stretch."""
    return [median(values[end - RECENT : end]) for end in range(RECENT, len(values) + 1)]


FAILURES: tuple[Callable[[Record], Finding | None], ...] = (
    _broken_steps,
    _collapse,
    _few_codes,
    _no_quantizer,
    _discriminators_win,
    _discriminators_lose,
    _divergence,
    _spikes,
    _no_progress,
    _plateau,
    _overfitting,
    _no_validation,
    _short_windows,
    _silent_audio,
    _starving,
    _slower,
    _trouble_with_files,
    _trouble,
    _states,
    _silence,
)
"""Every known failure, the worst first."""
