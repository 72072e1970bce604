"""States: whole or refused, the previous one kept, room for the next one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from codec.errors import ConfigError, ModelError
from codec.training import state
from codec.training.run_files import PREVIOUS_NAME, STATE_NAME
from codec.training.state import (
    ExponentialMovingAverage,
    check_room,
    load_latest,
    load_portable,
    load_state,
    lock_run,
    save_portable,
    save_state,
)


def save(run: Path, step: int) -> None:
    parts = {"codec": {"weight": torch.full((50, 3), float(step)), "count": torch.tensor(step)}}
    save_state(run / STATE_NAME, parts, {"step": step}, previous=run / PREVIOUS_NAME)


def latest(run: Path) -> tuple[int, str]:
    found = load_latest(run)
    assert found is not None
    assert found.parts["codec"]["weight"].unique().item() == found.counters["step"]
    return found.counters["step"], found.damage


def test_a_state_comes_back_as_it_was(tmp_path: Path):
    save(tmp_path, 1)
    parts, counters = load_state(tmp_path / STATE_NAME)
    assert counters == {"step": 1}
    assert parts["codec"]["count"] == 1
    assert parts["codec"]["weight"].shape == (50, 3)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_what_was_read_does_not_hold_the_file(tmp_path: Path):
    save(tmp_path, 1)
    parts, _ = load_state(tmp_path / STATE_NAME)
    assert parts["codec"]["weight"].unique() == 1
    assert str(tmp_path / STATE_NAME) not in Path("/proc/self/maps").read_text()


def test_the_checksum_of_a_state_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)
    checksum, calls = state._checksum, []
    monkeypatch.setattr(state, "_checksum", lambda tensors: calls.append(tensors) or checksum(tensors))
    load_state(tmp_path / STATE_NAME)
    assert len(calls) == 1


def test_the_previous_state_is_kept(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert load_state(tmp_path / PREVIOUS_NAME)[1] == {"step": 2}
    assert latest(tmp_path) == (3, "")


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "missing"])
def test_a_damaged_state_is_passed_over_with_a_sentence(tmp_path: Path, damage: str):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / STATE_NAME
    whole = path.read_bytes()
    flipped = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
    path.write_bytes({"cut": whole[:-100], "flipped": flipped, "text": b"not a state"}.get(damage, b""))
    if damage == "missing":
        path.unlink()  # what is left when a process dies between the two renames of saving
    step, sentence = latest(tmp_path)
    assert step == 1
    assert sentence.startswith("" if damage == "missing" else f"{path}: is not a whole training state")


@pytest.mark.parametrize(
    ("key", "counters", "words"),
    [
        ("weight", '{"step": 1}', "weight belongs to no part of one"),
        ("codec/weight", "5", "it has no counters"),
        ("codec/weight", None, "it has no counters"),
    ],
)
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, key: str, counters: str | None, words: str):
    save_file({key: torch.zeros(3)}, tmp_path / STATE_NAME, {"counters": counters} if counters else None)
    with pytest.raises(ModelError, match=rf"state\.safetensors: is not a training state, {words}$"):
        load_state(tmp_path / STATE_NAME)


@pytest.mark.parametrize("counters", [{"step": 1}, {"step": 1, "files": "2"}])
def test_a_portable_state_that_does_not_count_its_files_is_refused(tmp_path: Path, counters: dict):
    save_state(tmp_path / "0.safetensors", {"codec": {"weight": torch.zeros(3)}}, counters)
    with pytest.raises(ModelError, match="is not a portable state, file 0 does not say how many files there are"):
        load_portable(tmp_path)


def test_damaged_states_alone_are_refused(tmp_path: Path):
    assert load_latest(tmp_path) is None
    save(tmp_path, 1)
    (tmp_path / STATE_NAME).write_bytes(b"")
    with pytest.raises(ModelError, match=r"state\.safetensors: is not a whole training state"):
        load_latest(tmp_path)


@pytest.mark.parametrize("name", [STATE_NAME, PREVIOUS_NAME])
def test_a_state_that_may_be_there_is_not_begun_anew(tmp_path: Path, make_stale: Callable[[Path], None], name: str):
    save(tmp_path, 1)
    (tmp_path / STATE_NAME).rename(tmp_path / name)
    make_stale(tmp_path / name)
    with pytest.raises(OSError, match="Stale file handle"):
        load_latest(tmp_path)


def test_a_state_that_may_be_there_is_not_given_up(tmp_path: Path, make_stale: Callable[[Path], None]):
    save(tmp_path, 1)
    before = (tmp_path / STATE_NAME).read_bytes()
    make_stale(tmp_path / STATE_NAME)
    with pytest.raises(OSError, match="Stale file handle"):
        save(tmp_path, 2)
    assert (tmp_path / STATE_NAME).read_bytes() == before


def test_a_full_disk_leaves_both_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("codec.training.state.os.fsync", full)
        save(tmp_path, 3)
    assert latest(tmp_path) == (2, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS_NAME, STATE_NAME]


def test_a_disk_without_room_for_the_next_states_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_room(tmp_path, 1000)
    usage = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr("codec.training.state.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"5 MiB are free, the states to come need 6 MiB; free some, or choose"):
        check_room(tmp_path, 2 << 20)


def test_with_a_previous_state_there_only_needs_to_be_room_for_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 1)
    size = (tmp_path / STATE_NAME).stat().st_size
    usage = type("Usage", (), {"free": size})
    monkeypatch.setattr("codec.training.state.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="are free"):
        check_room(tmp_path, size)
    save(tmp_path, 2)
    check_room(tmp_path, size)
    usage.free = size // 2
    with pytest.raises(ModelError, match="are free"):
        check_room(tmp_path, size)


def test_a_run_belongs_to_one_process_until_it_ends(tmp_path: Path):
    pytest.importorskip("fcntl", reason="this system cannot lock files")
    code = f"""
import pathlib
from codec.training.state import lock_run
lock = lock_run(pathlib.Path({str(tmp_path)!r}))
print("locked", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match="another process trains there"):
            lock_run(tmp_path)
        other.kill()
    lock_run(tmp_path).close()


def test_portable_files_of_two_moments_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("codec.training.state.PORTABLE_BYTES", 3000)
    parts = {"codec": {f"weight{index}": torch.randn(400) for index in range(3)}}
    save_portable(tmp_path / "a", parts, {"step": 1})
    save_portable(tmp_path / "b", parts, {"step": 2})
    (tmp_path / "b" / "1.safetensors").replace(tmp_path / "a" / "1.safetensors")
    with pytest.raises(ModelError, match="file 1 is of another moment of the run than file 0"):
        load_portable(tmp_path / "a")


def test_portable_optimizers_keep_small_moments_and_large_steps(tmp_path: Path):
    save_portable(tmp_path, {"optimizer": {"0.step": torch.tensor(2e5), "0.exp_avg_sq": torch.tensor([1e-12])}}, {})
    parts, _ = load_portable(tmp_path)
    assert parts["optimizer"]["0.step"] == pytest.approx(2e5, rel=1e-2)
    assert parts["optimizer"]["0.exp_avg_sq"] == pytest.approx(1e-12, rel=1e-2)


def test_the_average_forgets_the_first_weights_at_once_and_later_ones_by_its_decay():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    average = ExponentialMovingAverage(module, 0.5)
    nn.init.zeros_(module.weight)
    shares = []  # of the first weight in the average
    for _ in range(12):
        average.update(module)
        shares.append(average.shadow["weight"].item())
    assert shares[:3] == pytest.approx([2 / 11, 2 / 11 * 3 / 12, 2 / 11 * 3 / 12 * 4 / 13])
    assert shares[11] == pytest.approx(0.5 * shares[10])


def test_the_average_leaves_frozen_parameters_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    average = ExponentialMovingAverage(module, 0.9)
    assert list(average.shadow) == ["weight"]
    average.update(module)
    average.copy_to(module)
