"""Speed, memory and exactness of an imported model on real speech.

    python recipes/import/benchmark.py MODEL FOLDER [--threads 2] [--hours 0.5]

Prints one table per question. Times are those of the wall, of the fastest of some runs; every row is measured in a
process of its own. The sound files of FOLDER are joined, and repeated or cut to the length that a row needs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

import codec
from codec import audio
from codec.bitstream import Header
from codec.cli import exit_code, not_negative, positive
from codec.cores import num_cores
from codec.files import PRECISIONS
from codec.model.catalogue import describe
from codec.model.codec import Codec
from codec.streaming import StreamEncoder, WindowDecoder

RUNS = {10: 9, 60: 5, 300: 2}
"""Of each row, by the seconds of sound in it."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=positive, default=num_cores())
    parser.add_argument("--hours", type=not_negative, default=0.5, help="of audio for the long file; 0 leaves it out")
    parser.add_argument("--row", nargs=3, metavar=("VERB", "SECONDS", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.row:
        verb, seconds, precision = arguments.row
        print(json.dumps(row(arguments, verb, float(seconds), precision)))
        return
    describe(arguments.model)  # what is wrong is said here, and not by a process for each row
    speech(arguments.folder)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.model}\n")
    print("| run | float32: s, peak MiB | bf16: s, peak MiB |\n| --- | --- | --- |")
    runs = [(verb, float(seconds)) for verb in ("encode", "decode") for seconds in RUNS]
    if arguments.hours:
        runs += [("encode-file", 3600 * arguments.hours), ("decode-file", 3600 * arguments.hours)]
    for verb, seconds in runs:
        cells = []
        for precision in PRECISIONS:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", verb, str(seconds), precision]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            cells.append(f"{result['seconds']:.3g}, {result['peak']:.0f}")
        print(f"| {verb} {seconds:g} s | {' | '.join(cells)} |", flush=True)
    compare(codec.load(arguments.model), speech(arguments.folder))


def row(arguments: argparse.Namespace, verb: str, seconds: float, precision: str) -> dict[str, float]:
    """Seconds of the fastest run, and the peak memory of this process in MiB."""
    if verb.endswith("-file"):
        return file_row(arguments, verb, seconds, precision)
    model, wav = codec.load(arguments.model), speech(arguments.folder, seconds)
    codes = torch.randint(model.codebook_size, (1, model.num_frames(wav.shape[-1])))
    times = []
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(RUNS[round(seconds)]):
            start = time.perf_counter()
            if verb == "encode":
                model.encode(wav)
            else:
                model.decode(codes)
            times.append(time.perf_counter() - start)
    return {"seconds": min(times), "peak": peak()}


def file_row(arguments: argparse.Namespace, verb: str, seconds: float, precision: str) -> dict[str, float]:
    """The same for files, from loading the model to the last byte."""
    model = describe(arguments.model)
    with tempfile.TemporaryDirectory() as temporary:
        sound, codes = Path(temporary) / "long.wav", Path(temporary) / "long.codes"
        if verb == "encode-file":
            minute = speech(arguments.folder, 60)[0, 0].numpy()
            with soundfile.SoundFile(sound, "w", 24000, 1) as target:
                for _ in range(max(round(seconds / 60), 1)):
                    target.write(minute)
        else:
            header = Header(model.sample_rate, model.hop_length, model.codebook_size, model.fingerprint)
            random = np.random.default_rng(0).integers(model.codebook_size, size=round(seconds * model.frame_rate))
            codec.write_codes(codes, random, header=header)
        start = time.perf_counter()
        if verb == "encode-file":
            codec.encode_file(sound, codes, model=arguments.model, precision=precision)
        else:
            codec.decode_file(codes, sound, model=arguments.model, precision=precision)
        return {"seconds": time.perf_counter() - start, "peak": peak()}


def compare(model: Codec, wav: torch.Tensor) -> None:
    """How much streams, windows and bf16 change."""
    codes = model.encode(wav)
    sound = model.decode(codes)[0, 0]
    encoder = StreamEncoder(model)
    pieces = torch.cat([*map(encoder.push, wav[0, 0].split(24007)), encoder.flush()])
    decoder = WindowDecoder(model)
    windows = torch.cat([decoder.push(codes[0]), decoder.flush()])
    with torch.autocast("cpu", torch.bfloat16):
        rounded_codes, rounded = model.encode(wav)[0], model.decode(codes)[0, 0]
    print(
        f"\n{wav.shape[-1] / model.sample_rate:.0f} s, {codes.shape[1]} codes, {len(codes.unique())} different ones\n"
    )
    print("| against one pass in float32 | codes that move | sound from the same codes |\n| --- | --- | --- |")
    for name, other_codes, other in (("in pieces, in windows", pieces, windows), ("bf16", rounded_codes, rounded)):
        moved = (other_codes != codes[0]).float().mean().item()
        print(f"| {name} | {100 * moved:.2f} % | {snr(sound, other):.1f} dB |")


def speech(folder: Path, seconds: float | None = None) -> torch.Tensor:
    """(1, 1, T) at 24 kHz: the folder's files in a row, repeated or cut to a length."""
    paths = audio.find_sounds(folder)
    wav = torch.cat([torch.from_numpy(audio.read(path, 24000)[0][0]) for path in paths])
    length = len(wav) if seconds is None else round(seconds * 24000)
    return wav.repeat(-(-length // len(wav)))[None, None, :length]


def snr(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """dB."""
    noise = (reference - estimate).double().square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise))


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(exit_code(main))
