"""Speed, latency and memory of a streaming model, beside the reference architecture in the same run.

    python recipes/stream/benchmark.py [--model stream] [--threads 2] [--hours 1] [--refine 8]

Prints a line for each result. Times are medians of runs that alternate between the two models, so that a busy machine
slows both. The reference is `wavtokenizer-75` with random weights: speed does not depend on them.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

import codec
from codec.cli import exit_code, not_negative, positive, whole_number
from codec.cores import num_cores
from codec.model.catalogue import describe
from codec.model.codec import Codec, CodecConfig
from codec.model.quantizer import VQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.refinement import RefiningEncoder
from codec.streaming import StreamDecoder, StreamEncoder

REFERENCE = CodecConfig(
    encoder=SEANetEncoderConfig(is_causal=False, has_weight_norm=False),
    quantizer=VQConfig(),
    decoder=VocosDecoderConfig(),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stream")
    parser.add_argument("--threads", type=positive, default=num_cores())
    parser.add_argument("--seconds", type=not_negative, default=60.0, help="of audio for the speed comparison")
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument(
        "--hours", type=not_negative, default=1.0, help="of audio for measuring memory; 0 leaves it out"
    )
    parser.add_argument(
        "--refine", type=whole_number, default=8, metavar="STEPS", help="for which to measure speed; 0 leaves it out"
    )
    parser.add_argument("--measure-memory", nargs=2, metavar=("VERB", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        return measure_in_this_process(*arguments.measure_memory, arguments.model)
    describe(arguments.model)  # what is wrong is said here, and not by a process that measures memory
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {num_cores()} cores, float32")
    if arguments.hours:  # first: on Linux a process begins with the peak of the one that started it
        print_memory(arguments.model, arguments.hours)
    compare_speed(arguments.model, arguments.seconds, arguments.runs)
    print_operations(arguments.model)
    if arguments.refine:
        print_refinement(arguments.model, arguments.refine)
    print_latency(arguments.model)


def compare_speed(model: str, seconds: float, runs: int) -> None:
    """Encode and decode the same noise with both models, in turns."""
    ours, reference = codec.load(model), Codec(REFERENCE).eval()
    wav = 0.1 * torch.randn(1, 1, round(seconds * ours.sample_rate), generator=torch.Generator().manual_seed(0))
    codes = {"ours": ours.encode(wav), "reference": reference.encode(wav)}

    def stream_encode() -> None:
        encoder = StreamEncoder(ours)
        encoder.push(wav[0, 0])
        encoder.flush()

    jobs: dict[tuple[str, str], Callable[[], object]] = {
        ("encode", "ours"): stream_encode,
        ("encode", "reference"): lambda: reference.encode(wav),
        ("decode", "ours"): lambda: StreamDecoder(ours).push(codes["ours"][0]),
        ("decode", "reference"): lambda: reference.decode(codes["reference"]),
    }
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(runs):
        for job, run in jobs.items():
            started = time.perf_counter()
            run()
            times[job].append(time.perf_counter() - started)
    for verb in ("encode", "decode"):
        mine, theirs = median(times[verb, "ours"]), median(times[verb, "reference"])
        print(
            f"{verb} {seconds:.0f} s: {model} {mine:.3f} s ({seconds / mine:.0f} x real time), "
            f"wavtokenizer-75 {theirs:.3f} s, ratio {theirs / mine:.1f}"
        )


def print_operations(model: str, seconds: int = 10) -> None:
    """Parameters, and operations for a second of sound: a multiplication and an addition are two."""
    for name, network in ((model, codec.load(model)), ("wavtokenizer-75", Codec(REFERENCE).eval())):
        signal, found = torch.zeros(1, 1, seconds * network.sample_rate), []
        for part in (network.encoder, network.decoder):
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                signal = part(signal)
            millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
            operations = counter.get_total_flops() / seconds / 1e9
            found.append(f"{millions:.1f} M parameters, {operations:.2f} G operations a second")
        print(
            f"{name}: encoder {found[0]}; decoder {found[1]}; without the search for codes and LSTMs, "
            f"in {seconds} s of sound"
        )


def print_refinement(model: str, steps: int, seconds: float = 20.0) -> None:
    """Speed of encoding when codes are refined."""
    encoder = RefiningEncoder(codec.load(model), steps)
    wav = 0.1 * torch.randn(round(seconds * encoder.codec.sample_rate), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    encoder.push(wav)
    encoder.flush()
    took = time.perf_counter() - started
    print(f"encode {seconds:.0f} s, refined in {steps} steps: {took:.1f} s ({seconds / took:.2f} x real time)")


def print_latency(model: str) -> None:
    """Time from one code to its sound, and from one hop of sound to its code, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = codec.load(model)
    decoder, encoder = StreamDecoder(loaded), StreamEncoder(loaded)
    first, decoding, encoding = [], [], []
    for number in range(100):
        started = time.perf_counter()
        StreamDecoder(loaded).push(torch.tensor([number]))
        first.append(time.perf_counter() - started)
        started = time.perf_counter()
        decoder.push(torch.tensor([number]))
        decoding.append(time.perf_counter() - started)
        started = time.perf_counter()
        encoder.push(torch.randn(loaded.hop_length) * 0.1)
        encoding.append(time.perf_counter() - started)
    by_four = time_of_push(StreamDecoder(loaded), torch.zeros(1, 4, dtype=torch.int64)) / 4
    by_many = time_of_push(StreamDecoder(loaded), torch.zeros(32, 1, dtype=torch.int64)) / 32
    hop_of_many = time_of_push(StreamEncoder(loaded), 0.1 * torch.randn(32, loaded.hop_length)) / 32
    torch.set_num_threads(threads)
    hop = 1000 * loaded.hop_length / loaded.sample_rate
    lookahead, delay = 1000 * loaded.encoder.lookahead_samples / loaded.sample_rate, loaded.quantizer.delay * hop
    print(
        f"one thread, medians: first sound after one code {1000 * median(first):.1f} ms, "
        f"a further code {1000 * median(decoding):.1f} ms, each of four at a time {1000 * by_four:.1f} ms, "
        f"each of 32 streams that go forward together {1000 * by_many:.2f} ms, "
        f"a hop to its code {1000 * median(encoding):.1f} ms (a hop is {hop:.1f} ms), "
        f"each of 32 streams that go forward together {1000 * hop_of_many:.2f} ms; "
        f"a code waits for {lookahead:.0f} ms of lookahead and {delay:.0f} ms of delay, its sound for nothing"
    )


def time_of_push(stream: StreamDecoder | StreamEncoder, piece: torch.Tensor) -> float:
    """Median seconds that a stream takes for a piece of all its signals."""
    times = []
    for _ in range(100):
        started = time.perf_counter()
        stream.push(piece)
        times.append(time.perf_counter() - started)
    return median(times)


def print_memory(model: str, hours: float) -> None:
    """Peak memory and time of a long file and of a tenth of it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.1, 1.0):
            path = Path(folder) / f"{share}.wav"
            write_noise(path, hours * share)
            for verb in ("encode", "decode"):
                command = [sys.executable, __file__, "--model", model, "--measure-memory", verb, str(path)]
                result = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{hours * share:.2f} h: {result.stdout}", end="")


def write_noise(path: Path, hours: float, sample_rate: int = 24000) -> None:
    """Noise in pieces, so that this process stays small."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", sample_rate, 1) as sound:
        for _ in range(max(round(hours * 360), 1)):
            sound.write(0.1 * rng.standard_normal(10 * sample_rate).astype(np.float32))


def measure_in_this_process(verb: str, file: str, model: str) -> None:
    """Run one conversion and print its time and the peak memory of this process."""
    path = Path(file)
    started = time.perf_counter()
    if verb == "encode":
        codec.encode_file(path, path.with_suffix(".codes"), model=model)
    else:
        codec.decode_file(path.with_suffix(".codes"), path.with_suffix(".flac"), model=model)
    elapsed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{verb} {elapsed:.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    sys.exit(exit_code(main))
