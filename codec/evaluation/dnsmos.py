"""DNSMOS: what listeners of ITU-T P.808 and P.835 tests would say, predicted without reference."""

from pathlib import Path
from typing import Any

import numpy as np

from codec.digests import sha256
from codec.errors import ModelError, first_line
from codec.evaluation.metric import Column, Metric, Pair, Settings
from codec.evaluation.weights import Artefact, check, fetch

SAMPLE_RATE = 16000
SEGMENT_SECONDS = 9.01
SEGMENT = 144160  # samples

_ROOT = "https://raw.githubusercontent.com/microsoft/DNS-Challenge/master/DNSMOS/DNSMOS"
P835 = Artefact(
    name="sig_bak_ovr.onnx",
    url=f"{_ROOT}/sig_bak_ovr.onnx",
    num_bytes=1_157_965,
    sha256="269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    licence="CC BY 4.0",
)
P808 = Artefact(
    name="model_v8.onnx",
    url=f"{_ROOT}/model_v8.onnx",
    num_bytes=224_860,
    sha256="9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    licence="CC BY 4.0",
)

_TO_P835 = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)
"""From the network's outputs (signal, background, overall) to the P.835 scale, highest power first; of the challenge's
script."""


class Dnsmos(Metric):
    """DNSMOS P.835 (signal, background, overall) and P.808 of the estimate, about 1 to 5, and of the reference.

    At 16 kHz, in full-scale units, level untouched. A clip shorter than 9.01 s is doubled until it is not; segments of
    9.01 s begin every second (see `segment_starts`), and their scores are averaged. P.835 takes samples, P.808 the mel
    spectrum of all but the last 160 samples (120 Slaney bands, window 321, hop 160, power in dB under the segment's
    maximum, at most 80 dB, mapped by (x + 40) / 40). The non-personalised models, on onnxruntime with one thread.

    Weights: `--dnsmos-weights DIR` with `sig_bak_ovr.onnx` and `model_v8.onnx`, or `--download` (1.4 MB, pinned by
    SHA-256). Source: Reddy et al., arXiv:2010.15258 and arXiv:2110.01763; `dnsmos_local.py` of the DNS challenge.
    """

    name = "dnsmos"
    columns = (
        Column("dnsmos_p808", "DNSMOS P.808", "higher"),
        Column("dnsmos_sig", "DNSMOS P.835 signal", "higher"),
        Column("dnsmos_bak", "DNSMOS P.835 background", "higher"),
        Column("dnsmos_ovrl", "DNSMOS P.835 overall", "higher"),
        Column("dnsmos_p808_reference", "DNSMOS P.808 of the references", ""),
        Column("dnsmos_ovrl_reference", "DNSMOS P.835 overall of the references", ""),
    )
    packages = ("onnxruntime", "librosa")
    version = 2  # 1 took a segment more

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.p835, self.p808 = (_session(artefact, path) for artefact, path in _paths(settings).items())

    def score(self, pair: Pair) -> dict[str, float]:
        reference, estimate = (self.predict(wav) for wav in pair.at(SAMPLE_RATE))
        return estimate | {f"{name}_reference": reference[name] for name in ("dnsmos_p808", "dnsmos_ovrl")}

    def predict(self, wav: np.ndarray) -> dict[str, float]:
        """The four scores of a wave (T,) at 16 kHz."""
        while len(wav) < SEGMENT:
            wav = np.concatenate([wav, wav])
        rows = []
        for start in segment_starts(len(wav)):
            segment = wav[start : start + SEGMENT].astype(np.float32)
            p835 = self.p835.run(None, {"input_1": segment[None]})[0][0]  # (3,)
            p808 = self.p808.run(None, {"input_1": _mel(segment[:-160])[None]})[0][0][0]
            rows.append([p808, *map(np.polyval, _TO_P835, p835)])
        means = np.asarray(rows, dtype=np.float64).mean(axis=0).tolist()
        return dict(zip((column.name for column in self.columns[:4]), means, strict=True))

    @classmethod
    def obstacle(cls, settings: Settings) -> tuple[str, str] | None:
        if settings.dnsmos_weights is None and not all(path.is_file() for path in _paths(settings).values()):
            return "its weights are not here", "--metrics dnsmos --dnsmos-weights DIR, or --metrics dnsmos --download"
        return super().obstacle(settings)

    @classmethod
    def provide(cls, settings: Settings) -> None:
        if settings.dnsmos_weights is None and settings.allow_download:
            for artefact in (P835, P808):
                fetch(artefact)

    @classmethod
    def identity(cls, settings: Settings) -> str:
        sums = "-".join(sha256(path)[:8] for path in _paths(settings).values())
        return f"{super().identity(settings)}/{sums}"

    @classmethod
    def weights(cls, settings: Settings) -> dict[str, Any]:
        found = {artefact.name: sha256(path) for artefact, path in _paths(settings).items()}
        return {"sha256": found, "is_pinned": found == {artefact.name: artefact.sha256 for artefact in (P835, P808)}}


def segment_starts(num_samples: int) -> list[int]:
    """Where the segments of a clip begin that the published script takes, for at least 9.01 s at 16 kHz.

    The script counts whole seconds, so a clip has its second segment from 11 s on, not from 10.01 s. It finds the end
    of a segment in floating point and passes over those that come out a sample short: for starts up to a minute, those
    at 7 to 23 s.
    """
    num_starts = int(num_samples // SAMPLE_RATE - SEGMENT_SECONDS) + 1
    starts = [(second * SAMPLE_RATE, int((second + SEGMENT_SECONDS) * SAMPLE_RATE)) for second in range(num_starts)]
    return [start for start, end in starts if end - start == SEGMENT]


def _paths(settings: Settings) -> dict[Artefact, Path]:
    folder = settings.dnsmos_weights
    return {artefact: folder / artefact.name if folder else artefact.cached for artefact in (P835, P808)}


def _session(artefact: Artefact, path: Path) -> Any:
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path}: no such file; DNSMOS needs {P835.name} and {P808.name} in one folder")
    check(artefact, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type of its own for every cause
        raise ModelError(f"{path}: is not a network that onnxruntime can load ({first_line(error)})") from error
    if [entry.name for entry in session.get_inputs()] != ["input_1"]:
        raise ModelError(f"{path}: is not the DNSMOS network {artefact.name}, its inputs are named otherwise")
    return session


def _mel(wav: np.ndarray) -> np.ndarray:
    """(T,) -> (N, 120) float32."""
    import librosa

    mel = librosa.feature.melspectrogram(y=wav, sr=SAMPLE_RATE, n_fft=321, hop_length=160, n_mels=120)
    return ((librosa.power_to_db(mel, ref=np.max) + 40) / 40).T.astype(np.float32)
