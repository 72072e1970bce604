"""How much of the codebook is used, over all codes of a data set."""

import math
from typing import Any

import numpy as np


class CodeCounter:
    """Counts codes, and says how evenly they are used.

    Utilisation is the share of the K codes that occur at least once; perplexity exp H and entropy H / log 2 are of the
    distribution of single codes, so a code stream that is entropy coded without context needs entropy x frame rate.
    All three grow with the amount of data until there are many codes per entry, so their number is told beside them.
    Source: utilisation as SimVQ counts it, over the whole test split.
    """

    def __init__(self, codebook_size: int):
        self.counts = np.zeros(codebook_size, dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Count codes (N,)."""
        self.counts += np.bincount(codes, minlength=len(self.counts))

    def statistics(self) -> dict[str, Any]:
        """num_codes, codebook_size, utilisation (0 to 1), perplexity, entropy (bits), entropy_share (of log2 K)."""
        total = int(self.counts.sum())
        if not total:
            return {"num_codes": 0, "codebook_size": len(self.counts)}
        shares = self.counts[self.counts > 0] / total
        entropy = max(0.0, float(-(shares * np.log2(shares)).sum()))
        bits = math.log2(len(self.counts))
        return {
            "num_codes": total,
            "codebook_size": len(self.counts),
            "utilisation": float((self.counts > 0).mean()),
            "perplexity": float(2**entropy),
            "entropy": entropy,
            "entropy_share": entropy / bits if bits else 0.0,
        }
