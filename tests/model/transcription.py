"""The published networks in plain tensor operations, read off the facts in ../shared/parity/README.md.

Slow and straightforward on purpose: whole signals, no stretches, no kept or folded weights, no fused layers. It shares
no line with the networks that it is there to check, not even the names of tensors, which are the published ones here.
Features are (C, N).
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def latent(state: State, kind: str, wav: Tensor) -> Tensor:
    """(T,) -> (D, N)."""
    prefix, is_causal = ("encoder.", True) if kind == "simvq" else ("feature_extractor.encodec.encoder.", False)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def conv(place: str, x: Tensor, stride: int = 1) -> Tensor:
        direction, length = (state[f"{place}.conv.conv.weight_{part}"] for part in "vg")
        weight = direction * length / direction.pow(2).sum((1, 2), keepdim=True).sqrt()
        overlap, filler = weight.shape[2] - stride, -x.shape[1] % stride
        right = 0 if is_causal else overlap // 2
        x = mirrored(x, overlap - right, right + filler)
        return correlate(x, weight, stride) + state[f"{place}.conv.conv.bias"][:, None]

    x = conv("model.0", wav[None])
    place = 1
    while f"model.{place}.shortcut.conv.conv.bias" in state:
        y = conv(f"model.{place}.block.3", elu(conv(f"model.{place}.block.1", elu(x))))
        x = elu(conv(f"model.{place}.shortcut", x) + y)
        place += 2
        stride = state[f"model.{place}.conv.conv.weight_v"].shape[2] // 2
        x = conv(f"model.{place}", x, stride)
        place += 1
    y = x
    for layer in range(2):
        y = lstm(y, *(state[f"model.{place}.lstm.{end}_l{layer}"] for end in LSTM_ENDS))
    return conv(f"model.{place + 2}", elu(x + y))


def effective_codebook(state: State, kind: str) -> Tensor:
    """(K, D)."""
    if kind == "wavtokenizer":
        return state["feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"]
    weight, bias = (state[f"quantize.embedding_proj.{end}"] for end in ("weight", "bias"))
    return state["quantize.embedding.weight"] @ weight.T + bias


def codes_and_margins(codebook: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of each column of z (D, N), and how much farther the second nearest is, squared."""
    distances = torch.stack([(codebook - column).pow(2).sum(1) for column in z.T])
    best, second = distances.topk(2, largest=False).values.T
    return distances.argmin(1), second - best


def wave(state: State, quantized: Tensor, hop_length: int) -> Tensor:
    """(D, N) -> (N * hop_length,)."""

    def conv(place: str, x: Tensor) -> Tensor:
        weight = state[f"{place}.weight"]
        x = torch.nn.functional.pad(x, (weight.shape[2] // 2,) * 2)
        if weight.shape[1] == 1:  # depthwise
            y = torch.cat([correlate(x[c : c + 1], weight[c : c + 1]) for c in range(len(x))])
        else:
            y = correlate(x, weight)
        return y + state[f"{place}.bias"][:, None]

    def linear(place: str, x: Tensor) -> Tensor:
        return state[f"{place}.weight"] @ x + state[f"{place}.bias"][:, None]

    def group_norm(place: str, x: Tensor) -> Tensor:
        groups = x.reshape(32, -1)
        groups = standardised(groups, 1)
        return groups.view_as(x) * state[f"{place}.weight"][:, None] + state[f"{place}.bias"][:, None]

    def layer_norm(place: str, x: Tensor) -> Tensor:
        is_adaptive = f"{place}.scale.weight" in state
        scale = state[f"{place}.scale.weight"][0] if is_adaptive else state[f"{place}.weight"]
        shift = state[f"{place}.shift.weight"][0] if is_adaptive else state[f"{place}.bias"]
        return standardised(x, 0) * scale[:, None] + shift[:, None]

    def residual(place: str, x: Tensor) -> Tensor:
        y = conv(f"{place}.conv1", swish(group_norm(f"{place}.norm1", x)))
        return x + conv(f"{place}.conv2", swish(group_norm(f"{place}.norm2", y)))

    def attention(place: str, x: Tensor) -> Tensor:
        y = group_norm(f"{place}.norm", x)
        query, key, value = (conv(f"{place}.{part}", y) for part in "qkv")
        weights = torch.softmax(query.T @ key * len(x) ** -0.5, dim=1)  # (N, N): of each frame for all
        return x + conv(f"{place}.proj_out", value @ weights.T)

    x = conv("backbone.embed", quantized)
    x = residual("backbone.pos_net.1", residual("backbone.pos_net.0", x))
    x = attention("backbone.pos_net.2", x)
    x = residual("backbone.pos_net.4", residual("backbone.pos_net.3", x))
    x = layer_norm("backbone.norm", group_norm("backbone.pos_net.5", x))
    for block in range(12):
        place = f"backbone.convnext.{block}"
        y = linear(f"{place}.pwconv1", layer_norm(f"{place}.norm", conv(f"{place}.dwconv", x)))
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + state[f"{place}.gamma"][:, None] * linear(f"{place}.pwconv2", y)
    x = layer_norm("backbone.final_layer_norm", x)
    return inverse_stft(linear("head.out", x), hop_length)


def inverse_stft(x: Tensor, hop_length: int) -> Tensor:
    """Log-magnitudes and phases (n_fft + 2, N) -> (N * hop_length,)."""
    n_fft, num_frames = len(x) - 2, x.shape[1]
    magnitude, phase = x[: n_fft // 2 + 1].exp().clamp(max=100), x[n_fft // 2 + 1 :]
    spectra = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
    window = (0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n_fft, dtype=torch.float64) / n_fft)).to(x.dtype)
    total, weight = torch.zeros(2, (num_frames - 1) * hop_length + n_fft, dtype=x.dtype)
    for n in range(num_frames):
        place = slice(n * hop_length, n * hop_length + n_fft)
        total[place] += torch.fft.irfft(spectra[:, n]) * window
        weight[place] += window**2
    cut = (n_fft - hop_length) // 2
    return (total / weight)[cut : len(total) - cut]


LSTM_ENDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def lstm(x: Tensor, weight_x: Tensor, weight_h: Tensor, bias_x: Tensor, bias_h: Tensor) -> Tensor:
    """One layer: (C, N) -> (C, N)."""
    drive = weight_x @ x + (bias_x + bias_h)[:, None]
    cell = h = torch.zeros(weight_h.shape[1], dtype=x.dtype)
    outputs = []
    for n in range(x.shape[1]):
        i, f, g, o = (drive[:, n] + weight_h @ h).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(cell)
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def correlate(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """(C, N) with (D, C, k) -> (D, M), without padding."""
    columns = x.unfold(1, weight.shape[2], stride)  # (C, M, k)
    return weight.flatten(1) @ columns.transpose(1, 2).flatten(0, 1)


def mirrored(x: Tensor, left: int, right: int) -> Tensor:
    """Continued by its mirror image; the signal must be longer than that."""
    assert x.shape[1] > max(left, right)
    places = torch.arange(-left, x.shape[1] + right).abs()
    last = x.shape[1] - 1
    return x[:, last - (last - places).abs()]


def standardised(x: Tensor, axis: int) -> Tensor:
    """Of zero mean and unit variance along an axis."""
    centred = x - x.mean(axis, keepdim=True)
    return centred / (centred.pow(2).mean(axis, keepdim=True) + 1e-6).sqrt()


def elu(x: Tensor) -> Tensor:
    """x where it is positive, else exp(x) - 1."""
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


def swish(x: Tensor) -> Tensor:
    """x times its logistic function."""
    return x * torch.sigmoid(x)
