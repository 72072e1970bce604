"""Whether a codec understands its own output: encode, decode, encode again."""

import numpy as np


def agreement(codes: np.ndarray, again: np.ndarray) -> float:
    """Share of frames whose code is the same after decoding and encoding once more, 0 to 1.

    Frames are compared where they stand; frames that only one of the two has count as different. What is encoded again
    is the written 16-bit file. A language model trained on codes wants this high.
    """
    longest = max(len(codes), len(again))
    shortest = min(len(codes), len(again))
    return float(np.count_nonzero(codes[:shortest] == again[:shortest]) / longest) if longest else 1.0
