"""Word and character error rates: what a speech recogniser still understands."""

import numpy as np

from codec.evaluation.hub import HubMetric
from codec.evaluation.metric import Column, Pair, Settings, Undefined
from codec.evaluation.text import normalise, num_errors

SAMPLE_RATE = 16000
MAX_SECONDS = 30.0  # of recognisers that generate; they see no more
MIN_SECONDS = 0.1


class _Recogniser(HubMetric):
    """A recogniser of `transformers`, by connectionist temporal classification or by generation (Whisper)."""

    setting = "asr_model"
    example = "facebook/hubert-large-ls960-ft"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.processor = self.load("AutoProcessor", "a processor")
        self.is_generating = bool(self.load("AutoConfig", "a configuration").is_encoder_decoder)
        kind = "AutoModelForSpeechSeq2Seq" if self.is_generating else "AutoModelForCTC"
        self.model = self.load(kind, "a speech recogniser").float().eval().to(self.device)
        extractor = getattr(self.processor, "feature_extractor", self.processor)
        self.check_rate(getattr(extractor, "sampling_rate", None), SAMPLE_RATE)

    def transcribe(self, wav: np.ndarray) -> str:
        """Normalised text of a wave (T,) at 16 kHz; greedy, without a language model."""
        import torch

        inputs = self.processor(wav, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            if self.is_generating:
                tokens = self.model.generate(**inputs, do_sample=False, num_beams=1)
            else:
                tokens = self.model(**inputs).logits.argmax(dim=-1)
        return normalise(self.processor.batch_decode(tokens, skip_special_tokens=True)[0])

    def check_length(self, pair: Pair) -> None:
        """Refuse what the recogniser cannot see."""
        pair.require_seconds(MIN_SECONDS)
        if self.is_generating and pair.seconds > MAX_SECONDS:
            raise Undefined(f"lasts {pair.seconds:.1f} s, this recogniser takes at most {MAX_SECONDS:g} s")


class WordErrors(_Recogniser):
    """WER and CER: mistakes of a recogniser on the estimate, against what was said.

    Errors (Levenshtein) over words, or characters with single spaces, of the reference text, both normalised: case,
    punctuation and spacing fall away. A mean over files weighs each by its words or characters, as is usual: all errors
    over all words. The text is `<name>.normalized.txt` or `<name>.txt` beside the reference; a pair without one has no
    value. Includes the recogniser's own mistakes: compare with codecs scored by the same recogniser only.
    """

    name = "wer"
    columns = (
        Column("wer", "word error rate", "lower", weight="num_words"),
        Column("cer", "character error rate", "lower", weight="num_characters"),
        Column("num_words", "words", "", is_shown=False),
        Column("num_characters", "characters", "", is_shown=False),
    )

    def score(self, pair: Pair) -> dict[str, float]:
        if not pair.text or not (expected := normalise(pair.text)):
            raise Undefined("there is no text beside the reference")
        self.check_length(pair)
        return _rates(expected, self.transcribe(pair.at(SAMPLE_RATE)[1]), "")


class RelativeWordErrors(_Recogniser):
    """dWER and dCER: a recogniser's transcript of the estimate, against its transcript of the reference.

    As WER and CER, but needs no text, and leaves out the mistakes that the recogniser makes anyway: another number than
    WER, and not to be compared with one. A pair in whose reference nothing is recognised has no value.
    """

    name = "dwer"
    columns = (
        Column("dwer", "dWER (against the reference's transcript)", "lower", weight="num_dwords"),
        Column("dcer", "dCER (against the reference's transcript)", "lower", weight="num_dcharacters"),
        Column("num_dwords", "words recognised in the references", "", is_shown=False),
        Column("num_dcharacters", "characters recognised in the references", "", is_shown=False),
    )

    def score(self, pair: Pair) -> dict[str, float]:
        self.check_length(pair)
        reference, estimate = pair.at(SAMPLE_RATE)
        if not (expected := self.transcribe(reference)):
            raise Undefined("nothing is recognised in the reference")
        return _rates(expected, self.transcribe(estimate), "d")


def _rates(expected: str, found: str, prefix: str) -> dict[str, float]:
    words, characters = expected.split(), list(expected)
    return {
        f"{prefix}wer": num_errors(words, found.split()) / len(words),
        f"{prefix}cer": num_errors(characters, list(found)) / len(characters),
        f"num_{prefix}words": float(len(words)),
        f"num_{prefix}characters": float(len(characters)),
    }
