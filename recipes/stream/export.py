"""The decoder compiled ahead of time: programs that turn codes into sound step by step, with no Python in them.

    python recipes/stream/export.py OUTPUT [--onnx] [--model stream] [--codes 1] [--batch] [--threads 1]

OUTPUT/first.pt2 takes the first codes of a signal, (1, n) int64, n = --codes, and OUTPUT/next.pt2 further ones and all
tensors of memory that the call before gave. Both give the samples (1, n * hop_length) and then the new memory. With
--batch they take any number B >= 2 of signals at once; every tensor has a row for each.

`torch._inductor.aoti_load_package` loads them, and in C++ `torch::inductor::AOTIModelPackageLoader`. A code outside
[0, K) is a RuntimeError. Other shapes and types than these give wrong sound or end the process, unless they are checked
too, with AOTI_RUNTIME_CHECK_INPUTS=1 in the environment.

With --onnx they are OUTPUT/first.onnx and OUTPUT/next.onnx, of opset 20. Their inputs are `codes`, memory_0, memory_1
..., their outputs `wav`, new_memory_0, new_memory_1 ... in the same order; the files state all shapes and types
(float32, float64, int64). ONNX Runtime refuses others, and codes of K and more; codes of -K to -1 it counts from the
end, so cut off the -1 that `Codec.encode` pads with. What the pitch depends on stays in float64, so the sound does not
drift away.

Compiling needs g++, --onnx the packages onnxscript and onnxruntime (tried: torch 2.13, onnxscript 0.7.2, onnxruntime
1.32). In the end the programs are compared with `codec.StreamDecoder`, and timed beside it. Encoding is not exported,
because of its search for codes.
"""

import argparse
import importlib.util
import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch._inductor
import torch.nn.functional as F
from torch import Tensor, nn

import codec
from codec.cli import exit_code, positive
from codec.errors import CodecError, first_line
from codec.output import open_output

NUM_STEPS = 100
NUM_SINES = 28

Program = Callable[..., list[Tensor]]


def main() -> None:
    """Export, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder")
    parser.add_argument("--onnx", action="store_true", help="for ONNX Runtime instead of torch")
    parser.add_argument("--model", default="stream")
    parser.add_argument("--codes", type=positive, default=1, help="of each signal in a step")
    parser.add_argument("--batch", action="store_true", help="for two signals and more instead of one")
    parser.add_argument("--threads", type=positive, default=1)
    arguments = parser.parse_args()
    missing = [name for name in ("onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if arguments.onnx and missing:
        raise CodecError(f"--onnx needs {' and '.join(missing)}; pip install {' '.join(missing)}")
    warnings.simplefilter("ignore")  # torch warns of its own code, and of operations that it calls as they are
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    model = codec.load(arguments.model)
    exported = programs(model, arguments.codes, arguments.batch)
    if arguments.onnx:
        suffix, convert, load = "onnx", onnx_file, load_onnx
    else:
        suffix, convert, load = "pt2", package, torch._inductor.aoti_load_package
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"{name}.{suffix}" for name in ("first", "next")]
    for path, program in zip(paths, exported, strict=True):
        data = convert(program)
        with open_output(path, overwrite=True) as stream:
            stream.write(data)
    first, following = (load(str(path)) for path in paths)
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


def package(program: torch.export.ExportedProgram) -> bytes:
    """A program compiled."""
    stream = io.BytesIO()
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=stream)
    except RuntimeError as error:
        raise CodecError(f"the decoder cannot be compiled here ({first_line(error)}); install g++") from error
    return stream.getvalue()


def onnx_file(program: torch.export.ExportedProgram) -> bytes:
    """A program as an ONNX file, which ONNX Runtime can run."""
    from onnxscript import ir, opset20

    def scalar_tensor(s: float, dtype: int):  # torch's own rounds numbers to float32 first
        return opset20.Constant(value=ir.tensor(s, dtype=ir.DataType(dtype)))

    converted = torch.onnx.export(
        for_onnx_runtime(program),
        dynamo=True,
        verbose=False,
        opset_version=opset20.version,  # the first one with GELU
        output_names=["wav", *(f"new_memory_{i}" for i in range(len(program.graph_signature.user_outputs) - 1))],
        custom_translation_table={torch.ops.aten.scalar_tensor.default: scalar_tensor},
    )
    return converted.model_proto.SerializeToString()


def for_onnx_runtime(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same without what ONNX Runtime lacks, convolution and GELU in float64, and what it rounds coarsely."""
    operations = torch.ops.aten
    return program.run_decompositions(
        {
            operations.conv2d.default: conv2d,
            operations.gelu.default: gelu,
            operations.fft_rfft.default: rfft,
            operations.fft_irfft.default: irfft,
        }
    )


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
    """A convolution of width 1 over a single row, as all in float64 are: (B, C, 1, N) -> (B, D, 1, N)."""
    if x.dtype != torch.float64:
        return NotImplemented
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def gelu(x: Tensor) -> Tensor:
    """GELU in float64, within 1e-14.

    erf(y) = 2 / pi * (y / 5 + sum over n >= 1 of exp(-(n / 5)^2) / n * sin(2 n y / 5)) where |y| < 2.5 pi.

    Source: A. J. Strecok, On the Calculation of the Inverse of the Error Function, Math. Comp. 22 (1968).
    """
    if x.dtype != torch.float64:
        return NotImplemented
    y = x.clamp(-9, 9) * math.sqrt(0.5)  # beyond, erf is -1 or 1 in all bits
    n = torch.arange(1, NUM_SINES + 1, dtype=x.dtype)
    series = torch.sin(y[..., None] * (2 * n / 5)) @ (torch.exp(-((n / 5) ** 2)) / n)
    return x * (1 + 2 / math.pi * (y / 5 + series)) / 2


def rfft(x: Tensor) -> Tensor:
    """(..., n) -> (..., n // 2 + 1) complex64, as a product: ONNX Runtime's DFT is off by 1e-4."""
    cosines, sines = waves(x.shape[-1])
    return torch.complex(x @ cosines, -(x @ sines))


def irfft(spectrum: Tensor, n: int) -> Tensor:
    """(..., n // 2 + 1) complex64 -> (..., n), n even."""
    cosines, sines = waves(n)
    count = F.pad(torch.full((n // 2 - 1,), 2.0), (1, 1), value=1.0)  # all but the outer ones stand for two frequencies
    real, imag = (torch.view_as_real(spectrum) * (count / n)[:, None]).unbind(-1)
    return real @ cosines.T - imag @ sines.T


def waves(n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the frequencies 0 .. n // 2 in columns, (n, n // 2 + 1) float32 each."""
    turns = torch.arange(n)[:, None] * torch.arange(n // 2 + 1) % n
    angles = turns.double() * (2 * math.pi / n)
    return torch.cos(angles).float(), torch.sin(angles).float()


def load_onnx(path: str) -> Program:
    """The program of an ONNX file, on the threads that torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def program(*tensors: Tensor) -> list[Tensor]:
        inputs = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return [torch.from_numpy(output) for output in session.run(None, inputs)]

    return program


def compare(model: codec.Codec, first: Program, following: Program, num_signals: int, num_codes: int) -> None:
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
