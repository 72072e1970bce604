"""Time and memory of one training step of the published 4096-code recipe: our schedule beside the published one.

Both run the same networks (codec, and the recipe's own three discriminator parts) on the same clips, each in a process
of its own, one after the other, so that the ratio comes from one run on one machine:

    python recipes/libritts/benchmark_step.py                      # batch 2 x 1 s, float32, all cores
    python recipes/libritts/benchmark_step.py --device cuda --precision bf16 --batch 16 --seconds 3 --peak-tflops 989

The published schedule, step by step: the generator's update runs every discriminator on real and fake clips with all
gradients on (only the DAC-style part detaches its real features), and throws the discriminators' gradients away; the
discriminators' update runs them all on both again; the weight average covers codec and discriminators. Ours is
`codec train recipe=paper` with all that it counts and checks. It differs in four things, none of which changes the
updates: one run of each discriminator serves both roles, with only the gradients that are used; fused optimizers; the
average covers the codec only; freed memory stays with the process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import soundfile
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codec.cli import exit_code, not_negative, positive, whole_number
from codec.config import compose
from codec.model.codec import Codec
from codec.model.weights import choose_device
from codec.training.data import Batch
from codec.training.discriminators import Discriminators
from codec.training.losses import ADVERSARIAL_LOSSES, SpectralLoss
from codec.training.memory import keep_freed_memory
from codec.training.start import commitment_weight
from codec.training.trainer import Trainer

SAMPLE_RATE = 24000
SCHEDULES = ("published", "ours")


def published_step(batch: Tensor, device: torch.device, autocast: Callable) -> Callable[[], None]:
    """The published schedule, written out plainly."""
    paper = compose(["recipe=paper"])
    training, adversary = paper.training, paper.adversary
    codec = Codec(paper.model).to(device)
    codec.quantizer.checks_values = False  # as published, and as in training
    discriminators = Discriminators(adversary.discriminators).to(device)
    spectral_loss = SpectralLoss(paper.mel, SAMPLE_RATE).to(device)
    generator_optimizer = torch.optim.Adam(codec.parameters(), training.learning_rate, training.betas)
    discriminator_optimizer = torch.optim.Adam(discriminators.parameters(), adversary.learning_rate, adversary.betas)
    trained = [*codec.parameters(), *discriminators.parameters()]
    averages = [parameter.detach().clone() for parameter in trained]

    def generator_part(fake: Tensor) -> Tensor:
        on_real, on_fake = discriminators(batch), discriminators(fake)
        total = torch.zeros((), device=device)
        for name, settings in discriminators.config.groups().items():
            loss = ADVERSARIAL_LOSSES[settings.loss]
            share = 1.0 if settings.reduction == "sum" else 1.0 / len(on_fake[name])
            for real, estimate in zip(on_real[name], on_fake[name], strict=True):
                total = total + share * loss.generator(estimate.logits)
                real_maps, fake_maps = ([*output.feature_maps, output.logits] for output in (real, estimate))
                if name.startswith("dac"):
                    real_maps = [m.detach() for m in real_maps]
                chosen = slice(int(settings.skip_first_map), None if settings.match_logits else -1)
                for real_map, fake_map in zip(real_maps[chosen], fake_maps[chosen], strict=True):
                    total = total + share * (real_map - fake_map).abs().mean()
        return total

    def discriminator_part(fake: Tensor) -> Tensor:
        on_real, on_fake = discriminators(batch), discriminators(fake)
        total = torch.zeros((), device=device)
        for name, settings in discriminators.config.groups().items():
            loss = ADVERSARIAL_LOSSES[settings.loss]
            share = 1.0 if settings.reduction == "sum" else 1.0 / len(on_fake[name])
            for real, estimate in zip(on_real[name], on_fake[name], strict=True):
                total = total + share * loss.discriminator(real.logits, estimate.logits)
        return total

    def step() -> None:
        with autocast():
            output = codec(batch)
            loss = generator_part(output.wav) + training.mel_weight * spectral_loss(batch, output.wav).mel
            loss = loss + commitment_weight(paper) * output.quantizer_loss
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        with autocast():
            loss = discriminator_part(output.wav.detach())
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(averages, trained, strict=True):
                average.lerp_(parameter, 1 - training.ema_decay)

    return step


def our_step(batch: Tensor, options: argparse.Namespace) -> Callable[[], None]:
    """A step of `codec train recipe=paper`, all of it."""
    keep_freed_memory()
    num_clips, _, num_samples = batch.shape
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder, "noise.wav"), batch.flatten().cpu().numpy(), SAMPLE_RATE)
        settings = (
            *("recipe=paper", f"training.device={options.device}", f"training.precision={options.precision}"),
            *(f"data.train={folder}", f"data.cache={folder}/cache", f"training.run={folder}/run"),
            *(f"data.batch_size={num_clips}", f"data.window_seconds={num_samples / SAMPLE_RATE}"),
            f"training.adversarial_seconds={num_samples / SAMPLE_RATE}",
        )
        trainer = Trainer(compose(list(settings)))
    return lambda: trainer.train_step(Batch(batch, None))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Build one schedule, warm it up, time it; seconds per step and peak memory in GiB."""
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    batch = 0.1 * torch.randn(options.batch, 1, int(options.seconds * SAMPLE_RATE)).to(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    step = published_step(batch, device, autocast) if options.schedule == "published" else our_step(batch, options)
    with FlopCounterMode(display=False) as counter:  # also the warm-up
        step()
    times, processor_times = [], []
    for _ in range(options.steps):
        start, processor_start = time.monotonic(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - start)
        processor_times.append(time.process_time() - processor_start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    return {
        "fastest": min(times),
        "median": median(times),
        "processor": min(processor_times),
        "peak": peak / 2**30,
        "tflop": counter.get_total_flops() / 1e12,
    }


def main() -> None:
    """Measure both schedules, each in a fresh process, and print them with their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, default=2, help="clips per step (default 2)")
    parser.add_argument("--seconds", type=not_negative, default=1.0, help="length of a clip (default 1)")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps after one warm-up (default 3)")
    parser.add_argument("--threads", type=whole_number, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument(
        "--peak-tflops", type=not_negative, help="the device's peak, to print the share that is reached"
    )
    parser.add_argument("--schedule", choices=SCHEDULES, help="measure only this one, in this process, and print JSON")
    options = parser.parse_args()
    if options.schedule:
        print(json.dumps(measure(options)))
        return
    results = {}
    print(f"{'schedule':<10} {'fastest s':>10} {'median s':>10} {'CPU s':>8} {'peak GiB':>9} {'audio s/s':>10}")
    for schedule in SCHEDULES:
        command = [sys.executable, __file__, *sys.argv[1:], "--schedule", schedule]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:  # it has said why
            sys.exit(done.returncode)
        result = results[schedule] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{schedule:<10} {result['fastest']:>10.3f} {result['median']:>10.3f} {result['processor']:>8.3f} "
            f"{result['peak']:>9.2f} {options.batch * options.seconds / result['median']:>10.2f}"
        )
    ours, published = results["ours"], results["published"]
    processor = published["processor"] / ours["processor"]  # what counts on a machine that others use too
    print(
        f"ours is {published['fastest'] / ours['fastest']:.2f} x as fast"
        f" (medians {published['median'] / ours['median']:.2f} x, processor {processor:.2f} x)"
        f" with {ours['peak'] / published['peak']:.2f} x the peak memory"
        f" and {ours['tflop'] / published['tflop']:.2f} x the arithmetic ({ours['tflop']:.3f} TFLOP)"
    )
    if options.peak_tflops:
        share = ours["tflop"] / ours["median"] / options.peak_tflops
        print(f"ours reaches {ours['tflop'] / ours['median']:.2f} TFLOP/s, {100 * share:.1f} % of the stated peak")


if __name__ == "__main__":
    sys.exit(exit_code(main))
