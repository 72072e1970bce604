"""A model's output for a data set: sound files and code files, and what is known of them besides."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from codec import audio
from codec.errors import CodecError, sentence
from codec.evaluation.journal import file_sum


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` made of one utterance, or why it could not."""

    id: str
    key: str  # of the reference, the model, and all that its output depends on besides, then of the output
    problem: str | None = None
    seconds: float = 0.0
    num_codes: int = 0
    num_saturated: int = 0  # samples beyond full scale
    bitrate: float = 0.0  # kbit/s, of the whole file
    payload_bitrate: float = 0.0  # kbit/s, of the codes alone
    reencoding: float = 0.0  # share of codes, 0 to 1
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """One utterance to encode and decode."""

    id: str
    reference: Path
    estimate: Path  # to be written
    codes: Path  # to be written
    peak: float | None  # samples beyond it are cut to it; None: full scale
    known: Reconstruction | None  # of an earlier run


def prepare(model: str, device: str, refine: int) -> Callable[[Task], Reconstruction]:
    """`reconstruct` with these arguments, where the model is loaded."""
    from codec.files import load_model

    load_model(model, device)  # which keeps it
    return partial(reconstruct, model, device, refine)


def reconstruct(model: str, device: str, refine: int, task: Task) -> Reconstruction:
    """Encode, decode and encode again; what an earlier run has done already is taken from there."""
    from codec.bitstream import read_codes
    from codec.files import decode_file, encode_file, load_model

    try:
        key = f"{file_sum(task.reference)} {load_model(model, device)[0].fingerprint} {device} {task.peak}"
        key += f" {refine}" if refine else ""
        if task.known and task.known.key == f"{key} {_output_sums(task)}":
            return task.known
        for path in (task.estimate, task.codes):
            path.parent.mkdir(parents=True, exist_ok=True)
        encode = partial(encode_file, model=model, device=device, refine=refine, overwrite=True)
        encoded = encode(task.reference, task.codes)
        decoded = decode_file(task.codes, task.estimate, model=model, device=device, overwrite=True)
        if task.peak is not None:
            _cut(task.estimate, task.peak)
        with tempfile.TemporaryDirectory(prefix="codec-") as folder:
            again = Path(folder) / "again.codes"
            encode(task.estimate, again)
            reencoding = agreement(read_codes(task.codes).codes, read_codes(again).codes)
        key += f" {_output_sums(task)}"
    except (CodecError, OSError) as error:
        return Reconstruction(task.id, "", problem=sentence(error))
    assert encoded.bitrate is not None, "a file that nobody else knows has one"
    return Reconstruction(
        id=task.id,
        key=key,
        seconds=encoded.seconds,
        num_codes=encoded.num_frames,
        num_saturated=decoded.num_saturated,
        bitrate=encoded.bitrate,
        payload_bitrate=encoded.payload_bitrate,
        reencoding=reencoding,
        encode_seconds=encoded.elapsed_seconds,
        decode_seconds=decoded.elapsed_seconds,
    )


def agreement(codes: np.ndarray, again: np.ndarray) -> float:
    """Share of frames whose code is the same after decoding and encoding once more, 0 to 1.

    Frames are compared where they stand; frames that only one of the two has count as different. What is encoded again
    is the written 16-bit file. A language model trained on codes wants this high.
    """
    longest = max(len(codes), len(again))
    shortest = min(len(codes), len(again))
    return float(np.count_nonzero(codes[:shortest] == again[:shortest]) / longest) if longest else 1.0


def _output_sums(task: Task) -> str:
    """So that what another run has left there, or half of it, does not pass for the output of this one."""
    return " ".join(file_sum(path) if path.exists() else "-" for path in (task.estimate, task.codes))


def _cut(path: Path, peak: float) -> None:
    wav, sample_rate = audio.read(path)
    if np.abs(wav).max() > peak:
        audio.write(path, np.clip(wav, -peak, peak), sample_rate, overwrite=True)
