"""UTMOS22 strong: equal to the public re-implementation, from every layout of its weights, and nothing but tensors."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'codec[eval]'")

import torch
import utmos_weights

from codec.errors import ModelError
from codec.evaluation import utmos
from codec.evaluation.hub import import_transformers
from codec.evaluation.metric import Pair, Settings, Undefined
from codec.evaluation.utmos_network import UtmosNetwork

SIZES = {"embedding_dim": 8, "rnn_dim": 6, "projection_dim": 10}


@pytest.fixture(scope="module")
def config():
    """Everything small, but of the same shape."""
    return import_transformers().Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )


@pytest.fixture(scope="module")
def weights(config):
    return utmos_weights.speechmos(config, **SIZES)


@pytest.fixture(autouse=True)
def small_network(monkeypatch, config):
    """`Utmos` builds the small network."""
    original = UtmosNetwork.__init__
    monkeypatch.setattr(UtmosNetwork, "__init__", lambda self: original(self, config, **SIZES))


def chirp(num_samples: int) -> torch.Tensor:
    index = torch.arange(num_samples, dtype=torch.float64)
    return (0.3 * torch.sin(index * index * 2e-6) * torch.sin(index * 3e-4)).float()[None]


def score(path: Path, num_samples: int = 4000) -> float:
    with torch.inference_mode():
        return float(UtmosNetwork.load(path)(chirp(num_samples)))


def test_every_layout_gives_the_same_score(tmp_path, weights):
    import safetensors.torch

    torch.save(weights, tmp_path / "speechmos.pt")
    torch.save({"state_dict": utmos_weights.lightning(weights), "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save(utmos_weights.speechbrain(weights), tmp_path / "speechbrain.ckpt")
    safetensors.torch.save_file(weights, tmp_path / "speechmos.safetensors")
    scores = {path.name: score(path) for path in tmp_path.iterdir()}
    assert len(scores) == 4
    assert set(scores.values()) == {scores["speechmos.pt"]}
    assert scores["speechmos.pt"] != score(tmp_path / "speechmos.pt", 5000)


def test_objects_beside_the_weights_are_not_run(tmp_path, weights):
    """Published checkpoints hold settings and callbacks; a hostile one could hold anything."""
    from omegaconf import OmegaConf

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    content = {
        "state_dict": utmos_weights.lightning(weights),
        "hyper_parameters": {"cfg": OmegaConf.create({"a": [1, 2, {"b": 3.0}]}), "path": Path("x")},
        "callbacks": {Path: {"best": torch.ones(3)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5), "step": 7}}}],
        "numpy": np.float64(3),
        "hostile": Hostile(),
    }
    torch.save(content, tmp_path / "lightning.ckpt")
    torch.save(weights, tmp_path / "speechmos.pt")
    assert score(tmp_path / "lightning.ckpt") == score(tmp_path / "speechmos.pt")
    assert not (tmp_path / "harm").exists()


def test_score_is_twice_the_mean_frame_plus_three(weights, tmp_path):
    flat = {name: value.clone() for name, value in weights.items()}
    flat["projection.2.weight"] *= 0
    flat["projection.2.bias"][:] = 0.25
    torch.save(flat, tmp_path / "flat.pt")
    assert score(tmp_path / "flat.pt") == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda weights: weights.pop("blstm.bias_ih_l0"), r"lacks lstm\.bias_ih_l0"),
        (lambda weights: weights.update({"blstm.extra": torch.ones(1)}), r"has unknown lstm\.extra"),
        (lambda weights: weights.update({"domain_emb": torch.ones(1, 5)}), r"another shape for domain"),
        (lambda weights: weights.pop("judge_emb"), "in none of the known layouts"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, weights, change, what):
    wrong = dict(weights)
    change(wrong)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(ModelError, match=what):
        UtmosNetwork.load(tmp_path / "wrong.pt")


@pytest.mark.parametrize(
    ("name", "num_rows", "what"),
    [
        ("output_layers.0.judge_embedding.weight", 100, "listener table has 100 rows, row 288 is needed"),
        ("feature_extractors.1.embedding.weight", 0, "domain table has 0 rows, row 0 is needed"),
    ],
)
def test_table_without_the_row_that_is_needed_is_refused(tmp_path, weights, name, num_rows, what):
    import safetensors.torch

    wrong = utmos_weights.lightning(weights) | {name: torch.ones(num_rows, 8)}
    safetensors.torch.save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ModelError, match=what):
        UtmosNetwork.load(tmp_path / "wrong.safetensors")


def test_metric_scores_estimate_and_reference(tmp_path, weights, pair):
    torch.save(weights, tmp_path / "weights.pt")
    metric = utmos.Utmos(Settings(utmos_weights=tmp_path / "weights.pt"))
    values = metric.score(pair)
    assert set(values) == {"utmos22s", "utmos22s_reference"}
    same = metric.score(Pair(pair.reference, pair.reference, 24000))
    assert same["utmos22s"] == same["utmos22s_reference"] == values["utmos22s_reference"]
    with pytest.raises(Undefined, match="UTMOS needs 400"):
        metric.score(Pair(pair.reference[:500], pair.estimate[:500], 24000))


def test_missing_weights_are_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path))
    reason, command = utmos.Utmos.obstacle(Settings())
    assert "weights are not here" in reason
    assert "--utmos-weights PATH" in command


def test_damaged_copy_of_the_published_file_is_refused(tmp_path, weights, monkeypatch):
    from dataclasses import replace

    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    monkeypatch.setattr(utmos, "CHECKPOINT", replace(utmos.CHECKPOINT, num_bytes=path.stat().st_size))
    with pytest.raises(ModelError, match="another SHA-256"):
        utmos.Utmos(Settings(utmos_weights=path))


def test_report_names_the_weights(tmp_path, weights):
    torch.save(weights, tmp_path / "weights.pt")
    record = utmos.Utmos.weights(Settings(utmos_weights=tmp_path / "weights.pt"))
    assert record["is_pinned"] is False
    assert len(record["sha256"]) == 64


def test_command_tells_what_is_wrong_with_the_weights_and_scores_the_rest(folders, tmp_path, monkeypatch, capsys):
    from codec.cli import run

    monkeypatch.setenv("CODEC_CACHE", str(tmp_path))
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    weights = str(tmp_path / "weights.pt")
    arguments = ["evaluate", *map(str, folders), "--metrics", "utmos,mel", "--jobs", "0", "--utmos-weights", weights]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "log-mel L1" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith(f"  utmos: {weights}: is damaged"))
    assert line.endswith("; --metrics utmos --utmos-weights PATH, or --metrics utmos --download")


PUBLISHED = {400: 2.688368558883667, 1600: 1.9616097211837769, 16321: 2.586430311203003, 48000: 3.044215202331543}


def test_full_network_equals_the_public_reimplementation(monkeypatch):
    """Scores of SpeechMOS 1.2.0 (`UTMOS22Strong`) with the weights of `utmos_weights.fill`, for `chirp`s."""
    monkeypatch.undo()
    network = UtmosNetwork()
    weights = utmos_weights.speechmos(network.wav2vec2.config, embedding_dim=128, rnn_dim=512, projection_dim=2048)
    network.take(weights, Path("formula"))
    network.eval()
    for num_samples, expected in PUBLISHED.items():
        with torch.inference_mode():
            assert float(network(chirp(num_samples))) == pytest.approx(expected, abs=1e-4)
