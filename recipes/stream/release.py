"""Turn finished runs into the model in the box: weights, discriminators, card, curves and spectrogram samples.

    python recipes/stream/release.py RUN ... --test ../shared/data/test --data recipes/stream/data.md --hardware "..."
    python recipes/stream/release.py ... --model runs/average                    # not the last run's own
    python recipes/stream/release.py ... --earlier-steps 7550 --earlier-hours 33.5    # those of the releases before
    python recipes/stream/release.py ... --dnsmos-weights ../shared/models/dnsmos     # how natural it sounds

Runs are named in the order in which they were made. The numbers on the card are read from them or measured here; what
it says of the data, the machine and the releases before are arguments. Its other words were found true of the model
that is in the box now, and are to be read again for another.
"""

import argparse
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import torch

import codec
from codec import audio
from codec.cli import exit_code, not_negative, whole_number
from codec.errors import ConfigError
from codec.evaluation.evaluate import Options, evaluate_model
from codec.evaluation.journal import JOURNAL_NAME
from codec.evaluation.metric import Settings
from codec.evaluation.utilisation import CodeCounter
from codec.model import catalogue
from codec.output import open_output, write_json, write_text
from codec.streaming import StreamEncoder
from codec.training.cache import AudioCache
from codec.training.curves import draw_curves
from codec.training.doctor import Record, read_run
from codec.training.monitor import spectrogram_pair
from codec.training.run_files import CONFIG_NAME

HERE = Path(__file__).parent
BOX = Path(codec.__file__).parent / "pretrained" / "stream"


def main() -> None:
    """Install the model and describe it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--model", type=Path, help="folder of the model that goes into the box; if not the last run's")
    parser.add_argument("--test", type=Path, required=True, help="folder of held-out speech")
    parser.add_argument("--test-name", default="../shared/data/test", help="how the card calls it")
    parser.add_argument(
        "--discriminators", type=Path, metavar="RUN", help="run whose discriminators go beside the weights"
    )
    parser.add_argument("--dnsmos-weights", type=Path, help="folder of DNSMOS, to score how natural it sounds")
    parser.add_argument(
        "--data", type=Path, required=True, help="text on what it was trained on, Markdown, for the card"
    )
    parser.add_argument("--hardware", required=True, help="what it was trained on, for the card")
    parser.add_argument("--earlier-steps", type=whole_number, default=0, help="steps of the releases before")
    parser.add_argument(
        "--earlier-adversarial-steps", type=whole_number, default=0, help="those of them with discriminators"
    )
    parser.add_argument("--earlier-hours", type=not_negative, default=0, help="of audio that they saw")
    arguments = parser.parse_args()

    # What is none is refused before anything is replaced.
    audio.find_sounds(arguments.test)
    records = [read_run(run) for run in arguments.runs]
    for record in records:
        if not record.config:
            raise ConfigError(f"{record.run}: its settings, {CONFIG_NAME}, are missing or damaged")
    # The card lies elsewhere than the text, whose links are from its own folder.
    text = arguments.data.read_text(encoding="utf-8", errors="replace")
    data = re.sub(r"\]\((?!\w+:)", "](../../../recipes/stream/", text)
    with replaced_as_a_whole(BOX, *(HERE / name for name in ("evaluation", "samples.png", "curves.png", "run.json"))):
        release(records, data, arguments)


@contextmanager
def replaced_as_a_whole(*places: Path) -> Iterator[None]:
    """Put folders and files back as they were if anything goes wrong before all is new."""
    with tempfile.TemporaryDirectory() as kept:
        copies = {place: Path(kept, str(number)) for number, place in enumerate(places)}
        for place, copy in copies.items():
            copy_to(copy, place)
        try:
            yield
        except BaseException:
            for place, copy in copies.items():
                copy_to(place, copy)
            raise


def copy_to(target: Path, source: Path) -> None:
    """Make a place what another one is: a folder, a file or nothing."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def release(records: list[Record], data: str, arguments: argparse.Namespace) -> None:
    """Replace the model, its scores, pictures and card."""
    curves = joined_curves(records)
    BOX.mkdir(parents=True, exist_ok=True)
    for name in (catalogue.CONFIG_NAME, catalogue.WEIGHTS_NAME):
        shutil.copyfile((arguments.model or arguments.runs[-1] / "last") / name, BOX / name)
    if arguments.discriminators:
        for name in (catalogue.DISCRIMINATORS_NAME, catalogue.DISCRIMINATORS_CONFIG_NAME):
            shutil.copyfile(arguments.discriminators / "last" / name, BOX / name)
    shutil.rmtree(HERE / "evaluation", ignore_errors=True)  # of the release before
    metrics = ("core", "dnsmos") if arguments.dnsmos_weights else ("core",)
    options = Options(metrics, Settings(dnsmos_weights=arguments.dnsmos_weights))
    summary = evaluate_model("stream", arguments.test, output=HERE / "evaluation", options=options).summary
    shutil.rmtree(HERE / "evaluation" / "estimates")
    shutil.rmtree(HERE / "evaluation" / "codes")
    (HERE / "evaluation" / JOURNAL_NAME).unlink()
    utilisation = use_of_codes(Path(records[-1].config["data"]["cache"]) / "train")
    draw_samples(arguments.test, HERE / "samples.png")
    draw_curves(curves, HERE / "curves.png", overwrite=True)
    save_settings(records, HERE / "run.json")
    write_text(BOX / catalogue.CARD_NAME, card(records, curves, summary, utilisation, data, arguments))


def save_settings(records: list[Record], path: Path) -> None:
    """Write the settings of the runs, but for where their files lay."""
    places = {"train", "validation", "cache", "run", "init"}
    kept = [
        {
            part: {name: value for name, value in settings.items() if name not in places}
            for part, settings in record.config.items()
        }
        for record in records
    ]
    write_json(path, kept)


def joined_curves(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """What all runs have logged, by name, steps counted from the first one's start."""
    series: dict[str, list[tuple[int, float]]] = {}
    before = 0
    for record in records:
        for name, points in record.series.items():
            series.setdefault(name, []).extend((before + step, value) for step, value in points)
        before += record.step
    return series


def use_of_codes(cache_folder: Path) -> dict[str, float]:
    """Utilisation and perplexity of the codes of the whole training set."""
    model, clips = codec.load("stream"), AudioCache(cache_folder)
    counter = CodeCounter(model.codebook_size)
    for index in range(len(clips)):
        encoder = StreamEncoder(model)
        wav = torch.from_numpy(clips.clip(index).astype(np.float32) / 32768)
        counter.add(torch.cat([encoder.push(wav), encoder.flush()]).numpy())
    return counter.statistics() | {"hours": clips.seconds / 3600}


def draw_samples(folder: Path, path: Path, count: int = 4) -> None:
    """Spectrograms of the first recordings of a folder, reference above estimate."""
    from matplotlib.image import imsave

    model, images = codec.load("stream"), []
    for file in audio.find_sounds(folder)[:count]:
        wav = torch.from_numpy(audio.read(file, model.sample_rate)[0])[None, :, : 3 * model.sample_rate]
        images.append(spectrogram_pair(wav[0, 0], model.decode(model.encode(wav))[0, 0, : wav.shape[-1]]))
    width = min(image.shape[-1] for image in images)
    grid = torch.cat([torch.nn.functional.pad(image[..., :width], (2, 2), value=1) for image in images], dim=-1)
    with open_output(path, overwrite=True) as stream:
        imsave(stream, grid.permute(1, 2, 0).numpy(), format="png")


def score_rows(summary: dict) -> list[str]:
    """A row of the card's table for each metric; a single file has no interval."""
    rows = []
    for column in summary["metrics"].values():
        if column["num"]:
            low, high, digits = column["low"], column["high"], column["digits"]
            interval = "" if low is None else f"{low:.{digits}f} .. {high:.{digits}f}"
            unit = f" ({column['unit']})" if column["unit"] else ""
            rows.append(f"| {column['label']}{unit} | {column['mean']:.{digits}f} | {interval} | {column['num']} |")
    return rows


def card(
    records: list[Record], curves: dict, summary: dict, utilisation: dict, data: str, arguments: argparse.Namespace
) -> str:
    """The model card, Markdown."""
    model = codec.load("stream")
    parameters = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    batches = [(record.config["data"]["batch_size"], record.config["data"]["window_seconds"]) for record in records]
    hours = arguments.earlier_hours + sum(
        record.step * size * seconds / 3600 for record, (size, seconds) in zip(records, batches, strict=True)
    )
    log_every = records[-1].config["training"]["log_every"]
    num_adversarial = len(curves.get("loss/adversarial", [])) * log_every
    runs = ", ".join(
        f"{record.step} of {size} windows of {seconds:g} s"
        for record, (size, seconds) in zip(records, batches, strict=True)
    )
    codes = summary["codes"]
    dnsmos = arguments.dnsmos_weights
    more = f" --metrics core,dnsmos --dnsmos-weights {dnsmos}" if dnsmos else ""
    return f"""# stream

The model in the box: speech at {model.sample_rate} Hz to {model.frame_rate:g} codes/s of {model.bits_per_code} bits,
{model.bitrate:g} kbit/s, causal and streaming. Encoder {parameters["encoder"]:.2f} M parameters, decoder
{parameters["decoder"]:.2f} M, SimVQ with K = {model.codebook_size} codes of {model.quantizer.codebook_dim} dimensions
for the error of a prediction from the last {model.quantizer.memory} codes, chosen by a beam search among
{model.quantizer.num_paths} sequences, {model.quantizer.delay} frames late. The weights are averages over training,
stored in 16 bits. Fingerprint `{model.fingerprint}`.

    codec encode talk.wav talk.codes
    codec decode talk.codes again.wav

**How good it is.** It was trained for hours on a CPU and minutes on a GPU, not for days on GPUs: the words come
through, but the sound is rough. WavTokenizer at the same rate reports PESQ 2.37 and STOI 0.914 on LibriTTS test-clean
([arXiv:2408.16532](https://arxiv.org/abs/2408.16532)).

## Scores

`codec evaluate --model stream --data {arguments.test_name}{more}`,
{summary["num_scored"]} of {summary["num_utterances"]} files, each whole, {summary["seconds"]:.0f} s, on
{date.today():%Y-%m-%d}; means with 95 % bootstrap intervals.

| metric | mean | 95 % | files |
| --- | --- | --- | --- |
{chr(10).join(score_rows(summary))}

Codes on these files: perplexity {codes["perplexity"]:.0f}, entropy {codes["entropy"]:.2f} of
{model.bits_per_code} bits, {100 * codes["utilisation"]:.1f} % of the codebook used. On {utilisation["hours"]:.1f} h of
the training set {100 * utilisation["utilisation"]:.1f} % are used, perplexity {utilisation["perplexity"]:.0f}.

## Training

- Commands: [recipes/stream](../../../recipes/stream/README.md), with the settings of
  [run.json](../../../recipes/stream/run.json).
- Data: {textwrap.indent(data, "  ").strip()}
- Steps: {arguments.earlier_steps} in earlier releases, then
  {runs};
  {hours:.0f} h of audio seen. Log-mel, loudness, disturbance, intelligibility, spectral convergence, pitch, commitment
  and usage losses; discriminators (period, scale, complex STFT) took part in {num_adversarial} of these steps and in
  {arguments.earlier_adversarial_steps} of the earlier ones. The trained discriminators are kept beside the weights in
  the repository, for fine-tuning, but are not in the wheel.
- Hardware: {arguments.hardware}.
- Curves: [recipes/stream](../../../recipes/stream/README.md).

## Limits

A code says what its past does not, so the same sound gets different codes after a different past, and few come back
when decoded sound is encoded again. Trained on read speech, one speaker at a time. Music, several voices at once
and heavy noise are outside what it has seen. Everything above about 11 kHz is a guess, since part of the training data
ends there.

Licence of the weights: MIT; the training data's licences ask for the credits above.
"""


if __name__ == "__main__":
    sys.exit(exit_code(main))
