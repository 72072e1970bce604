"""How many processes make tokens, on the CPU and elsewhere."""

import pytest
import torch

from codec.errors import ConfigError
from codec.tokenization import corpus
from codec.tokenization.corpus import tokenize
from codec.workers import num_cores, work


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

    def work_here(function, tasks, jobs, prepare, arguments):
        found.append((jobs, arguments[1]))
        return work(function, tasks, 0, prepare, (arguments[0], "cpu", arguments[2]))

    monkeypatch.setattr(corpus.weights, "choose_device", choose_as_if_there_were_a_gpu)
    monkeypatch.setattr(corpus, "work", work_here)
    tokenize(tmp_path / "sounds", tmp_path / "tokens", model=str(model_directory), device=device, jobs=jobs)
    assert found == [(processes, best)]


def test_a_device_that_is_not_here_is_told_before_anything_is_written(tmp_path, speech, model_directory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda' is not available here"):
        tokenize(speech.parent, tmp_path / "tokens", model=str(model_directory), device="cuda")
    assert not (tmp_path / "tokens").exists()
