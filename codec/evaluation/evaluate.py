"""An evaluation from beginning to end: files or a model in, a table, a summary and a report out."""

import os
import platform
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median_low
from typing import Any

from codec import __version__, audio
from codec.cores import num_cores
from codec.errors import AudioError, CodecError, ConfigError, sentence
from codec.evaluation import reconstruction, resampling, scoring
from codec.evaluation.delay import NOTICEABLE
from codec.evaluation.journal import JOURNAL_NAME, Journal
from codec.evaluation.metric import Settings
from codec.evaluation.pairs import (
    FOLDER_TOLERANCE,
    Item,
    Problem,
    Reference,
    choose_some,
    find_references,
    pair_folders,
)
from codec.evaluation.reconstruction import Reconstruction
from codec.evaluation.registry import METRICS, MODEL_COLUMNS, choose
from codec.evaluation.scoring import Row
from codec.evaluation.statistics import FEWEST, NUM_RESAMPLES, SEED, summarise
from codec.evaluation.utilisation import CodeCounter
from codec.limits import refining_steps
from codec.manifest import is_unknown
from codec.model.catalogue import ModelInfo, describe
from codec.output import require_outside
from codec.progress import Progress
from codec.workers import Died, work

PACKAGES = (
    *("numpy", "torch", "pesq", "pystoi", "scipy", "librosa"),
    *("torchaudio", "torchcrepe", "transformers", "onnxruntime"),
)


@dataclass(frozen=True)
class Options:
    """How to evaluate."""

    metrics: tuple[str, ...] = ("core",)
    """Names of metrics or groups."""
    settings: Settings = field(default_factory=Settings)
    jobs: int | None = None
    """Processes; None: one per core. 0 does everything in this process, without protection from crashes."""
    hop_length: int | None = None
    """Samples by which lengths may differ; None: the model's hop length, for folders 25 ms."""
    limit: int | None = None
    """Score at most so many utterances, spread over the data."""
    delay: int = 0
    """Samples by which the codec is late, removed from the beginning of every estimate."""
    peak: float | None = None
    """Samples of a model's output beyond this are cut to it; None: full scale, as `codec decode` does."""
    refine: int = 0
    """Steps in which a model's codes are refined, see `codec.refinement`."""
    with_audio: bool = True
    """Whether the page of the report lets the best and worst utterances be heard."""

    def __post_init__(self) -> None:
        for name, least in (("jobs", 0), ("hop_length", 0), ("limit", 1), ("delay", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if self.peak is not None and not self.peak > 0:
            raise ConfigError(f"peak must be above 0, got {self.peak}")
        refining_steps(self.refine)


@dataclass(frozen=True)
class Plan:
    """Which metrics are computed, and why the others are not."""

    names: list[str]
    missing: list[dict[str, str]]  # metric, reason, and the command that would compute it


def make_plan(names: Sequence[str], settings: Settings) -> Plan:
    """Find out which of the metrics can be computed here; weights are fetched where that is allowed, and each is made.

    Raises:
        ConfigError: none of them can.
    """
    plan = Plan([], [])
    for name, metric in METRICS.items():
        command = (metric.obstacle(settings) or ("", f"--metrics {name}"))[1]
        if name not in names:
            plan.missing.append({"metric": name, "reason": "not asked for", "command": command})
            continue
        try:
            metric.provide(settings)
            obstacle = metric.obstacle(settings)
            if obstacle is None:
                metric(settings)
        except Exception as error:  # packages that do not fit this machine raise anything
            kind = "" if isinstance(error, CodecError) else f"failed: {type(error).__name__}: "
            # Not with the weights that were named, but with others it would go.
            obstacle = f"{kind}{sentence(error)}", (metric.obstacle(Settings()) or ("", command))[1]
        if obstacle is None:
            plan.names.append(name)
        else:
            plan.missing.append({"metric": name, "reason": obstacle[0], "command": obstacle[1]})
    if not plan.names:
        reasons = [f"{it['metric']}: {it['reason']}; {it['command']}" for it in plan.missing if it["metric"] in names]
        raise ConfigError(f"nothing could be scored: {'; '.join(reasons)}")
    return plan


@dataclass
class Evaluation:
    """What came out."""

    rows: list[Row]  # by id; only those with scores
    problems: list[Problem]  # by id
    summary: dict[str, Any]
    items: dict[str, Item]
    reconstructions: dict[str, Reconstruction]

    def values(self, column: str) -> dict[str, float]:
        """Id -> value of one column, of the utterances that have it."""
        if column in {known.name for known in MODEL_COLUMNS}:
            scored = {row.id for row in self.rows}
            return {id: getattr(made, column) for id, made in self.reconstructions.items() if id in scored}
        return {row.id: scores[column] for row in self.rows for scores in row.scores.values() if column in scores}


def evaluate_folders(
    reference: str | os.PathLike[str],
    estimate: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score sound files against those they were made from.

    Args:
        reference: folder or manifest of originals.
        estimate: folder of what a codec made of them, with the same relative paths (any suffix) or the same names.
        output: folder for the table, the summary and the report; an evaluation begun there goes on. None: nowhere.
        options: see `Options`.
        progress: see `Progress`; of seconds of sound.

    Raises:
        CodecError: a folder cannot be used, an option is wrong, or nothing could be scored (after everything was
            written to `output`; the message says why).
    """
    options = options or Options()
    if options.refine:
        raise ConfigError("sound files of two folders have no codes to refine; leave Options.refine at 0")
    names = choose(options.metrics)
    options = _on_a_device(options, any("torch" in METRICS[name].packages for name in names))
    items, problems = pair_folders(Path(reference), Path(estimate))
    plan = make_plan(names, options.settings)
    chosen = choose_some(items, options.limit)
    is_subset = len(chosen) < len(items)
    with Journal(_journal_path(output)) as journal:
        rows, more = _score(chosen, plan, options, options.hop_length, journal, progress)
    problems = more if is_subset else problems + more
    about = {
        "reference": os.fspath(reference),
        "estimate": os.fspath(estimate),
        "command": _command([os.fspath(reference), os.fspath(estimate)], options),
        "is_subset": is_subset,
    }
    tolerance = f"{FOLDER_TOLERANCE} s" if options.hop_length is None else f"{options.hop_length} samples"
    evaluation = _conclude(chosen, rows, problems, plan, options, tolerance, about)
    return _deliver(evaluation, output, options)


def evaluate_model(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode and decode a data set with a model, then score what was written.

    Args:
        model: name of a boxed model, a model directory, or a Hub id.
        data: folder of sound files, or a manifest.
        output: as for `evaluate_folders`; the decoded files and the codes go there too. None: nowhere.
        options: see `Options`.
        progress: see `Progress`; of seconds of sound.

    Raises:
        CodecError: as for `evaluate_folders`, or the model cannot be used.
    """
    from codec.model.codec import CodecConfig, require_refinable

    options = _on_a_device(options or Options(), needs_torch=True)
    plan = make_plan(choose(options.metrics), options.settings)
    found = describe(os.fspath(model))
    if options.refine:
        require_refinable(CodecConfig.from_dict(found.config))
    references, problems = find_references(Path(data))
    if output is not None:
        require_outside(output, data)
        _require_elsewhere(references, output)
    chosen = choose_some(list(references), options.limit)
    is_subset = len(chosen) < len(references)
    with ExitStack() as resources:
        if output is None:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="codec-evaluation-")))
        else:
            folder = Path(output)
        journal = resources.enter_context(Journal(_journal_path(output)))
        tasks = [
            reconstruction.Task(
                id=id,
                reference=references[id].path,
                estimate=folder / "estimates" / f"{id}.wav",
                codes=folder / "codes" / f"{id}.codes",
                peak=options.peak,
                known=journal.get("reconstruction", id, Reconstruction),
            )
            for id in chosen
        ]
        made, more = _reconstruct(tasks, os.fspath(model), options, journal, progress)
        problems = more if is_subset else problems + more
        items = [
            Item(task.id, task.reference, task.estimate, references[task.id].speaker)
            for task in tasks
            if task.id in made
        ]
        tolerance = options.hop_length if options.hop_length is not None else found.hop_length
        rows, more = _score(items, plan, options, tolerance, journal, progress)
        problems += more
        about = {
            "model": found.name,
            "fingerprint": found.fingerprint,
            "reference": os.fspath(data),
            "command": _command(["--model", os.fspath(model), "--data", os.fspath(data)], options),
            "is_subset": is_subset,
            "codes": _code_statistics(tasks, made, found),
            "speed": _speed(made, options),
        }
        evaluation = _conclude(items, rows, problems, plan, options, f"{tolerance} samples", about, made)
        return _deliver(evaluation, output, options)


# ------------------------------------------------------------------------------------------------------------- steps


def _on_a_device(options: Options, needs_torch: bool) -> Options:
    """With the device that "auto" means here; torch is not imported where nothing needs it."""
    device = "cpu"
    if needs_torch:
        from codec.model.weights import choose_device

        device = str(choose_device(options.settings.device))
    return replace(options, settings=replace(options.settings, device=device))


def _require_elsewhere(references: dict[str, Reference], output: str | os.PathLike[str]) -> None:
    """Refuse to encode the estimates of an earlier run into their own folder, where they would be overwritten."""
    folder = os.path.realpath(output)
    for reference in references.values():
        if Path(os.path.realpath(reference.path)).is_relative_to(folder):
            raise ConfigError(f"{reference.path}: lies within {output}; name another folder for the results")


def _reconstruct(
    tasks: list[reconstruction.Task], model: str, options: Options, journal: Journal, progress: Progress | None
) -> tuple[dict[str, Reconstruction], list[Problem]]:
    # One process keeps a GPU busy, several would each load the model.
    jobs = _jobs(options) if options.settings.device == "cpu" else 0
    advance = _Advance("encoding and decoding", {task.id: task.reference for task in tasks}, progress)
    made, problems = {}, []
    arguments = (model, options.settings.device, options.refine)
    for number, result in work(reconstruction.prepare, arguments, tasks, jobs):
        id = tasks[number].id
        if isinstance(result, Died):
            problems.append(Problem(id, "", str(result)))
        elif result.problem:
            problems.append(Problem(id, "", result.problem))
        else:
            made[id] = result
            if result != tasks[number].known:
                journal.append("reconstruction", result)
        advance(id)
    return dict(sorted(made.items())), problems


def _score(
    items: list[Item],
    plan: Plan,
    options: Options,
    tolerance: float | None,
    journal: Journal,
    progress: Progress | None,
) -> tuple[list[Row], list[Problem]]:
    identities = {METRICS[name].identity(options.settings): name for name in plan.names}
    items = sorted(items, key=lambda item: -_size(item.reference))  # the longest first, so that all end together
    tasks = [scoring.Task(item, tolerance, options.delay, journal.get("scores", item.id, Row)) for item in items]
    advance = _Advance("scoring", {item.id: item.reference for item in items}, progress)
    rows, problems = [], []
    # What there was to fetch is here by now.
    arguments = (plan.names, replace(options.settings, allow_download=False))
    for number, row in work(scoring.prepare, arguments, tasks, _jobs(options)):
        id = items[number].id
        if isinstance(row, Died):
            problems.append(Problem(id, "", str(row)))
        elif row.problem:
            problems.append(Problem(id, "", row.problem))
        else:
            if row != tasks[number].known:
                journal.append("scores", row)
            row.scores = {identity: row.scores[identity] for identity in identities if identity in row.scores}
            rows.append(row)
            problems += [
                Problem(id, name, row.undefined[identity])
                for identity, name in identities.items()
                if identity in row.undefined
            ]
        advance(id)
    return sorted(rows, key=lambda row: row.id), problems


def _conclude(
    items: list[Item],
    rows: list[Row],
    problems: list[Problem],
    plan: Plan,
    options: Options,
    tolerance: str,
    about: dict[str, Any],
    made: dict[str, Reconstruction] | None = None,
) -> Evaluation:
    problems = sorted(problems, key=lambda problem: (problem.id, problem.metric))
    evaluation = Evaluation(rows, problems, {}, {item.id: item for item in items}, made or {})
    seconds = {row.id: row.seconds for row in rows}
    metrics: dict[str, dict[str, Any]] = {}
    columns = [(name, column) for name in plan.names for column in METRICS[name].columns]
    for name, column in columns + [("", column) for column in MODEL_COLUMNS if made]:
        values = evaluation.values(column.name)
        weights = None
        if column.weight:
            weight_of = evaluation.values(column.weight)
            values = {id: value for id, value in values.items() if weight_of[id] > 0}
            weights = [weight_of[id] for id in values]
        metrics[column.name] = {
            **{key: value for key, value in asdict(column).items() if key != "name"},
            "identity": METRICS[name].identity(options.settings) if name else "",
            "num_undefined": sum(bool(name) and problem.metric == name for problem in problems),
            **summarise(
                list(values.values()),
                [seconds[id] for id in values],
                weights,
                [evaluation.items[id].speaker for id in values],
            ),
        }
    scored = {row.id for row in rows if row.scores}
    excluded = {problem.id for problem in problems} - scored
    evaluation.summary = {
        "format": 1,
        **about,
        "num_utterances": len(scored | excluded),
        "num_scored": len(scored),
        "num_excluded": len(excluded),
        "num_undefined": sum(problem.id in scored for problem in problems),
        "num_speakers": len({speaker for id in scored if not is_unknown(speaker := evaluation.items[id].speaker)}),
        "seconds": sum(seconds.values()),
        "metrics": metrics,
        "not_computed": _not_computed(plan, "codes" in about),
        "problems": [
            {"id": problem.id, "metric": problem.metric or "all", "reason": problem.reason} for problem in problems
        ],
        "lengths": _lengths(rows),
        "delay": _delay(rows),
        "conditions": _conditions(rows, plan, options, tolerance),
    }
    return evaluation


def _deliver(evaluation: Evaluation, output: str | os.PathLike[str] | None, options: Options) -> Evaluation:
    from codec.evaluation.report import write_report

    if output is not None:
        write_report(evaluation, Path(output), with_audio=options.with_audio)
    if not evaluation.summary["num_scored"]:
        first, *rest = evaluation.problems
        more = f" (and {len(rest)} more)" if rest else ""
        raise AudioError(f"nothing could be scored: {first.id}: {first.reason}{more}")
    return evaluation


# ------------------------------------------------------------------------------------------------------------- facts


def _code_statistics(
    tasks: list[reconstruction.Task], made: dict[str, Reconstruction], model: ModelInfo
) -> dict[str, Any]:
    from codec.bitstream import read_codes

    counter = CodeCounter(model.codebook_size)
    for task in tasks:
        if task.id in made:
            counter.add(read_codes(task.codes).codes)
    statistics = counter.statistics() | {"frame_rate": model.frame_rate}
    seconds = sum(result.seconds for result in made.values())
    if seconds:
        statistics["nominal_bitrate"] = model.bitrate
        for name in ("bitrate", "payload_bitrate"):
            statistics[name] = sum(getattr(result, name) * result.seconds for result in made.values()) / seconds
        statistics["entropy_bitrate"] = statistics["entropy"] * model.frame_rate / 1000
        statistics["num_saturated"] = sum(result.num_saturated for result in made.values())
    return statistics


def _speed(made: dict[str, Reconstruction], options: Options) -> dict[str, Any]:
    """Real-time factors: seconds of work, with files read and written, for a second of sound."""
    seconds = sum(result.seconds for result in made.values())
    if not seconds:
        return {}
    return {
        "encode_rtf": sum(result.encode_seconds for result in made.values()) / seconds,
        "decode_rtf": sum(result.decode_seconds for result in made.values()) / seconds,
        "device": options.settings.device,
        "processes": min(_jobs(options), len(made)) if options.settings.device == "cpu" else 1,
        "processor": platform.processor() or platform.machine(),
        "cores": num_cores(),
    }


def _not_computed(plan: Plan, has_codes: bool) -> list[dict[str, str]]:
    missing = list(plan.missing)
    if not has_codes:
        for name in ("utilisation", "perplexity", "entropy", "bitrate", "reencoding", "real-time factors"):
            command = "codec evaluate --model MODEL --data REFERENCE"
            missing.append({"metric": name, "reason": "needs the codec, not only its output", "command": command})
    return missing


def _lengths(rows: list[Row]) -> dict[str, Any]:
    surpluses = [row.surplus for row in rows if row.surplus]
    return {"num_different": len(surpluses), "largest_difference": max(surpluses, key=abs, default=0)}


def _delay(rows: list[Row]) -> dict[str, Any]:
    """How late the estimates are, as far as their waveforms tell."""
    found = [row.delay for row in rows if row.delay is not None]
    if not found:
        return {"num_measured": 0, "num_agreeing": 0}
    median = median_low(found)
    agreeing = sum(abs(delay - median) <= NOTICEABLE for delay in found)
    return {
        "num_measured": len(found),
        "num_agreeing": agreeing,
        "median": median,
        "min": min(found),
        "max": max(found),
    }


def _command(subject: list[str], options: Options) -> str:
    """What gives the same scores again."""
    settings = options.settings
    chosen = {
        "--metrics": None if options.metrics == Options.metrics else ",".join(options.metrics),
        "--utmos-weights": settings.utmos_weights,
        "--dnsmos-weights": settings.dnsmos_weights,
        "--asr-model": settings.asr_model,
        "--speaker-model": settings.speaker_model,
        "--limit": options.limit,
        "--hop-length": options.hop_length,
        "--delay": options.delay or None,
        "--refine": options.refine or None,
    }
    given = [text for flag, value in chosen.items() if value is not None for text in (flag, str(value))]
    return shlex.join(["codec", "evaluate", *subject, *given])


def _conditions(rows: list[Row], plan: Plan, options: Options, tolerance: str) -> dict[str, Any]:
    versions = {"codec": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "sample_rates": sorted({row.sample_rate for row in rows}),
        "resampler": resampling.DESCRIPTION,
        "intervals": f"95 %, bootstrap over speakers, or over files where fewer than {FEWEST} speakers are known; "
        f"expanded percentiles, {NUM_RESAMPLES} resamples, seed {SEED}",
        "delay_removed": options.delay,
        "refining_steps": options.refine,
        "device": options.settings.device,
        "weights": {name: found for name in plan.names if (found := METRICS[name].weights(options.settings))},
        "versions": versions,
        "length_tolerance": tolerance,
    }


def _jobs(options: Options) -> int:
    return num_cores() if options.jobs is None else options.jobs


def _journal_path(output: str | os.PathLike[str] | None) -> Path | None:
    if output is None:
        return None
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the results")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL_NAME).exists():
        raise ConfigError(f"{folder}: holds other things; name a new folder for the results, or that of an earlier run")
    return folder / JOURNAL_NAME


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Advance:
    """Turns ids that are done into seconds of sound done."""

    def __init__(self, what: str, paths: dict[str, Path], progress: Progress | None):
        self._what, self._progress, self._done, self._total = what, progress, 0.0, 0.0
        self._seconds: dict[str, float] = {}
        if progress is not None:
            self._seconds = {id: _seconds(path) for id, path in paths.items()}
            self._total = sum(self._seconds.values())
            progress(what, 0.0, self._total)

    def __call__(self, id: str) -> None:
        if self._progress is not None:
            self._done += self._seconds[id]
            self._progress(self._what, self._done, self._total)


def _seconds(path: Path) -> float:
    try:
        info = audio.info(path)
    except CodecError:
        return 0.0
    return (info.num_samples or 0) / info.sample_rate
