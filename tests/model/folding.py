"""Weight normalisation folded into the weights, as those who publish a model for inference do."""

from torch import nn
from torch.nn.utils import parametrize


def fold_weight_norm(module: nn.Module) -> None:
    """Replace length and direction by the weight they stand for, everywhere below `module`."""
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
