"""Causality, bounded reach and streaming equality of every layer of the stream family."""

import pytest
import torch
import torch.nn.functional as F

from codec.model.layers import MAX_FRAMES, CausalConv1d, ConvNeXtBlock, WindowedAttention, in_pieces

WIDTH = 12


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = {
        "conv": lambda: CausalConv1d(WIDTH, WIDTH, 5),
        "depthwise conv": lambda: CausalConv1d(WIDTH, WIDTH, 7, groups=WIDTH),
        "pointwise conv": lambda: CausalConv1d(WIDTH, WIDTH, 1),
        "ConvNeXt block": lambda: ConvNeXtBlock(WIDTH, 3, 7, 0.5),
        "attention": lambda: WindowedAttention(WIDTH, 3, 8, 0.5),
    }
    layer = layers[name]()
    for parameter in layer.parameters():  # zero-initialised biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.eval()


REACH = {"conv": 4, "depthwise conv": 6, "pointwise conv": 0, "ConvNeXt block": 6, "attention": 7}
every_layer = pytest.mark.parametrize("name", REACH)


@every_layer
@torch.no_grad()
def test_output_depends_on_the_last_frames_only(name: str):
    layer, n = build(name).double(), 20
    x = torch.randn(1, 40, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, n] += torch.randn(WIDTH, dtype=torch.float64)  # the same in all channels, a norm would take it away
    moved = (layer(x) != layer(changed)).any(dim=-1)[0].nonzero().flatten().tolist()
    # The frame itself and the `REACH` ones after it see frame n; none before, none later.
    assert moved[0] == n
    assert moved[-1] == n + REACH[name]


@every_layer
@torch.no_grad()
def test_any_chunking_equals_the_whole(name: str):
    layer = build(name)
    x = torch.randn(2, 45, WIDTH)
    state: dict = {}
    pieces = [layer(part, state) for part in x.split([1, 1, 2, 20, 3, 18], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv", "depthwise conv", "pointwise conv"])
@pytest.mark.parametrize("is_training", [False, True])
@torch.no_grad()
def test_a_convolution_is_that_of_torch_with_zeros_before_it(name: str, is_training: bool):
    layer = build(name).double()
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    padded = F.pad(x.transpose(1, 2), (REACH[name], 0))
    expected = F.conv1d(padded, layer.weight, layer.bias, groups=layer.groups).transpose(1, 2)
    torch.testing.assert_close(layer.train(is_training)(x), expected)


@torch.no_grad()
def test_attention_equals_the_masked_formula():
    """softmax(q k / sqrt(d) + bias of the distance) v over the window, written out with the whole score matrix."""
    layer, num_frames = build("attention"), 21
    x = torch.randn(1, num_frames, WIDTH)
    query, key, value = layer.query_key_value(layer.norm(x))[0].chunk(3, dim=-1)
    distance = torch.arange(num_frames)[:, None] - torch.arange(num_frames)[None, :]
    heads = []
    for head, columns in enumerate(torch.arange(WIDTH).chunk(3)):
        score = query[:, columns] @ key[:, columns].T / len(columns) ** 0.5
        score = score + layer.distance_bias[head][distance.clamp(0, 7)]
        score[(distance < 0) | (distance > 7)] = -torch.inf
        heads.append(score.softmax(dim=-1) @ value[:, columns])
    expected = x + layer.scale * layer.output(torch.cat(heads, dim=-1)[None])
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [1, MAX_FRAMES, MAX_FRAMES + 1, 2 * MAX_FRAMES, 5 * MAX_FRAMES - 1])
def test_a_signal_is_cut_into_as_few_pieces_as_fit_all_about_as_long(num_frames: int):
    pieces = in_pieces(num_frames)
    sizes = [piece.stop - piece.start for piece in pieces]
    assert len(pieces) == -(-num_frames // MAX_FRAMES)
    assert max(sizes) - min(sizes) <= 1
    assert [frame for piece in pieces for frame in range(num_frames)[piece]] == list(range(num_frames))


@pytest.mark.parametrize(("score", "counts"), [(-64.0, True), (-80.0, False)])
def test_attention_whose_products_would_lose_bits_counts_as_nothing(score: float, counts: bool):
    """Floats below 1e-38 have fewer bits: exp(-80) = 2e-35 times a small value is one of them, exp(-64) = 2e-28 not."""
    scores, values = torch.tensor([[0.0, score]]), torch.tensor([[0.0], [1.0]])
    heard = build("attention")._attend(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1), values[None, None], scores)
    assert heard.bool().item() == counts
