"""The adversary of the codec: discriminators, their optimizer and both directions of the loss, as one object.

A step is `joint_losses`, in which a single run of each discriminator serves both sides, then `step`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize

from codec.errors import ModelError
from codec.limits import not_positive, refuse, too_small
from codec.model.weights import check_fit, read_tensors
from codec.output import open_output
from codec.training import losses
from codec.training.discriminators import DiscriminatorOutput, Discriminators, DiscriminatorsConfig, GroupConfig
from codec.training.optimizer import adamw, wrong_betas


class JointLosses(NamedTuple):
    """Both sides' losses of one step; scalars, summed over groups. Only `generator` carries a gradient."""

    generator: Tensor
    """Weighted sum of the next two, to be added to the generator's other losses."""
    adversarial: Tensor
    feature_matching: Tensor
    discriminator: Tensor


@dataclass
class AdversaryConfig:
    """Discriminators and how they are optimized."""

    discriminators: DiscriminatorsConfig = field(default_factory=DiscriminatorsConfig)
    learning_rate: float = 2e-4
    """AdamW's; > 0."""
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    """AdamW's decay rates of the gradient's first and second moment, in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's; >= 0. With weight normalisation it would mostly change the effective learning rate."""
    max_gradient_norm: float = 10.0
    """Longer gradients, over all discriminators together, are scaled down to this; > 0."""

    def __post_init__(self) -> None:
        self.betas = list(self.betas)
        refuse(
            [
                *not_positive(self, "adversary", ("learning_rate", "max_gradient_norm")),
                *wrong_betas(self.betas, "adversary.betas"),
                *too_small(self, "adversary", {0: ("weight_decay",)}),
            ]
        )


class Adversary:
    """Discriminators that learn to tell real from decoded speech, and teach the generator by it.

    All waveforms are (B, 1, T) float32; both sides may be the same random crops of longer clips. Run the losses under
    autocast for 16-bit arithmetic; spectra and the losses themselves stay in float32.

    Args:
        config: discriminators and optimizer.
        device: where the discriminators live.
        is_recorded: whether steps of the optimizer are to be recorded on a GPU.
    """

    def __init__(self, config: AdversaryConfig, device: str | torch.device = "cpu", is_recorded: bool = False) -> None:
        self.config = config
        self.discriminators = Discriminators(config.discriminators).to(device)
        self.has_learned = False
        """Whether the weights are those of an earlier training."""
        self.optimizer = adamw(
            self.discriminators.parameters(), config.learning_rate, config.betas, config.weight_decay, is_recorded
        )

    def undecided_loss(self) -> float:
        """The discriminators' loss if they tell nothing apart."""
        members = self.discriminators.members()
        return sum(share * losses.ADVERSARIAL_LOSSES[group.loss].undecided for group, share, _ in members)

    def joint_losses(
        self, real: Tensor, fake: Tensor, adversarial_weight: float = 1.0, feature_matching_weight: float = 1.0
    ) -> JointLosses:
        """Both roles of one step from a single run of each discriminator, one discriminator at a time.

        To the generator the discriminators are constants, and to them both waveforms are. Each discriminator's
        activations are freed before the next one runs, so peak memory is that of the largest, not of all. Gradients of
        the discriminators are set on return; call `clip_gradients` and `step`.

        Args:
            real: (B, 1, T).
            fake: (B, 1, T), the generator's output.
            adversarial_weight: of the adversarial part in the generator's loss.
            feature_matching_weight: of the feature matching part in the generator's loss.

        Returns:
            The losses. The gradient of `generator` with respect to `fake` is already known; its `backward` only hands
            it on to the generator.
        """
        self.optimizer.zero_grad(set_to_none=True)
        weights = (adversarial_weight, feature_matching_weight)
        leaf = fake.detach().requires_grad_()
        parts = [
            self._joint_losses_of(*member, real.detach(), leaf, weights) for member in self.discriminators.members()
        ]
        adversarial, matching, discriminator = torch.stack(parts).sum(dim=0)
        value = adversarial_weight * adversarial + feature_matching_weight * matching
        return JointLosses(_KnownGradient.apply(fake, value, leaf.grad), adversarial, matching, discriminator)

    def _joint_losses_of(
        self,
        group: GroupConfig,
        share: float,
        member: nn.Module,
        real: Tensor,
        fake: Tensor,
        weights: tuple[float, float],
    ) -> Tensor:
        """One discriminator's adversarial, feature matching and own loss: (3,), without a graph.

        The first two add to the gradient of `fake`, a leaf, and the third to those of the discriminator. A method of
        its own so that all activations are freed on return.
        """
        with parametrize.cached():
            output_real, output_fake = member(real), member(fake)
        loss = losses.ADVERSARIAL_LOSSES[group.loss]
        adversarial = share * loss.generator(output_fake.logits)
        matching = share * losses.feature_matching_loss(_maps(group, output_real), _maps(group, output_fake))
        discriminator = share * loss.discriminator(output_real.logits, output_fake.logits)
        wanted = weights[0] * adversarial + weights[1] * matching
        wanted.backward(inputs=[fake], retain_graph=True)
        discriminator.backward(inputs=list(member.parameters()))
        return torch.stack([adversarial, matching, discriminator]).detach()

    def clip_gradients(self) -> Tensor:
        """Clip the discriminators' gradients and return their norm before, a scalar on the device."""
        return clip_grad_norm_(self.discriminators.parameters(), self.config.max_gradient_norm, foreach=True)

    def step(self, is_skipped: Tensor) -> None:
        """Update the discriminators, unless a scalar on their device is 1, and free the gradients."""
        self.optimizer.found_inf = is_skipped  # type: ignore[attr-defined]  # read by fused updates
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save_weights(self, path: Path) -> None:
        """Write the discriminators' weights, in 16 bit, for fine-tuning by others; the file appears complete or not.

        Raises:
            OSError: the system refuses, for example because the disk is full; what was there stays.
        """
        state = self.discriminators.state_dict()
        tensors = {key: value.to("cpu", torch.float16).contiguous() for key, value in state.items()}
        with open_output(path, overwrite=True) as stream:
            stream.write(safetensors.torch.save(tensors))

    def load_weights(self, path: Path) -> None:
        """Read the discriminators' weights from `save_weights`' file.

        Raises:
            ModelError: the file cannot be read, is damaged, or belongs to other discriminators.
        """
        try:
            state = read_tensors(path)
        except ModelError as error:
            raise ModelError(f"{error}, or remove it to begin with new discriminators") from error
        complaint = f"{path}: made with other discriminator settings (leave `adversary` out to take them over)"
        check_fit(self.discriminators.state_dict(), state, complaint)
        self.discriminators.load_state_dict(state)
        self.has_learned = True


def _maps(group: GroupConfig, output: DiscriminatorOutput) -> list[Tensor]:
    """What takes part in feature matching."""
    return output.feature_maps[int(group.skip_first_map) :] + ([output.logits] if group.match_logits else [])


class _KnownGradient(torch.autograd.Function):
    """A scalar of given value whose gradient with respect to `wav` is given too."""

    @staticmethod
    def forward(ctx: Any, wav: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None
