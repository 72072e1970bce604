"""A quantizer of one's own: codes are drawn from a softmax in training, and afterwards the likeliest is taken."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.limits import refuse, too_small
from codec.model.quantizer import LEAST_SIZES, Quantizer


@dataclass
class GumbelConfig:
    """Settings of `Gumbel`, with defaults; all but `kind` are its arguments."""

    kind: str = "gumbel"
    codebook_size: int = 4096
    codebook_dim: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        refuse(too_small(self, "quantizer", LEAST_SIZES | {1e-3: ("temperature",)}))


class Gumbel(Quantizer):
    """Gumbel-softmax quantization. Source: vq-wav2vec, arXiv:1910.05453, section 3.1."""

    def __init__(self, codebook_size: int, codebook_dim: int, temperature: float = 1.0):
        super().__init__(codebook_size, codebook_dim)
        self.temperature = temperature
        self.logits = nn.Linear(codebook_dim, codebook_size)
        self.codes = nn.Parameter(torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)

    def make_effective_codebook(self) -> Tensor:
        return self.codes.float()

    def search(self, vectors: Tensor) -> Tensor:
        return self.logits(vectors).argmax(1)

    def learn(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = F.gumbel_softmax(self.logits(vectors), self.temperature, hard=True)  # (N, K), one-hot
        quantized = chosen @ self.codes
        return chosen.argmax(1), quantized, self.loss(vectors, quantized)

    def loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        usage = self.logits(vectors).softmax(1).mean(0)  # (K,), as even as can be
        return math.log(self.codebook_size) + (usage * usage.clamp(min=1e-20).log()).sum()


KIND = GumbelConfig, Gumbel
