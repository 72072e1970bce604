"""A step of a stream compiled ahead of time: programs that turn codes into sound or sound into codes, without Python.

    python recipes/stream/export.py OUTPUT [--encode] [--onnx] [--model stream] [--codes 1] [--batch] [--threads 1]

OUTPUT/first.pt2 takes the first codes of a signal, (1, n) int64, n = --codes, and OUTPUT/next.pt2 further ones and all
tensors of memory that the call before gave. Both give the samples (1, n * hop_length) and then the new memory. With
--batch they take any number B >= 2 of signals at once; every tensor has a row for each.

With --encode they take samples instead, float32: the first (1, n * hop_length + lookahead), where the lookahead is that
of `Codec.encoder.lookahead_samples`, and then (1, n * hop_length). They give the codes that are now certain, (1, n)
int64, later than their samples by the quantizer's delay, so that the first ones are -1 and no codes; then those that
would still be due if the signal had ended, (1, delay), -1 as well where there are none; and the new memory. A signal of
T samples that ends is followed by samples of 32768.0 until there are ceil(T / hop_length) hops and the lookahead; its
last codes are those then due. Where fewer hops are left than n, programs of --codes 1 take them: both remember the
same. What `StreamEncoder` refuses (samples that are not finite, or beyond +-100) is not looked for. Codes may differ
from those of `StreamEncoder` from where two sequences were equally near, and are as good.

`torch._inductor.aoti_load_package` loads them, and in C++ `torch::inductor::AOTIModelPackageLoader`. Tensors must be
contiguous, as those that come out are. A code outside [0, K) is a RuntimeError. Other shapes, types and layouts than
these give wrong results or end the process, unless they are checked too, with AOTI_RUNTIME_CHECK_INPUTS=1 in the
environment. Programs use all instructions of the processor that they are compiled on, and end where some are missing;
for others of its kind compile them (torch 2.13) with TORCHINDUCTOR_CPP_MARCH and ATEN_CPU_CAPABILITY in the
environment: x86-64-v3 and avx2 for all with AVX2.

With --onnx they are OUTPUT/first.onnx and OUTPUT/next.onnx, of opset 20. Their inputs are `codes` or `wav`, memory_0,
memory_1 ..., their outputs `wav`, or `codes` and `due`, and new_memory_0, new_memory_1 ... in the same order; the files
state all shapes and types (float32, float64, int64). ONNX Runtime refuses others, and codes of K and more; codes of -K
to -1 it counts from the end, so cut off the -1 that `Codec.encode` pads with. What the pitch depends on stays in
float64, so the sound does not drift away.

It needs torch 2.8 or newer, compiling g++, --onnx the extra: pip install 'codec[onnx]'. ONNX files were tried with ONNX
Runtime 1.18 to 1.32. In the end the programs are compared with `codec.StreamDecoder` or `codec.StreamEncoder`, and
timed beside it.
"""

import argparse
import importlib.util
import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import torch
import torch._inductor
import torch.nn.functional as F
from torch import Tensor, nn

import codec
from codec.cli import exit_code, positive
from codec.errors import CodecError, first_line
from codec.model.beam import Paths, Tables, start
from codec.model.encoder import SpectralEncoder
from codec.model.layers import State
from codec.model.predictive import LARGEST_GAIN, PredictiveSimVQ
from codec.model.quantizer import VQ
from codec.model.search import half_squared_norms
from codec.output import open_output

LEAST_TORCH = "2.8"  # before, a program cannot have all operations of a step, or not for any number of signals
NUM_STEPS = 100
NUM_SINES = 28

Program = Callable[..., list[Tensor]]


def main() -> None:
    """Export, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder")
    parser.add_argument("--encode", action="store_true", help="sound to codes instead of codes to sound")
    parser.add_argument("--onnx", action="store_true", help="for ONNX Runtime instead of torch")
    parser.add_argument("--model", default="stream")
    parser.add_argument("--codes", type=positive, default=1, help="of each signal in a step")
    parser.add_argument("--batch", action="store_true", help="for two signals and more instead of one")
    parser.add_argument("--threads", type=positive, default=1)
    arguments = parser.parse_args()
    if torch.__version__ < LEAST_TORCH:
        raise CodecError(f"exporting needs torch {LEAST_TORCH} or newer, this is {torch.__version__}; update it")
    missing = [name for name in ("onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if arguments.onnx and missing:
        raise CodecError(f"--onnx needs {' and '.join(missing)}; pip install 'codec[onnx]'")
    warnings.simplefilter("ignore")  # torch warns of its own code, and of operations that it calls as they are
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    model = codec.load(arguments.model)
    step = EncoderStep(model) if arguments.encode else DecoderStep(model)
    exported = programs(step, arguments.codes, arguments.batch)
    suffix, load = ("onnx", load_onnx) if arguments.onnx else ("pt2", torch._inductor.aoti_load_package)
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [arguments.output / f"{name}.{suffix}" for name in ("first", "next")]
    for path, program in zip(paths, exported, strict=True):
        data = onnx_file(program, step.outputs) if arguments.onnx else package(program)
        with open_output(path, overwrite=True) as stream:
            stream.write(data)
    first, following = (load(str(path)) for path in paths)
    for num_signals in (2, 4, 32) if arguments.batch else (1,):
        compare(step, first, following, num_signals, arguments.codes)


class Step(nn.Module):
    """A step of a stream as a function of all that it depends on: what is pushed, and what was remembered.

    Gives what comes out, and then what is to be remembered: a tensor (B, ...) for each of the stream's `state_dict`, in
    its order.
    """

    stream: type[codec.StreamDecoder | codec.StreamEncoder]
    outputs: tuple[str, ...]

    def __init__(self, model: codec.Codec):
        super().__init__()
        self.model = model
        stream = self.stream(model)
        stream.push(self.example(1, 1, is_first=True))
        modules = dict(model.named_modules())
        self.layout = [(modules[name], len(tensors)) for name, tensors in stream.state_dict().items()]

    def example(
        self, num_signals: int, num_codes: int, is_first: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        """What a step takes, drawn at random."""
        raise NotImplementedError

    def difference(self, mine: Tensor, theirs: Tensor) -> str:
        """How far apart the results of programs and of a stream are, in words."""
        raise NotImplementedError

    def state(self, memory: Iterable[Tensor]) -> State:
        """The state of a stream that remembers this; empty without memory."""
        remaining = iter(memory)
        state = {module: tuple(islice(remaining, count)) for module, count in self.layout}
        return {module: tensors for module, tensors in state.items() if tensors}

    def memory(self, state: State) -> list[Tensor]:
        """What a state remembers, laid out alike whatever step it comes from, as programs rely on that."""
        return [tensor.contiguous() for module, _ in self.layout for tensor in state[module]]


class DecoderStep(Step):
    """Codes (B, n) -> samples (B, n * hop_length)."""

    stream = codec.StreamDecoder
    outputs = ("wav",)

    def example(
        self, num_signals: int, num_codes: int, is_first: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.randint(self.model.codebook_size, (num_signals, num_codes), generator=generator)

    def difference(self, mine: Tensor, theirs: Tensor) -> str:
        distance = (mine - theirs).abs().max() / theirs.abs().max()
        return f"samples differ by at most {distance.item():.1e} of the largest"

    def forward(self, codes: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        state = self.state(memory)
        wav = self.model.decoder(self.model.quantizer.lookup(codes, state), state)
        return wav[:, 0], *self.memory(state)


class EncoderStep(Step):
    """Samples (B, n * hop_length), at first with the lookahead -> codes (B, n), -1 before the first, and those due."""

    stream = codec.StreamEncoder
    outputs = ("codes", "due")

    def __init__(self, model: codec.Codec):
        quantizer = model.quantizer
        if not isinstance(model.encoder, SpectralEncoder):
            raise CodecError("--encode takes models of the stream family, as their encoders need no end of the signal")
        if not isinstance(quantizer, VQ):
            raise CodecError(f"--encode takes models that compare latents with codes, not {type(quantizer).__name__}")
        super().__init__(model)
        # Clones, as what a stream has needed first is an inference tensor.
        if isinstance(quantizer, PredictiveSimVQ):
            self.tables = Tables(*(table.clone() for table in quantizer.tables()))
        else:
            self.codebook = quantizer.effective_codebook().clone()
            self.half_norms = half_squared_norms(self.codebook)

    def example(
        self, num_signals: int, num_codes: int, is_first: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        ahead = self.model.encoder.lookahead_samples if is_first else 0
        return 0.1 * torch.randn(num_signals, num_codes * self.model.hop_length + ahead, generator=generator)

    def difference(self, mine: Tensor, theirs: Tensor) -> str:
        mine = mine[:, mine.shape[1] - theirs.shape[1] :]
        return f"{(mine == theirs).float().mean().item():.2%} of the codes are the same"

    def forward(self, wav: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        state = self.state(memory)
        wav = torch.cat([*state.get(self.model, ()), wav], dim=1)
        vectors = self.model.encoder(wav[:, None], state).transpose(1, 2)
        state[self.model] = (wav[:, wav.shape[1] - self.model.encoder.lookahead_samples :],)
        if isinstance(self.model.quantizer, PredictiveSimVQ):
            codes, due = self.choose(vectors, state)
        else:
            codes = (self.half_norms - vectors @ self.codebook.T).argmin(dim=2)
            due = codes[:, :0]
        return codes, due, *self.memory(state)

    def choose(self, vectors: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Vectors (B, n, D) -> the codes that they decide (B, n), and those still due (B, L)."""
        quantizer = self.model.quantizer
        num_paths, delay = quantizer.num_paths, quantizer.delay
        if quantizer in state:
            costs, *of_paths, num_due = state[quantizer]
            paths = Paths(costs, *(each.flatten(0, 1) for each in of_paths))
        else:
            paths = start(vectors.shape[0], num_paths, delay, self.tables)
            num_due = torch.zeros(vectors.shape[0], dtype=torch.int64)
        (costs, *of_paths), decided, pending = follow(vectors, paths, self.tables, LARGEST_GAIN)
        codes = torch.cat([decided, pending[:, -1]], dim=1)  # of the L frames before these too
        number = num_due[:, None] - delay + torch.arange(codes.shape[1])
        codes = codes.masked_fill(number < 0, -1)
        num_due = (num_due + vectors.shape[1]).clamp(max=delay)
        state[quantizer] = (costs, *(each.unflatten(0, (-1, num_paths)) for each in of_paths), num_due)
        now, due = codes.split([vectors.shape[1], delay], dim=1)
        return now.contiguous(), due.contiguous()


def follow(vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float) -> tuple[Paths, Tensor, Tensor]:
    """As `codec.model.beam.follow`, by operations that a program can have."""
    costs, ahead, undecided = paths  # (B, M), (BM, P, H + D), (BM, L)
    num_paths, dim, codebook_size = costs.shape[1], vectors.shape[2], len(tables.codes)
    ahead, undecided = (each.unflatten(0, (-1, num_paths)) for each in (ahead, undecided))
    memory, width = ahead.shape[2:]
    floor = torch.tensor([0.0] * (width - dim) + [-math.inf] * dim)  # only the network's part is cut off
    silence = tables.silence.expand(*costs.shape, 1, width)
    bound = math.log(largest_gain)
    histories = []
    for vector in vectors.unbind(1):
        told = torch.maximum(ahead[:, :, 0], floor) @ tables.expectation + tables.offset
        prediction, log_gains = told.chunk(2, dim=2)
        rest, gains = vector[:, None] - prediction, log_gains.clamp(-bound, bound).exp()
        query = torch.cat([rest * gains, gains.square(), (costs + rest.square().sum(2))[:, :, None]], dim=2)
        costs, places = (query @ tables.search).flatten(1).topk(num_paths, largest=False)
        parents, codes = places // codebook_size, places % codebook_size
        histories.append(torch.cat([of_parents(undecided, parents), codes[:, :, None]], dim=2))
        undecided, decided = histories[-1][:, :, 1:], histories[-1][:, :, 0]
        costs = (costs - costs[:, :1]).masked_fill(decided != decided[:, :1], math.inf)
        innovation, heard = F.embedding(codes, tables.codes).chunk(2, dim=2)
        said = torch.cat([innovation * of_parents(gains, parents), heard], dim=2) @ tables.echoes
        ahead = of_parents(torch.cat([ahead[:, :, 1:], silence], dim=2), parents) + said.unflatten(2, (memory, width))
    of_best = torch.stack(histories, dim=1)[:, :, 0]  # (B, n, L + 1)
    return Paths(costs, ahead.flatten(0, 1), undecided.flatten(0, 1)), of_best[..., 0], of_best[..., 1:]


def of_parents(tensor: Tensor, parents: Tensor) -> Tensor:
    """What belongs to the paths that are continued: (B, M, ...), (B, M) -> (B, M, ...)."""
    index = parents.reshape(*parents.shape, *[1] * (tensor.ndim - 2))
    return tensor.gather(1, index.expand(-1, -1, *tensor.shape[2:]))


@torch.no_grad()
def programs(step: Step, num_codes: int, is_batch: bool) -> list[torch.export.ExportedProgram]:
    """The first step of signals and a further one, for the given number of codes of each."""
    num_signals = 2 if is_batch else 1
    first, following = (step.example(num_signals, num_codes, is_first) for is_first in (True, False))
    memory = step(first)[len(step.outputs) :]
    sizes = {0: torch.export.Dim("num_signals", min=2)} if is_batch else None
    return [
        torch.export.export(step, (first,), dynamic_shapes=(sizes,), strict=False),
        torch.export.export(step, (following, *memory), dynamic_shapes=(sizes, (sizes,) * len(memory)), strict=False),
    ]


def package(program: torch.export.ExportedProgram) -> bytes:
    """A program compiled."""
    stream = io.BytesIO()
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=stream)
    except RuntimeError as error:
        raise CodecError(f"the step cannot be compiled here ({first_line(error)}); install g++") from error
    return stream.getvalue()


def onnx_file(program: torch.export.ExportedProgram, outputs: Sequence[str]) -> bytes:
    """A program as an ONNX file, which ONNX Runtime can run."""
    from onnxscript import ir, opset20

    def scalar_tensor(s: float, dtype: int):  # torch's own rounds numbers to float32 first
        return opset20.Constant(value=ir.tensor(s, dtype=ir.DataType(dtype)))

    num_tensors = len(program.graph_signature.user_outputs) - len(outputs)
    converted = torch.onnx.export(
        for_onnx_runtime(program),
        dynamo=True,
        verbose=False,
        opset_version=opset20.version,  # the first one with GELU
        output_names=[*outputs, *(f"new_memory_{i}" for i in range(num_tensors))],
        custom_translation_table={torch.ops.aten.scalar_tensor.default: scalar_tensor},
    )
    return converted.model_proto.SerializeToString()


def for_onnx_runtime(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same without what ONNX Runtime lacks, or did up to 2026, in float64, and what it rounds coarsely."""
    operations = torch.ops.aten
    return program.run_decompositions(
        {
            operations.conv2d.default: conv2d,
            operations.cos.default: cos,
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


def cos(x: Tensor) -> Tensor:
    """A cosine in float64, within 1e-14 up to 40."""
    return torch.sin(x + math.pi / 2) if x.dtype == torch.float64 else NotImplemented


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


def rfft(x: Tensor, n: int | None = None) -> Tensor:
    """(..., m) -> (..., n // 2 + 1) complex64, n >= m, as a product: ONNX Runtime's DFT is off by 1e-4."""
    cosines, sines = (each[: x.shape[-1]] for each in waves(n or x.shape[-1]))
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


def compare(step: Step, first: Program, following: Program, num_signals: int, num_codes: int) -> None:
    """Push the same into programs and a stream, in turns, and print how far apart and how fast they are."""
    generator = torch.Generator().manual_seed(0)
    stream = step.stream(step.model)
    memory, mine, theirs, of_program, of_stream = [], [], [], [], []
    for number in range(NUM_STEPS):
        pushed = step.example(num_signals, num_codes, not number, generator)
        started = time.perf_counter()
        tensors = following(pushed, *memory) if number else first(pushed)
        of_program.append(time.perf_counter() - started)
        mine.append(tensors[0])
        memory = tensors[len(step.outputs) :]
        started = time.perf_counter()
        theirs.append(stream.push(pushed))
        of_stream.append(time.perf_counter() - started)
    name, milliseconds = type(stream).__name__, [1000 * median(times) for times in (of_program, of_stream)]
    print(
        f"{num_signals} x {num_codes} codes: program {milliseconds[0]:.1f} ms, {name} {milliseconds[1]:.1f} ms, ratio "
        f"{milliseconds[1] / milliseconds[0]:.1f}, {step.difference(torch.cat(mine, dim=1), torch.cat(theirs, dim=1))}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
