"""What in the logged values of a run is alarming: thresholds, and a watch that speaks up once per occasion.

Knows names and numbers only, so that a run can be judged while it trains and afterwards, without torch.
"""

import math
from dataclasses import dataclass, field

COLLAPSE = 0.5
"""Perplexity below this share of the best so far: the codebook is collapsing."""
FEW_CODES = 0.02
"""Perplexity below this share of what the recent frames could reach: hardly any codes are in use."""
WINNING = 0.9
"""Lead of the discriminators from which they give the codec little to learn from; 1 means that they never err."""
MEMORY = 0.98
"""What remains of a code's count when the next batch is counted."""
PATIENCE = 3
"""Logged values in a row that must be alarming before an alarm is raised."""


def attainable_perplexity(codebook_size: int, num_frames: float) -> float:
    """What the perplexity of recent codes could be at most, with batches of this many frames.

    Older batches fade by `MEMORY`; if each frame had a code of its own, the entropy of what remains would be
    nearly 1 + log(num_frames / (1 - MEMORY)).
    """
    return min(codebook_size, math.e * num_frames / (1 - MEMORY))


@dataclass
class Watch:
    """Looks at every logged value of a run.

    Args:
        attainable_perplexity: as the function of that name gives it.
        undecided_loss: the discriminators' loss when they tell nothing apart.
    """

    attainable_perplexity: float
    undecided_loss: float
    best_perplexity: float = 0.0
    _alarming: dict[str, int] = field(default_factory=dict)

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        """What follows from logged values: how far the discriminators are ahead, 0 for undecided, 1 for never wrong."""
        if "loss/discriminator" not in values:
            return {}
        return {"discriminators/lead": 1 - values["loss/discriminator"] / self.undecided_loss}

    def alarms(self, values: dict[str, float]) -> list[str]:
        """One sentence for each value that has become alarming."""
        sentences = []
        for judge in (self._collapse, self._few_codes, self._winning):
            sentence, name = judge(values), judge.__name__
            self._alarming[name] = self._alarming.get(name, 0) + 1 if sentence else 0
            if sentence and self._alarming[name] == PATIENCE:
                sentences.append(sentence)
        return sentences

    def _collapse(self, values: dict[str, float]) -> str:
        perplexity = values.get("codes/perplexity", 0.0)
        self.best_perplexity = max(self.best_perplexity, perplexity)
        if not 0 < perplexity < COLLAPSE * self.best_perplexity:
            return ""
        return f"the codebook is collapsing: perplexity {perplexity:.0f}, it was {self.best_perplexity:.0f}"

    def _few_codes(self, values: dict[str, float]) -> str:
        perplexity = values.get("codes/perplexity", 0.0)
        are_used = values.get("codes/utilisation", 0.0) > 0
        if not (are_used and perplexity < FEW_CODES * self.attainable_perplexity):
            return ""
        return f"hardly any codes are in use: perplexity {perplexity:.0f} of {self.attainable_perplexity:.0f}"

    def _winning(self, values: dict[str, float]) -> str:
        lead = values.get("discriminators/lead", 0.0)
        if lead <= WINNING:
            return ""
        loss = values["loss/discriminator"]
        return f"the discriminators are winning: their loss is {loss:.3g}, {self.undecided_loss:.3g} would be undecided"
