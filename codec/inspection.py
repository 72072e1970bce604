"""What a file of codes, a sound file or a model is, as plain values; needs neither torch nor the model's weights."""

import math
import os
from pathlib import Path
from typing import Any

from codec.bitstream import CodesReader, Header, packed_size
from codec.code_files import CODE_FORMATS, START_SIZE, CodeReader, format_of, open_code_reader
from codec.errors import ModelError
from codec.model.catalogue import WEIGHTS_NAME, ModelInfo, boxed_models, describe, fingerprint
from codec.output import STANDARD_STREAM, naming
from codec.progress import Progress
from codec.tokenization.shards import Tokens, is_tokens, read_shard


def inspect(path: str, progress: Progress | None = None) -> dict[str, Any]:
    """Facts about codes, a sound file, tokens, a model directory or a boxed model, by the names `codec info` shows.

    Args:
        path: of the file or folder, or the name of a boxed model.
        progress: of tokens called with "checked", shards done and shards in all.

    Raises:
        CodecError: it is none of these, or too damaged to tell anything.
        OSError: it cannot be opened.
    """
    if is_tokens(path):
        return inspect_tokens(path, progress)
    if os.path.isdir(path) or (not os.path.exists(path) and path in boxed_models()):
        model = describe(path)
        return inspect_model(model) | {"config": model.config}
    if path == STANDARD_STREAM or Path(path).suffix.lower() in CODE_FORMATS.values() or _begins_as_codes(path):
        return inspect_codes(path)
    return inspect_sound(path)


def inspect_codes(path: str) -> dict[str, Any]:
    """Length, rates, model and damage of a file of codes; every block is read and checked."""
    with open_code_reader(path, recover=True) as reader:
        num_frames = sum(block.num_frames for block in reader)
        facts: dict[str, Any] = {"file": path, "num_frames": num_frames}
        if reader.header is None:
            return facts
        facts |= _rates(reader.header, reader, num_frames)
        if not reader.damage:
            return facts | {"damage": None}
        damage = reader.damage.describe(reader.header.frame_rate)
        return facts | {"damage": damage, "num_lost_frames": reader.damage.lost_frames}


def inspect_tokens(path: str, progress: Progress | None = None) -> dict[str, Any]:
    """What a folder of tokens holds so far, and what it was made with; all of it is read and checked. See `inspect`."""
    tokens = Tokens(path, partial=True)
    for count, (folder, number) in enumerate(tokens.shards):
        if progress:
            progress("checked", count, len(tokens.shards))
        read_shard(folder, number, tokens.info)
    size = tokens.info.utterances_per_shard
    num_listed = sum(min(size, tokens.info.utterances - number * size) for _, number in tokens.shards)
    return {
        "tokens": path,
        "num_utterances": len(tokens),
        "num_failed": num_listed - len(tokens),
        "num_shards": len(tokens.shards),
        "num_missing_shards": tokens.info.num_shards - len(tokens.shards),
        "num_codes": int(tokens.places.codes.sum()),
        "seconds": int(tokens.places.samples.sum()) / tokens.info.sample_rate,
        "num_speakers": len(tokens.places.speakers),
        "sample_rate": tokens.info.sample_rate,
        "hop_length": tokens.info.hop_length,
        "codebook_size": tokens.info.codebook_size,
        "precision": tokens.info.precision,
        "refine": tokens.info.refine,
        "model": tokens.info.model,
        "fingerprint": tokens.info.fingerprint,
    }


def inspect_sound(path: str) -> dict[str, Any]:
    """What the header of a sound file says."""
    from codec.audio import info

    found = info(path)
    seconds = None if found.num_samples is None else found.num_samples / found.sample_rate
    return {
        "file": path,
        "format": found.format,
        "seconds": seconds,
        "num_samples": found.num_samples,
        "sample_rate": found.sample_rate,
        "channels": found.channels,
    }


def inspect_model(found: ModelInfo) -> dict[str, Any]:
    """Rates and size of a model."""
    return {
        "model": found.name,
        "directory": str(found.directory),
        "fingerprint": found.fingerprint,
        "megabytes": found.num_bytes / 1e6,
        "num_weights": _num_weights(found),
        "sample_rate": found.sample_rate,
        "hop_length": found.hop_length,
        "frame_rate": found.frame_rate,
        "codebook_size": found.codebook_size,
        "bits_per_code": found.bits_per_code,
        "bitrate": found.bitrate,
    }


def _num_weights(found: ModelInfo) -> int:
    """Numbers in a model's file, frozen codebooks included.

    Raises:
        ModelError: it is not a file of tensors.
    """
    import safetensors

    path = found.directory / WEIGHTS_NAME
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: is not a whole file of tensors ({error})") from error


def _rates(header: Header, reader: CodeReader, num_frames: int) -> dict[str, Any]:
    num_samples = reader.num_samples
    if num_samples is None:
        num_samples = num_frames * header.hop_length
    seconds = num_samples / header.sample_rate
    facts: dict[str, Any] = {"seconds": seconds, "num_samples": num_samples}
    if isinstance(reader, CodesReader):
        num_payload_bytes = packed_size(num_frames, header.bits_per_code)
        facts |= {
            "num_bytes": reader.num_bytes,
            "bitrate": reader.num_bytes * 8 / seconds / 1000 if seconds else None,
            "payload_bitrate": num_payload_bytes * 8 / seconds / 1000 if seconds else None,
        }
    boxed = {fingerprint(directory): name for name, directory in boxed_models().items()}
    return facts | {
        "sample_rate": header.sample_rate,
        "frame_rate": header.frame_rate,
        "codebook_size": header.codebook_size,
        "bits_per_code": header.bits_per_code,
        "model": header.model,
        "fingerprint": header.fingerprint,
        "boxed_model": boxed.get(header.fingerprint),
    }


def _begins_as_codes(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with naming(path), open(path, "rb") as stream:
        return format_of(stream.read(START_SIZE)) is not None
