"""Weights for UTMOS22 strong that follow from a formula, in the layout of SpeechMOS and in the other two."""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that anybody can make again: normal ones of numpy's RandomState, whose stream is frozen, seeded by name.

    Scales of norms and of weight norm are 1 +- 0.1, weights have std (2 / fan in)^0.5, the rest 0.1.
    """
    normal = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))
    is_scale = name.endswith(("norm.weight", ".2.weight", "weight_g")) and "projection" not in name
    if is_scale:
        return (1 + 0.1 * normal).float()
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 0
    return (normal * ((2 / fan_in) ** 0.5 if fan_in else 0.1)).float()


def speechmos_shapes(config: Any, embedding_dim: int, rnn_dim: int, projection_dim: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of SpeechMOS's state dict."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"domain_emb": (1, embedding_dim), "judge_emb": (1, embedding_dim)}
    channels = [1, *config.conv_dim]
    for number, kernel in enumerate(config.conv_kernel):
        shapes[f"wav2vec2.feature_extractor.conv_layers.{number}.0.weight"] = (
            *channels[number : number + 2][::-1],
            kernel,
        )
    for part in ("weight", "bias"):
        shapes[f"wav2vec2.feature_extractor.conv_layers.0.2.{part}"] = (channels[1],)
        shapes[f"wav2vec2.layer_norm.{part}"] = (channels[-1],)
        shapes[f"wav2vec2.encoder.layer_norm.{part}"] = (width,)
    shapes["wav2vec2.post_extract_proj.weight"] = (width, channels[-1])
    shapes["wav2vec2.post_extract_proj.bias"] = (width,)
    shapes["wav2vec2.mask_emb"] = (width,)
    kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    shapes["wav2vec2.encoder.pos_conv.0.bias"] = (width,)
    shapes["wav2vec2.encoder.pos_conv.0.weight_g"] = (1, 1, kernel)
    shapes["wav2vec2.encoder.pos_conv.0.weight_v"] = (width, width // groups, kernel)
    for number in range(config.num_hidden_layers):
        layer = f"wav2vec2.encoder.layers.{number}"
        linear = {f"self_attn.{part}_proj": (width, width) for part in "q k v out".split()}
        for name, shape in (linear | {"fc1": (inner, width), "fc2": (width, inner)}).items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = shape, shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{layer}.{name}.weight"] = shapes[f"{layer}.{name}.bias"] = (width,)
    for direction in ("", "_reverse"):
        shapes[f"blstm.weight_ih_l0{direction}"] = (4 * rnn_dim, width + 2 * embedding_dim)
        shapes[f"blstm.weight_hh_l0{direction}"] = (4 * rnn_dim, rnn_dim)
        shapes[f"blstm.bias_ih_l0{direction}"] = shapes[f"blstm.bias_hh_l0{direction}"] = (4 * rnn_dim,)
    for number, shape in ((0, (projection_dim, 2 * rnn_dim)), (2, (1, projection_dim))):
        shapes[f"projection.{number}.weight"], shapes[f"projection.{number}.bias"] = shape, shape[:1]
    return shapes


def speechmos(config: Any, **sizes: int) -> dict[str, Tensor]:
    return {name: fill(name, shape) for name, shape in speechmos_shapes(config, **sizes).items()}


def lightning(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as the checkpoint of the demonstration names them; embeddings are whole tables."""
    heads = {"blstm.": "output_layers.0.decoder_rnn.", "projection.0.": "output_layers.1.net.0.",
             "projection.2.": "output_layers.1.net.3.", "wav2vec2.": "feature_extractors.0.ssl_model."}  # fmt: skip
    renamed = {
        new + name.removeprefix(old): value
        for name, value in weights.items()
        for old, new in heads.items()
        if name.startswith(old)
    }
    domain, judge = weights["domain_emb"], weights["judge_emb"]
    table = torch.full((3000, judge.shape[1]), 9.0)
    table[288] = judge[0]
    renamed["feature_extractors.1.embedding.weight"] = torch.cat([domain, domain + 1, domain + 2])
    renamed["output_layers.0.judge_embedding.weight"] = table
    return renamed


def speechbrain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as SpeechBrain's wrapper names them."""
    from codec.evaluation.utmos_network import rename

    ours = rename(weights, Path("here"))
    heads = {"lstm.": "decoder.", "projection.0.": "classifier.0.", "projection.2.": "classifier.3.",
             "wav2vec2.": "ssl_encoder.model."}  # fmt: skip
    renamed = {
        new + name.removeprefix(old): value
        for name, value in ours.items()
        for old, new in heads.items()
        if name.startswith(old)
    }
    renamed["domain_embedding.weight"] = weights["domain_emb"]
    renamed["judge_embedding.weight"] = lightning(weights)["output_layers.0.judge_embedding.weight"]
    return renamed
