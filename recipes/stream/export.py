"""The decoder compiled ahead of time: programs that turn codes into sound step by step, with no Python in them.

    python recipes/stream/export.py OUTPUT [--model stream] [--codes 1] [--batch] [--threads 1]

OUTPUT/first.pt2 takes the first codes of a signal, (1, n) int64, n = --codes, and OUTPUT/next.pt2 further ones and all
tensors of memory that the call before gave. Both give the samples (1, n * hop_length) and then the new memory. With
--batch they take any number B >= 2 of signals at once; every tensor has a row for each.

`torch._inductor.aoti_load_package` loads them, and in C++ `torch::inductor::AOTIModelPackageLoader`. A code outside
[0, K) is a RuntimeError. Other shapes and types than these give wrong sound or end the process, unless they are checked
too, with AOTI_RUNTIME_CHECK_INPUTS=1 in the environment.

Needs a C++ compiler. In the end the programs are compared with `codec.StreamDecoder`, and timed beside it.
"""

import argparse
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch._inductor
from torch import Tensor, nn

import codec
from codec.cli import exit_code, positive
from codec.errors import CodecError, first_line
from codec.output import open_output

NUM_STEPS = 100


def main() -> None:
    """Export, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder")
    parser.add_argument("--model", default="stream")
    parser.add_argument("--codes", type=positive, default=1, help="of each signal in a step")
    parser.add_argument("--batch", action="store_true", help="for two signals and more instead of one")
    parser.add_argument("--threads", type=positive, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch warns of its own code, and of operations that it calls as they are
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    model = codec.load(arguments.model)
    exported = programs(model, arguments.codes, arguments.batch)
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"{name}.pt2" for name in ("first", "next")]
    for path, program in zip(paths, exported, strict=True):
        compile_to(path, program)
    first, following = (torch._inductor.aoti_load_package(str(path)) for path in paths)
    for num_signals in (2, 4, 32) if arguments.batch else (1,):
        compare(model, first, following, num_signals, arguments.codes)


class Step(nn.Module):
    """A step of `StreamDecoder` as a function of all that it depends on: codes (B, n), and what was remembered.

    Gives the samples (B, n * hop_length), and what is to be remembered, (B, ...) each.
    """

    def __init__(self, model: codec.Codec):
        super().__init__()
        self.model = model
        stream = codec.StreamDecoder(model)
        stream.push(torch.zeros(1, dtype=torch.int64))
        modules = dict(model.named_modules())
        self.layout = [(modules[name], len(tensors)) for name, tensors in stream.state_dict().items()]

    def forward(self, codes: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(memory)
        state = {module: tuple(next(remaining) for _ in range(count)) for module, count in self.layout if memory}
        wav = self.model.decoder(self.model.quantizer.lookup(codes, state), state)
        return wav[:, 0], *(tensor for module, _ in self.layout for tensor in state[module])


@torch.no_grad()
def programs(model: codec.Codec, num_codes: int, is_batch: bool) -> list[torch.export.ExportedProgram]:
    """The first step of signals and a further one, for the given number of codes of each."""
    step = Step(model)
    codes = torch.zeros(2 if is_batch else 1, num_codes, dtype=torch.int64)
    _, *memory = step(codes)
    sizes = {0: torch.export.Dim("num_signals", min=2)} if is_batch else None
    return [
        torch.export.export(step, (codes,), dynamic_shapes={"codes": sizes}),
        torch.export.export(step, (codes, *memory), dynamic_shapes={"codes": sizes, "memory": (sizes,) * len(memory)}),
    ]


def compile_to(path: Path, program: torch.export.ExportedProgram) -> None:
    """Compile a program; the package appears at `path` when it is complete."""
    package = io.BytesIO()
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=package)
    except RuntimeError as error:
        raise CodecError(f"the decoder cannot be compiled here ({first_line(error)}); install g++") from error
    with open_output(path, overwrite=True) as stream:
        stream.write(package.getvalue())


def compare(
    model: codec.Codec,
    first: Callable[..., list[Tensor]],
    following: Callable[..., list[Tensor]],
    num_signals: int,
    num_codes: int,
) -> None:
    """Decode the same codes with programs and stream, in turns, and print how far apart and how fast they are."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(model.codebook_size, (NUM_STEPS, num_signals, num_codes), generator=generator)
    stream, memory = codec.StreamDecoder(model), []
    differences, of_program, of_stream = [], [], []
    for number, some in enumerate(codes):
        started = time.perf_counter()
        wav, *memory = following(some, *memory) if number else first(some)
        of_program.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = stream.push(some)
        of_stream.append(time.perf_counter() - started)
        differences.append(((wav - expected).abs().max() / expected.abs().max()).item())
    mine, theirs = median(of_program), median(of_stream)
    print(
        f"{num_signals} x {num_codes} codes: program {1000 * mine:.1f} ms, StreamDecoder {1000 * theirs:.1f} ms, "
        f"ratio {theirs / mine:.1f}, samples differ by at most {max(differences):.1e} of the largest"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
