"""Do codes depend on how the sound is fed? Counts the frames, and files, that differ from those of the whole file.

    python recipes/stream/invariance.py FOLDER [--model stream]

Compared with the whole file, all in float32: streams of several chunk sizes, and batches padded to the longest of eight
files. Float32 rounds otherwise where fewer frames are computed at once, which decides between two sequences of codes
that are equally near; from there on a file has other codes.

Then what does change codes: sound or arithmetic that is not quite the same. As a code says what those before it do not,
one that is another makes those behind it others too.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

import codec
from codec import audio
from codec.cli import exit_code
from codec.model.codec import Codec
from codec.streaming import StreamEncoder

CHUNKS = {"one hop": 320, "10 ms": 240, "1000 samples": 1000, "1 s": 24000, "10 s": 240000}
BATCH_SIZE = 8


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="stream")
    arguments = parser.parse_args()
    model = codec.load(arguments.model)
    sounds = audio.find_sounds(arguments.folder)
    wavs = [torch.from_numpy(audio.read(path, model.sample_rate)[0][0]) for path in sounds]
    whole = [model.encode(wav[None, None])[0] for wav in wavs]
    print(f"{len(wavs)} files, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, size in CHUNKS.items():
        report(name, whole, [stream(model, wav, size) for wav in wavs])
    report(f"padded batches of {BATCH_SIZE}", whole, in_batches(model, wavs))
    with torch.autocast("cpu", torch.bfloat16):
        in_16_bit = [model.encode(wav[None, None])[0] for wav in wavs]
    softer = [model.encode(0.999 * wav[None, None])[0] for wav in wavs]
    silence = torch.zeros(model.hop_length)
    later = [model.encode(torch.cat([silence, wav])[None, None])[0, 1:] for wav in wavs]
    for name, other in (("bf16", in_16_bit), ("gain of 0.999", softer), ("a frame of silence before", later)):
        report(name, whole, other)


def stream(model: Codec, wav: Tensor, size: int) -> Tensor:
    """Codes of a stream fed in pieces of `size` samples."""
    encoder = StreamEncoder(model)
    return torch.cat([encoder.push(piece) for piece in wav.split(size)] + [encoder.flush()])


def in_batches(model: Codec, wavs: list[Tensor]) -> list[Tensor]:
    """Codes of padded batches, cut to the items' own lengths."""
    result = []
    for start in range(0, len(wavs), BATCH_SIZE):
        items = wavs[start : start + BATCH_SIZE]
        padded = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)[:, None]
        codes = model.encode(padded, torch.tensor([len(wav) for wav in items]))
        result += [row[: model.num_frames(len(wav))] for row, wav in zip(codes, items, strict=True)]
    return result


def report(name: str, whole: list[Tensor], other: list[Tensor]) -> None:
    """One line: how many frames differ, and in how many files."""
    differing = [int((a != b).sum()) for a, b in zip(whole, other, strict=True)]
    in_files = sum(number > 0 for number in differing)
    num_frames = sum(map(len, whole))
    share = sum(differing) / num_frames
    print(f"{name}: {sum(differing)} of {num_frames} frames ({share:.1%}) differ, in {in_files} of {len(whole)} files")


if __name__ == "__main__":
    sys.exit(exit_code(main))
