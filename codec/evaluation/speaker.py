"""Speaker similarity: whether it is still the same voice."""

import numpy as np

from codec.evaluation.hub import HubMetric
from codec.evaluation.metric import Column, Pair, Settings, Undefined

SAMPLE_RATE = 16000
MIN_SECONDS = 0.5


class SpeakerSimilarity(HubMetric):
    """Cosine of the x-vectors of reference and estimate, -1 to 1, by an x-vector model of `transformers`.

    Whole utterances at 16 kHz, one at a time, prepared as the model's own feature extractor says. The scale depends on
    the model: with `microsoft/wavlm-base-plus-sv` two recordings of one speaker are above 0.86 as a rule. Numbers of
    other speaker models (ECAPA, the fine-tuned WavLM large of zero-shot TTS) do not compare.
    """

    name = "speaker"
    columns = (Column("speaker_similarity", "speaker similarity", "higher"),)
    setting = "speaker_model"
    example = "microsoft/wavlm-base-plus-sv"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.extractor = self.load("AutoFeatureExtractor", "a feature extractor")
        self.model = self.load("AutoModelForAudioXVector", "an x-vector model").float().eval().to(self.device)
        self.check_rate(self.extractor.sampling_rate, SAMPLE_RATE)

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
            return self.model(**inputs).embeddings[0].cpu().double().numpy()
