"""UTMOS: the mean opinion score that listeners of the VoiceMOS challenge 2022 would give, without a reference."""

from pathlib import Path
from typing import Any

from codec.digests import sha256
from codec.evaluation.metric import Column, Metric, Pair, Settings, Undefined
from codec.evaluation.weights import Artefact, check, fetch

SAMPLE_RATE = 16000
MIN_SAMPLES = 400  # one frame

CHECKPOINT = Artefact(
    name="utmos22_strong_epoch3_step7459.ckpt",
    url="https://huggingface.co/spaces/sarulab-speech/UTMOS-demo/resolve/main/epoch%3D3-step%3D7459.ckpt",
    num_bytes=1_238_128_841,
    sha256="44c57e3e4135a243b43d2c82b6a693fcd56f15f9ad0e1eb2a8b31fdecd3a49b8",
    licence="MIT",
)


class Utmos(Metric):
    """UTMOS22 strong learner, without its phoneme encoder; about 1 to 4.5, and natural speech has about 4.06.

    The whole utterance at 16 kHz, in full-scale units and not normalised, one at a time; frame scores averaged,
    doubled, plus 3; listener 288 (the mean listener), domain 0 (the main track). The pair is cut to the shorter of
    both first. The reference's own score stands beside it, because it is the ceiling.

    The weights are those of the public demonstration (`--download`, 1.24 GB, pinned by SHA-256), or any file named with
    `--utmos-weights`: that checkpoint, the state dict of SpeechMOS, or that of SpeechBrain's wrapper. Only tensors are
    read from it. Source: Saeki et al., arXiv:2204.02152; the convention is that of WavTokenizer's and SimVQ's scripts.
    """

    name = "utmos"
    columns = (
        Column("utmos22s", "UTMOS", "higher"),
        Column("utmos22s_reference", "UTMOS of the references", ""),
    )
    packages = ("torch", "transformers")

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from codec.evaluation.utmos_network import UtmosNetwork
        from codec.model.weights import choose_device

        path = _path(settings)
        if path.is_file():
            check(CHECKPOINT, path)
        self.device = choose_device(settings.device)
        self.network = UtmosNetwork.load(path).to(self.device)

    def score(self, pair: Pair) -> dict[str, float]:
        import torch

        reference, estimate = pair.at(SAMPLE_RATE)
        if len(estimate) < MIN_SAMPLES:
            raise Undefined(f"has {len(estimate)} samples at 16 kHz, UTMOS needs {MIN_SAMPLES}")
        values = []
        for wav in (estimate, reference):
            with torch.inference_mode():
                values.append(float(self.network(torch.from_numpy(wav).to(self.device)[None])))
        return dict(zip(("utmos22s", "utmos22s_reference"), values, strict=True))

    @classmethod
    def obstacle(cls, settings: Settings) -> tuple[str, str] | None:
        if settings.utmos_weights is None and not CHECKPOINT.cached.is_file():
            return "its weights are not here", "--metrics utmos --utmos-weights PATH, or --metrics utmos --download"
        return super().obstacle(settings)

    @classmethod
    def provide(cls, settings: Settings) -> None:
        if settings.utmos_weights is None and settings.allow_download:
            fetch(CHECKPOINT)

    @classmethod
    def identity(cls, settings: Settings) -> str:
        return f"{super().identity(settings)}/{sha256(_path(settings))[:16]}"

    @classmethod
    def weights(cls, settings: Settings) -> dict[str, Any]:
        found = sha256(_path(settings))
        return {"sha256": found, "is_pinned": found == CHECKPOINT.sha256}


def _path(settings: Settings) -> Path:
    return settings.utmos_weights or CHECKPOINT.cached
