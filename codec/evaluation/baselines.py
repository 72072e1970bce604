"""What others have published, and under which conditions, to stand beside our own numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of somebody's table; a value that was not published is None."""

    system: str
    bitrate: float | None  # kbit/s
    frame_rate: float | None  # codes per second, all codebooks together
    data: str
    utmos: float | None
    pesq_wb: float | None
    stoi: float | None
    vuv_f1: float | None
    utilisation: float | None  # 0 to 1
    conditions: str


_CLEAN, _OTHER = "LibriTTS test-clean", "LibriTTS test-other"
_SIMVQ = "SimVQ's own table; LibriTTS 585 h, 1 s windows, 50 epochs"
_BY_SIMVQ = "as printed in SimVQ's table"
_BY_WAVTOKENIZER = "as printed in WavTokenizer's table"
_SPEECH = "LibriSpeech test-clean"

CONDITIONS = (
    "Means over files at 16 kHz (UTMOS, PESQ, V/UV F1) and 24 kHz (STOI); files where PESQ or STOI failed count with "
    "-7, -6 or 1e-5 in the scripts of WavTokenizer and SimVQ, and pairs without F1 are left out. Rows on LibriSpeech "
    "are at 16 kHz and do not compare line by line with those on LibriTTS."
)

PUBLISHED = (
    Published("original recordings", None, None, _CLEAN, 4.056, None, None, None, None,
              "a user's rerun of WavTokenizer's script, 4,833 of 4,837 files"),
    Published("SimVQ, K = 4096", 0.9, 75, _CLEAN, 4.00, 2.33, 0.91, 0.94, 1.0, _SIMVQ),
    Published("SimVQ, K = 4096", 0.9, 75, _OTHER, 3.51, 2.08, 0.88, 0.91, 1.0, _SIMVQ),
    Published("SimVQ, K = 8192", 0.975, 75, _CLEAN, 4.03, 2.42, 0.92, 0.94, 0.994, _SIMVQ),
    Published("SimVQ, K = 8192", 0.975, 75, _OTHER, 3.52, 2.15, 0.88, 0.92, 0.994, _SIMVQ),
    Published("SimVQ, K = 65536", 1.2, 75, _CLEAN, 4.03, 2.54, 0.93, 0.94, 0.994, _SIMVQ),
    Published("SimVQ, K = 65536", 1.2, 75, _OTHER, 3.52, 2.26, 0.90, 0.92, 0.990, _SIMVQ),
    Published("SimVQ, K = 262144", 1.35, 75, _CLEAN, 4.03, 2.61, 0.93, 0.95, 0.956, _SIMVQ),
    Published("SimVQ, K = 262144", 1.35, 75, _OTHER, 3.53, 2.31, 0.90, 0.93, 0.947, _SIMVQ),
    Published("WavTokenizer small", 0.9, 75, _CLEAN, 4.05, 2.37, 0.914, 0.938, 1.0,
              "WavTokenizer's paper; LibriTTS 585 h, 3 s windows"),
    Published("WavTokenizer small", 0.9, 75, _OTHER, 3.43, 2.26, 0.89, 0.92, 1.0, _BY_SIMVQ),
    Published("WavTokenizer, 1 s windows", 0.9, 75, _CLEAN, 3.74, 2.01, 0.894, None, 1.0,
              "ablation in WavTokenizer's paper; SimVQ prints this row as its baseline on test-clean"),
    Published("WavTokenizer large", 0.9, 75, _CLEAN, 3.84, 2.06, 0.892, 0.918, None,
              "a user's rerun, 4,833 of 4,837 files; 80,000 h of training data"),
    Published("WavTokenizer, 40 codes/s", 0.48, 40, _CLEAN, 3.61, 1.71, 0.865, None, None, "third party"),
    Published("DAC, 9 codebooks", 9.0, 900, _CLEAN, 3.91, 3.91, 0.970, 0.978, None, _BY_WAVTOKENIZER),
    Published("DAC, 1 codebook", 1.0, 100, _CLEAN, 1.49, 1.25, 0.771, 0.794, None, _BY_WAVTOKENIZER),
    Published("EnCodec", 6.0, 600, _CLEAN, 3.04, 2.81, 0.943, 0.944, None, _BY_WAVTOKENIZER),
    Published("EnCodec", 3.0, 300, _CLEAN, 2.31, 2.05, 0.90, 0.92, None, _BY_SIMVQ),
    Published("EnCodec", 3.0, 300, _OTHER, 2.09, 2.05, 0.88, 0.89, None, _BY_SIMVQ),
    Published("Vocos on EnCodec's codes", 3.0, 300, _CLEAN, 3.53, 2.40, 0.92, 0.94, None, _BY_SIMVQ),
    Published("Vocos on EnCodec's codes", 3.0, 300, _OTHER, 3.06, 2.19, 0.90, 0.91, None, _BY_SIMVQ),
    Published("SpeechTokenizer", 3.0, 300, _CLEAN, 3.56, 1.93, 0.88, 0.93, None, _BY_SIMVQ),
    Published("SpeechTokenizer", 3.0, 300, _OTHER, 3.02, 1.74, 0.84, 0.89, None, _BY_SIMVQ),
    Published("BigCodec", 1.04, 80, _SPEECH, 4.11, 2.68, 0.93, None, 1.0, "third party; 16 kHz"),
    Published("X-Codec 2.0", 0.8, 50, _SPEECH, 4.13, 2.44, 0.92, None, None, "its README; 16 kHz, 150,000 h"),
    Published("MagiCodec", 0.85, 50, _SPEECH, 4.18, 2.56, 0.93, None, None, "third party's copy of its paper; 16 kHz"),
    Published("TS3-Codec", 0.85, 50, _SPEECH, 3.84, 2.23, 0.91, None, None, "third party; 16 kHz"),
    Published("WavTokenizer", 0.9, 75, _SPEECH, 3.79, 2.13, 0.90, None, None, "as printed by MagiCodec; 16 kHz"),
    Published("Mimi, 16 codebooks", 2.2, 200, _SPEECH, 3.87, 2.88, 0.94, None, None, "third party; 16 kHz"),
)  # fmt: skip
