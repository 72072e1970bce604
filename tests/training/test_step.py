"""One step: what it minimises, what each loss is given, and how far the optimizers go."""

import pytest
import torch
from torch import Tensor

from codec.config import compose
from codec.training.data import Batch
from codec.training.losses import limit_band
from codec.training.pitch import pitch_loss
from codec.training.trainer import Trainer

SOUND = ("mel", "pitch", "loudness", "convergence", "disturbance", "intelligibility")
WEIGHTS = {name: weight for weight, name in enumerate((*SOUND, "usage", "adversarial", "feature_matching"), 2)}
COMMITMENT = 0.5
STILL = ["training.learning_rate=1e-30", "adversary.learning_rate=1e-30"]  # weights stay as they are, bit for bit
ALL_AT_ONCE = ["training.quantizer_start=-1", "training.adversarial_start=0", "data.window_seconds=0.5"]


def test_a_step_minimises_the_weighted_sum_of_all_losses(tiny_run: list[str]):
    """The sum by its value; and by its gradient, which is the weighted sum of what each loss alone would give."""
    trainer = Trainer(compose([*tiny_run, *ALL_AT_ONCE, *STILL, "training.clip_norm=1e9", "data.batch_size=2"]))
    batch = trainer.sampler.batch(0)

    def step(commitment: float, weights: dict[str, float]) -> tuple[dict[str, Tensor], Tensor]:
        for name in WEIGHTS:
            setattr(trainer.settings, f"{name}_weight", weights.get(name, 0.0))
        trainer.commitment_weight = commitment
        scalars = trainer.train_step(batch)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.trained]
        return scalars, torch.cat([gradient.flatten().double() for gradient in gradients])

    scalars, gradient = step(COMMITMENT, WEIGHTS)
    total = COMMITMENT * scalars["loss/quantizer"] + sum(w * scalars[f"loss/{name}"] for name, w in WEIGHTS.items())
    assert float(scalars["loss/total"]) == pytest.approx(float(total), rel=1e-5)
    expected = COMMITMENT * step(1.0, {})[1]
    for name, weight in WEIGHTS.items():
        alone = step(0.0, {name: 1.0})[1]
        assert alone.any(), name
        expected += weight * alone
    assert (gradient - expected).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("start", [0, 8], ids=["a new run", "without the optimizers' memory"])
def test_rates_rise_stay_and_fall_to_their_floor(tiny_run: list[str], start: int):
    schedule = ["steps=20", "warmup_steps=4", "decay_steps=10", "final_rate=0.3", "learning_rate=1e-3"]
    rates = ["training.quantizer_rate=5", "adversary.learning_rate=7e-3"]
    short = ["data.window_seconds=0.05", "training.adversarial_start=1000"]
    trainer = Trainer(compose([*tiny_run, *(f"training.{setting}" for setting in schedule), *rates, *short]))
    trainer.optimizer_start = start
    batch = trainer.sampler.batch(0)
    for step in range(start, 20):
        trainer.step = step
        trainer.train_step(batch)
        factor = min(1, (step - start + 1) / 4) * max(min(1, (20 - step) / 10), 0.3)
        rates = [group["lr"] for optimizer in (trainer.optimizer, trainer.adversary.optimizer)
                 for group in optimizer.param_groups]  # fmt: skip
        assert rates == pytest.approx([1e-3 * factor, 5e-3 * factor, 7e-3 * factor])


def test_a_step_is_that_of_adamw_with_the_clipped_gradient(tiny_run: list[str]):
    """Of its first step the moments cancel out but for the sign; they themselves tell the decay rates."""
    rates = ["learning_rate=1e-2", "quantizer_rate=3", "betas=[0.6,0.95]", "weight_decay=0.5", "warmup_steps=0"]
    settings = [*ALL_AT_ONCE, *(f"training.{rate}" for rate in rates), "training.decay_steps=0"]
    trainer = Trainer(compose([*tiny_run, *settings, "training.clip_norm=1e-3"]))
    of_codes = {id(parameter) for parameter in trainer.codec.quantizer.code_parameters()}
    before = [parameter.detach().clone() for parameter in trainer.trained]
    scalars = trainer.train_step(trainer.sampler.batch(0))
    assert scalars["gradient_norm/codec"] > 1e-3
    norm = torch.stack([p.grad.norm() for p in trainer.trained if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert id(trainer.codec.quantizer.projection.weight) in of_codes
    for parameter, old in zip(trainer.trained, before, strict=True):
        if (gradient := parameter.grad) is None:
            continue
        rate, decay = (3e-2, 0.0) if id(parameter) in of_codes else (1e-2, 0.5)
        expected = old * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
        moments = trainer.optimizer.state[parameter]
        torch.testing.assert_close(moments["exp_avg"], 0.4 * gradient, rtol=1e-4, atol=0)
        torch.testing.assert_close(moments["exp_avg_sq"], 0.05 * gradient.square(), rtol=1e-4, atol=1e-40)


def test_pitch_is_compared_with_the_original_and_usage_is_that_of_what_codes_stand_for(tiny_run: list[str]):
    trainer = Trainer(compose([*tiny_run, *ALL_AT_ONCE]))
    wav, narrow = trainer.sampler.batch(0).wav, torch.full((4,), 300.0)
    with torch.no_grad():
        trainer.codec.quantizer.expect.weight.normal_(std=0.1)  # at first it expects nothing, and all is left to codes
        latent = trainer.codec.encoder(wav)
        output = trainer.codec.quantizer(latent)
        usage = trainer.codec.quantizer.usage_loss(trainer.codec.quantizer.remainder(latent, output.codes))
        _, log_pitch = trainer.codec.decoder.synthesize(output.quantized)
    scalars = trainer.train_step(Batch(wav, narrow))
    assert float(scalars["loss/usage"]) == pytest.approx(float(usage), rel=1e-4)
    pitch = pitch_loss(log_pitch, wav, trainer.codec.decoder.config)
    assert float(scalars["loss/pitch"]) == pytest.approx(float(pitch), rel=1e-4)


def test_only_the_band_that_a_recording_has_is_judged(tiny_run: list[str]):
    narrow = torch.full((4,), 2000.0)
    losses = []
    for bandwidth, noise in ((None, 0.0), (2 * narrow * 3, 0.0), (narrow, 0.0), (narrow, 0.1)):
        trainer = Trainer(compose([*tiny_run, "training.adversarial_start=0"]))
        wav = trainer.sampler.batch(0).wav
        top = noise * torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
        heard = wav + top - limit_band(top, narrow, 24000)  # noise beyond the band, which the encoder hears too
        with torch.no_grad():
            trainer.codec.encoder.output.weight.zero_()  # so that it does not tell the decoder
        scalars = trainer.train_step(Batch(heard, bandwidth))
        losses.append([float(scalars[f"loss/{name}"]) for name in ("mel", "discriminator", "feature_matching")])
    everything, whole_band, narrow_band, with_noise = losses
    assert whole_band == pytest.approx(everything, rel=1e-3)
    assert narrow_band[0] < 0.8 * everything[0]
    assert with_noise == pytest.approx(narrow_band, rel=1e-2)


def test_discriminators_get_the_same_stretch_of_both_sounds(tiny_run: list[str]):
    trainer = Trainer(compose([*tiny_run, "training.adversarial_seconds=0.15"]))
    samples = torch.arange(4800.0).expand(4, 1, -1)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        real, fake = trainer._crop(samples, samples + 0.5)
        starts.add(start := int(real[0, 0, 0]))
        assert torch.equal(real, samples[..., start : start + 3600])
        assert torch.equal(fake, real + 0.5)
    assert min(starts) < 300
    assert max(starts) > 900
