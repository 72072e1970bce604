"""The kernel that follows paths gives what `beam` gives: on a GPU where there is one, else by Triton's interpreter."""

import os
from collections.abc import Callable

import pytest
import torch

from codec.model import beam
from codec.model.predictive import PredictiveSimVQ

LARGEST_GAIN = 1.2
"""Which some gains exceed."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # is looked at when triton is imported
# Older interpreters write nothing where numpy is 2 or newer.
least = "3.2" if DEVICE == "cpu" else None
pytest.importorskip("triton", minversion=least, reason="needs triton, in which the kernel is written")

from codec.model import beam_gpu  # noqa: E402


@pytest.fixture(autouse=True)
def interpreter_of_new_numpy(monkeypatch: pytest.MonkeyPatch):
    """Triton's takes arrays of one number for integers, which numpy does not any more."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patch(tensor, *scope):  # which only newer versions tell
        before(tensor, *scope)
        monkeypatch.setattr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


@pytest.fixture
def by_frames(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[beam.Paths, torch.Tensor, torch.Tensor]]:
    """What `beam` does without the kernel."""
    monkeypatch.setattr(beam, "_kernel", lambda device: None)
    return beam.follow


def problem(
    batch: int, num_frames: int, dim: int, memory: int, codebook_size: int, hidden: int = 8
) -> tuple[torch.Tensor, beam.Tables]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    codes, dim2 = noise(codebook_size, 2 * dim), 2 * dim
    echoes = noise(dim2, memory, hidden + dim, scale=0.3 * dim**-0.5)
    echoes[:dim, :, :hidden] = echoes[dim:, :, hidden:] = 0
    expectation = torch.cat([noise(hidden, dim2, scale=0.5 * hidden**-0.5), torch.eye(dim, dim2)])
    tables = beam.Tables(
        beam.search_table(codes[:, :dim]),
        codes,
        echoes.flatten(1),
        silence=torch.nn.functional.pad(noise(hidden), (0, dim)),
        expectation=expectation,
        offset=noise(dim2, scale=0.3),
    )
    return noise(batch, num_frames, dim).to(DEVICE), beam.Tables(*(table.to(DEVICE) for table in tables))


@pytest.mark.parametrize(
    ("num_paths", "delay", "dim", "memory", "codebook_size", "hidden"),
    [
        (8, 3, 4, 3, 64, 16),
        (1, 0, 4, 3, 64, 1),
        (8, 0, 16, 8, 256, 64),
        (4, 5, 5, 1, 8, 12),
        (1, 2, 3, 2, 4, 7),
        (1, 1, 1, 1, 16, 1),
        (16, 2, 8, 2, 2048, 20),
    ],
)
def test_codes_and_paths_are_those_of_the_search_by_frames(
    num_paths: int, delay: int, dim: int, memory: int, codebook_size: int, hidden: int, by_frames
):
    vectors, tables = problem(3, 6, dim, memory, codebook_size, hidden)
    start = beam.start(3, num_paths, delay, tables)
    assert beam_gpu.suits(start, tables)
    expected, *expected_codes = by_frames(vectors, start, tables, LARGEST_GAIN)
    paths, *codes = beam_gpu.follow(vectors, start, tables, LARGEST_GAIN)
    for ours, theirs in zip((*codes, paths.undecided), (*expected_codes, expected.undecided), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(paths.costs, expected.costs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(paths.ahead, expected.ahead, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("piece", [1, 2, 4])
def test_pieces_give_what_the_whole_gives(piece: int):
    vectors, tables = problem(2, 9, 4, 3, 64)
    paths = start = beam.start(2, 8, 3, tables)
    parts = []
    for part in vectors.split(piece, dim=1):
        paths, *codes = beam_gpu.follow(part, paths, tables, 20.0)
        parts.append(codes)
    expected, *expected_codes = beam_gpu.follow(vectors, start, tables, 20.0)
    joined = [torch.cat(codes, dim=1) for codes in zip(*parts, strict=True)]
    for ours, theirs in zip((*joined, *paths), (*expected_codes, *expected), strict=True):
        assert torch.equal(ours, theirs)


def test_a_quantizer_chooses_the_same_codes(by_frames, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    quantizer = PredictiveSimVQ(64, 4, memory=3, context_width=16).eval().to(DEVICE)
    torch.nn.init.normal_(quantizer.taps, std=0.3)
    torch.nn.init.normal_(quantizer.expect.weight, std=0.3)
    latent = torch.randn(2, 4, 12, device=DEVICE)
    expected = quantizer.encode(latent, num_frames=[12, 7])
    monkeypatch.setattr(beam, "follow", beam_gpu.follow)
    assert torch.equal(quantizer.encode(latent, num_frames=[12, 7]), expected)


@pytest.mark.parametrize(
    ("num_paths", "dim", "codebook_size", "hidden"),
    [(3, 4, 64, 8), (8, 4, 96, 8), (8, 4, 4, 8), (8, 32, 64, 8), (8, 4, 64, 1024)],
)
def test_other_sizes_are_left_to_the_search_by_frames(num_paths: int, dim: int, codebook_size: int, hidden: int):
    _, tables = problem(1, 1, dim, 3, codebook_size, hidden)
    assert not beam_gpu.suits(beam.start(1, num_paths, 3, tables), tables)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_vectors_that_are_not_finite_do_no_harm():
    vectors, tables = problem(2, 4, 4, 3, 64)
    vectors[0, 1] = torch.nan
    paths, decided, pending = beam_gpu.follow(vectors, beam.start(2, 8, 3, tables), tables, 20.0)
    for codes in (decided, pending, paths.undecided):
        assert codes.min() >= 0
        assert codes.max() < 64
    alone = beam_gpu.follow(vectors[1:], beam.start(1, 8, 3, tables), tables, 20.0)
    assert torch.equal(decided[1:], alone[1])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_it_is_what_a_gpu_uses_and_can_be_recorded():
    assert beam._kernel(torch.device("cuda", 0)) is beam_gpu
    vectors, tables = problem(4, 20, 8, 8, 4096, 64)
    start = beam.start(4, 8, 3, tables)
    expected = [codes.clone() for codes in beam.follow(vectors, start, tables, 20.0)[1:]]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, *codes = beam.follow(vectors, start, tables, 20.0)
    graph.replay()
    assert all(map(torch.equal, codes, expected))
