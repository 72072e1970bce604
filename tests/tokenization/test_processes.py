"""How many processes make tokens, on the CPU and elsewhere, and what each is given."""

import numpy as np
import pytest
import soundfile
import torch

from codec.cores import num_cores
from codec.errors import ConfigError
from codec.tokenization import corpus
from codec.tokenization.corpus import tokenize
from codec.tokenization.shards import Tokens
from codec.workers import Died, work_in_batches


@pytest.mark.parametrize(
    ("device", "jobs", "processes"),
    [("cpu", None, num_cores()), ("auto", None, 0), ("cuda", None, 0), ("cuda", 3, 3)],
)
def test_a_gpu_is_used_by_this_process_alone(tmp_path, speech, model_directory, monkeypatch, device, jobs, processes):
    (tmp_path / "sounds").mkdir()
    for number in range(max(processes, 1)):  # there are never more processes than recordings
        (tmp_path / "sounds" / f"{number}.flac").symlink_to(speech)
    best = "cpu" if device == "cpu" else "cuda"
    choose, found = corpus.weights.choose_device, []

    def choose_as_if_there_were_a_gpu(name):
        return torch.device(best) if name == device else choose(name)

    def work_here(prepare, arguments, tasks, jobs):
        found.append((jobs, arguments[1]))
        return work_in_batches(prepare, (arguments[0], "cpu", *arguments[2:]), tasks, 0)

    monkeypatch.setattr(corpus.weights, "choose_device", choose_as_if_there_were_a_gpu)
    monkeypatch.setattr(corpus, "work_in_batches", work_here)
    tokenize(tmp_path / "sounds", tmp_path / "tokens", model=str(model_directory), device=device, jobs=jobs)
    assert found == [(processes, best)]


def test_a_device_that_is_not_here_is_told_before_anything_is_written(tmp_path, speech, model_directory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda' is not available here"):
        tokenize(speech.parent, tmp_path / "tokens", model=str(model_directory), device="cuda")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(("jobs", "num_short"), [(1, [4]), (2, [3, 1]), (8, [1, 1, 1, 1])])
def test_short_recordings_of_a_folder_go_together_and_long_ones_alone(
    tmp_path, model_directory, monkeypatch, jobs, num_short
):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(2):
        soundfile.write(folder / f"long{number}.wav", np.zeros(50000), 24000)
        for letter in "ab":
            soundfile.write(folder / f"short{number}{letter}.wav", np.zeros(24000), 24000)
    monkeypatch.setattr("codec.files.MAX_SECONDS_AT_ONCE", 4.01)  # room for both long ones is not there
    given = []

    def work_here(prepare, arguments, tasks, jobs):
        given.extend([recording.id for recording in task] for task in tasks)
        return work_in_batches(prepare, arguments, tasks, 0)

    monkeypatch.setattr(corpus, "work_in_batches", work_here)
    tokenize(folder, tmp_path / "tokens", model=str(model_directory), jobs=jobs)
    assert given[:2] == [["long0"], ["long1"]]
    assert [len(ids) for ids in given[2:]] == num_short
    assert list(Tokens(tmp_path / "tokens")) == sorted(id for ids in given for id in ids)


def test_a_crash_costs_only_the_recording_at_fault(tmp_path, speech, model_directory, monkeypatch):
    """Here only what becomes of it; `test_workers.py` lets processes crash."""
    (tmp_path / "sounds").mkdir()
    for name in "abc":
        (tmp_path / "sounds" / f"{name}.flac").symlink_to(speech)

    def work_with_a_crash(prepare, arguments, tasks, jobs):
        for number, results in work_in_batches(prepare, arguments, tasks, 0):
            ids = [recording.id for recording in tasks[number]]
            yield number, [Died("it died") if id == "b" else result for id, result in zip(ids, results, strict=True)]

    monkeypatch.setattr(corpus, "work_in_batches", work_with_a_crash)
    tokenize(tmp_path / "sounds", tmp_path / "tokens", model=str(model_directory), jobs=1)
    assert list(Tokens(tmp_path / "tokens")) == ["a", "c"]
    (line,) = (tmp_path / "tokens" / "00000.failed.tsv").read_text().splitlines()[1:]
    assert line.split("\t")[::2] == ["b", "it died"]
