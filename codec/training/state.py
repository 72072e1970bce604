"""What a run needs to go on where it stopped: exactly, in one file, or compactly, in a few small ones that travel."""

import errno
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

if sys.platform != "win32":
    import fcntl

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from codec.errors import ConfigError, ModelError
from codec.input import parse_json
from codec.output import exists, open_output
from codec.training.run_files import LOCK_NAME, PORTABLE_NAME, PREVIOUS_NAME, STATE_NAME

PORTABLE_BYTES = 16 * 2**20
"""Size of a portable file, small enough for mail, pastes and most transfer limits."""


def lock_run(run: Path) -> IO[bytes]:
    """Let no other process train in a run folder until the returned file is closed or this process ends.

    A file system that cannot lock, and Windows, let everybody in.

    Raises:
        ConfigError: another process trains there, and each would overwrite what the other saves.
        OSError: the folder cannot be written to.
    """
    file = open(run / LOCK_NAME, "ab")
    if sys.platform != "win32":
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise ConfigError(
                    f"{run}: another process trains there, or is saving its last state; wait until it has ended, "
                    "or choose another training.run"
                ) from error
    return file


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as `parameter index.name` -> tensor."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def like_flattened(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Tensors of the names, shapes and kinds that `flatten_optimizer` gives once every parameter had a gradient."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}.{name}": like
        for index, parameter in enumerate(parameters)
        for name, like in (("step", torch.zeros(())), ("exp_avg", parameter), ("exp_avg_sq", parameter))
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the state that `flatten_optimizer` took; its settings stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(
    path: Path, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any], previous: Path | None = None
) -> None:
    """Write named groups of tensors and a few plain values, with a checksum.

    Args:
        path: the old file stays there until the new one is complete.
        parts: group name -> tensor name -> tensor.
        counters: what JSON can hold.
        previous: where the old file goes then; None gives it up.

    Raises:
        OSError: the system refuses, for example because the disk is full; the old file stays.
    """
    tensors = {
        f"{part}/{name}": value.detach().to("cpu").contiguous()
        for part, group in parts.items()
        for name, value in group.items()
    }
    metadata = {"counters": json.dumps(counters), "checksum": str(_checksum(tensors))}
    with open_output(path, overwrite=True) as stream:
        stream.write(safetensors.torch.save(tensors, metadata=metadata))
        if previous is not None and exists(path):
            stream.flush()
            os.fsync(stream.fileno())  # the new bytes are safe before the old file moves: a full disk has shown by now
            os.replace(path, previous)  # a process that dies now has left the previous state, which is read then


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of the bytes of all tensors in the order of their names."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote.

    Raises:
        ModelError: missing, cut off, damaged, or something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            counters = parse_json(metadata.get("counters", "null"))
            # Copied, as they lie in the file: a run that went on with them would keep the file on disk once it is
            # replaced, and could not replace it on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: is not a whole training state ({error})") from error
    if not isinstance(counters, dict):
        raise ModelError(f"{path}: is not a training state, it has no counters")
    if nameless := [key for key in tensors if "/" not in key]:
        raise ModelError(f"{path}: is not a training state, {nameless[0]} belongs to no part of one")
    if metadata.get("checksum") not in (None, str(_checksum(tensors))):
        raise ModelError(f"{path}: is not a whole training state (its checksum does not fit)")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    return parts, counters


class Latest(NamedTuple):
    """The newest whole state of a run."""

    parts: dict[str, dict[str, Tensor]]
    counters: dict[str, Any]
    name: str  # of its file, or folder if it is a portable one
    damage: str  # of a newer one, in a sentence; empty if there is none


def load_latest(run: Path) -> Latest | None:
    """The newest whole state of a run folder, None if there is none at all.

    Raises:
        ModelError: every state there is is damaged.
        OSError: the system cannot tell whether there is one.
    """
    readers = {STATE_NAME: load_state, PREVIOUS_NAME: load_state, PORTABLE_NAME: load_portable}
    damages: list[ModelError] = []
    for name, read in readers.items():
        if exists(run / name):
            try:
                parts, counters = read(run / name)
            except ModelError as error:
                damages.append(error)
            else:
                return Latest(parts, counters, name, str(damages[0]) if damages else "")
    if damages:
        raise ModelError(f"{'; '.join(map(str, damages))}; delete them to begin from the first step")
    return None


def check_room(run: Path, num_state_bytes: int) -> None:
    """Refuse a disk that cannot take the states to come: the next one, while this one and the previous one stay.

    Raises:
        ModelError: there is too little room beside the states that are there.
    """
    there = sum(path.stat().st_size for path in (run / STATE_NAME, run / PREVIOUS_NAME) if path.exists())
    needed, free = 3 * num_state_bytes - there, shutil.disk_usage(run).free
    if free < needed:
        raise ModelError(
            f"{run}: {free / 2**20:.0f} MiB are free, the states to come need {needed / 2**20:.0f} MiB; "
            "free some, or choose another training.run"
        )


def check_portable(parts: dict[str, dict[str, Tensor]]) -> None:
    """Find out whether `save_portable` can write groups of tensors.

    Raises:
        ModelError: one tensor alone is larger than a file may be.
    """
    for part, group in parts.items():
        for name, tensor in group.items():
            size = _portable_bytes(tensor)
            if size + 1024 > PORTABLE_BYTES:
                raise ModelError(
                    f"{part}/{name}: {size} bytes do not fit into a portable file of {PORTABLE_BYTES}; leave out "
                    "training.portable"
                )


def _portable_bytes(tensor: Tensor) -> int:
    """With its entry in the file's header."""
    return tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size()) + 256


def save_portable(folder: Path, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any]) -> None:
    """Write groups of tensors in 16 bit as `0.safetensors`, `1.safetensors`, ... of at most `PORTABLE_BYTES` each.

    Those that `check_portable` refuses must not get here.

    Raises:
        OSError: the system refuses, for example because the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, dict[str, Tensor]]] = []
    room = 0
    for part, group in parts.items():
        for name, tensor in group.items():
            # An optimizer's second moments are too small for float16, and its steps too large.
            dtype = torch.bfloat16 if part.endswith("optimizer") else torch.float16
            half = tensor.to(dtype) if tensor.is_floating_point() else tensor
            size = _portable_bytes(tensor)
            if size > room:
                files.append({})
                room = PORTABLE_BYTES - 1024
            files[-1].setdefault(part, {})[name] = half
            room -= size
    for index, file in enumerate(files):
        save_state(folder / f"{index}.safetensors", file, counters | {"files": len(files)})


def load_portable(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_portable` wrote, in 32 bit.

    Raises:
        ModelError: a file is missing, cut off, something else, or of another moment of the run than the first.
    """
    parts, counters = load_state(folder / "0.safetensors")
    if not isinstance(num_files := counters.get("files"), int):
        raise ModelError(f"{folder}: is not a portable state, file 0 does not say how many files there are")
    for index in range(1, num_files):
        more, more_counters = load_state(folder / f"{index}.safetensors")
        if more_counters != counters:
            raise ModelError(
                f"{folder}: file {index} is of another moment of the run than file 0; copy all of them again"
            )
        for part, group in more.items():
            parts.setdefault(part, {}).update(group)
    for group in parts.values():
        group.update({name: t.float() for name, t in group.items() if t.is_floating_point()})
    return parts, counters


class ExponentialMovingAverage:
    """A running average of a module's trainable parameters; its buffers are not averaged.

    The decay rises from 0 as (1 + n) / (10 + n) so that the first, random weights are forgotten at once.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [parameters[name] for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        parameters = dict(module.named_parameters())
        for name, average in self.shadow.items():
            parameters[name].copy_(average)
