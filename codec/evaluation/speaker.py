"""Speaker similarity: whether it is still the same voice."""

from typing import Any

import numpy as np

from codec.errors import ModelError
from codec.evaluation.hub import Source, describe, import_transformers, load_pretrained, obstacle_of
from codec.evaluation.metric import Column, Metric, Pair, Settings, Undefined

SAMPLE_RATE = 16000
MIN_SECONDS = 0.5
EXAMPLE = "microsoft/wavlm-base-plus-sv"


class SpeakerSimilarity(Metric):
    """Cosine of the x-vectors of reference and estimate, -1 to 1, by an x-vector model of `transformers`.

    Whole utterances at 16 kHz, one at a time, prepared as the model's own feature extractor says. The scale depends on
    the model: with `microsoft/wavlm-base-plus-sv` two recordings of one speaker are above 0.86 as a rule. Numbers of
    other speaker models (ECAPA, the fine-tuned WavLM large of zero-shot TTS) do not compare.
    """

    name = "speaker"
    columns = (Column("speaker_similarity", "speaker similarity", "higher"),)
    packages = ("torch", "transformers")
    is_model = True

    def __init__(self, settings: Settings):
        super().__init__(settings)

        from codec.model.weights import choose_device

        transformers = import_transformers()
        source = Source(str(settings.speaker_model), settings.allow_download)
        self.device = choose_device(settings.device)
        self.extractor = load_pretrained(transformers.AutoFeatureExtractor, source, "a feature extractor")
        kind = transformers.AutoModelForAudioXVector
        self.model = load_pretrained(kind, source, "an x-vector model").float().eval().to(self.device)
        if self.extractor.sampling_rate != SAMPLE_RATE:
            raise ModelError(f"{source.name}: takes {self.extractor.sampling_rate} Hz, {SAMPLE_RATE} Hz is meant")

    def score(self, pair: Pair) -> dict[str, float]:
        pair.require_seconds(MIN_SECONDS)
        reference, estimate = (self.embed(wav) for wav in pair.at(SAMPLE_RATE))
        lengths = np.linalg.norm(reference) * np.linalg.norm(estimate)
        if lengths == 0:
            raise Undefined("an x-vector has no direction")
        return {"speaker_similarity": float(reference @ estimate / lengths)}

    def embed(self, wav: np.ndarray) -> np.ndarray:
        """x-vector (D,) float64 of a wave (T,) at 16 kHz."""
        import torch

        inputs = self.extractor(wav, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            return self.model(**inputs).embeddings[0].double().cpu().numpy()

    @classmethod
    def obstacle(cls, settings: Settings) -> tuple[str, str] | None:
        command = f"--metrics speaker --speaker-model {EXAMPLE} --download"
        return super().obstacle(settings) or obstacle_of(settings.speaker_model, command)

    @classmethod
    def identity(cls, settings: Settings) -> str:
        return f"{super().identity(settings)}/{describe(settings.speaker_model)}"

    @classmethod
    def weights(cls, settings: Settings) -> dict[str, Any]:
        return {"model": describe(settings.speaker_model)}
