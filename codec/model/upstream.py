"""The published checkpoints' own words: their keys and settings, and what they are called here.

Knows names, shapes and how one form of a tensor becomes the other; files are opened in `importer`. Two kinds of
checkpoint: "wavtokenizer" and "simvq".
"""

import re
from collections.abc import Callable, Mapping
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from codec.errors import ConfigError, ModelError
from codec.input import is_of
from codec.model.codec import LARGEST_SETTING, CodecConfig
from codec.model.quantizer import SimVQConfig, VQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig

KINDS = ("wavtokenizer", "simvq")
EMA_PREFIX = "model_ema."
ENCODER_PREFIXES = {"wavtokenizer": "feature_extractor.encodec.encoder.", "simvq": "encoder."}
WAVTOKENIZER_CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook."
SIMVQ_CODEBOOK = "quantize.embedding.weight"
WINDOW = "head.istft.window"
NUM_CONDITIONS = 4
"""Rows of WavTokenizer's adaptive norms, one per "bandwidth"; its inference uses row 0."""
_CONV_ENDS = {
    "bias": "bias",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""Tensors of a convolution with weight norm, there and here."""

# ---------------------------------------------------------------------------------------------------------------------
# Keys


def key_map(config: CodecConfig, kind: str) -> dict[str, str]:
    """Upstream key -> name in `Codec.state_dict()`, for every tensor that defines the codec."""
    encoder, decoder = config.encoder, config.decoder
    names = {
        ENCODER_PREFIXES[kind] + key: f"encoder.{name}"
        for key, name in _encoder_keys(len(encoder.strides), encoder.num_lstm_layers)
    }
    names |= {key: f"decoder.{name}" for key, name in _decoder_keys(decoder.num_blocks, kind == "wavtokenizer")}
    if kind == "wavtokenizer":
        return names | {WAVTOKENIZER_CODEBOOK + "embed": "quantizer.codebook"}
    projection = {f"quantize.embedding_proj.{end}": f"quantizer.projection.{end}" for end in ("weight", "bias")}
    return names | {SIMVQ_CODEBOOK: "quantizer.codebook"} | projection


def ema_key(key: str) -> str:
    """The key of the weight average of parameter `key`. The frozen codebook has none."""
    return key if key == SIMVQ_CODEBOOK else EMA_PREFIX + key.replace(".", "")


def is_conditioned(key: str) -> bool:
    """Whether the tensor has one row per "bandwidth"."""
    return key.endswith(("norm.scale.weight", "norm.shift.weight"))


def _encoder_keys(num_stages: int, num_lstm_layers: int) -> list[tuple[str, str]]:
    # In the published sequence every activation has a place of its own.
    convs = [("model.0", "first")]
    for stage in range(num_stages):
        residual, place = f"stages.{stage}.residual", 1 + 3 * stage
        convs += [
            (f"model.{place}.block.1", f"{residual}.narrow"),
            (f"model.{place}.block.3", f"{residual}.widen"),
            (f"model.{place}.shortcut", f"{residual}.shortcut"),
            (f"model.{place + 2}", f"stages.{stage}.downsample"),
        ]
    place = 1 + 3 * num_stages
    convs.append((f"model.{_last_place(num_stages, num_lstm_layers)}", "last"))
    keys = [(f"{there}.conv.conv.{end}", f"{here}.{_CONV_ENDS[end]}") for there, here in convs for end in _CONV_ENDS]
    for layer in range(num_lstm_layers):
        for end in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            keys.append((f"model.{place}.lstm.{end}_l{layer}", f"lstm.{end}_l{layer}"))
    return keys


def _last_place(num_stages: int, num_lstm_layers: int) -> int:
    return 1 + 3 * num_stages + (2 if num_lstm_layers else 1)


def _decoder_keys(num_blocks: int, has_conditions: bool) -> list[tuple[str, str]]:
    plain = [
        ("backbone.embed", "input"),
        ("backbone.pos_net.5", "prenet.norm"),
        ("backbone.final_layer_norm", "output_norm"),
        ("head.out", "head.output"),
    ]
    for place, residual in ((0, "before.0"), (1, "before.1"), (3, "after.0"), (4, "after.1")):
        for layer in ("norm1", "conv1", "norm2", "conv2"):
            plain.append((f"backbone.pos_net.{place}.{layer}", f"prenet.{residual}.{layer}"))
    for there, here in (("norm", "norm"), ("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "output")):
        plain.append((f"backbone.pos_net.2.{there}", f"prenet.attention.{here}"))
    norms = [("backbone.norm", "input_norm")]
    keys = []
    for block in range(num_blocks):
        there, here = f"backbone.convnext.{block}", f"blocks.{block}"
        keys.append((f"{there}.gamma", f"{here}.scale"))
        for layer, name in (("dwconv", "depthwise"), ("pwconv1", "expand"), ("pwconv2", "contract")):
            plain.append((f"{there}.{layer}", f"{here}.{name}"))
        norms.append((f"{there}.norm", f"{here}.norm"))
    keys += [(f"{there}.{end}", f"{here}.{end}") for there, here in plain for end in ("weight", "bias")]
    scale, shift = ("scale.weight", "shift.weight") if has_conditions else ("weight", "bias")
    for there, here in norms:
        keys += [(f"{there}.{scale}", f"{here}.weight"), (f"{there}.{shift}", f"{here}.bias")]
    return keys


def placeholders(config: CodecConfig, kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the published loaders want to find beside an exported `state`.

    WavTokenizer's loader is strict about codebook statistics and a decoder that it never calls; SimVQ's evaluation
    copies the averages over the weights. Placeholders that stand for many zeros take the room of one.
    """
    if kind == "simvq":
        copies = {ema_key(key): state[key] for key in key_map(config, kind) if key != SIMVQ_CODEBOOK}
        return copies | {EMA_PREFIX + "decay": torch.tensor(0.999), EMA_PREFIX + "num_updates": torch.tensor(-1).int()}
    codebook = state[WAVTOKENIZER_CODEBOOK + "embed"]
    result = {
        WAVTOKENIZER_CODEBOOK + "inited": torch.ones(1),
        WAVTOKENIZER_CODEBOOK + "cluster_size": torch.ones(len(codebook)),
        WAVTOKENIZER_CODEBOOK + "embed_avg": codebook,
    }
    prefix = ENCODER_PREFIXES[kind].replace("encoder.", "decoder.")
    return result | {prefix + key: torch.zeros(()).expand(shape) for key, shape in _unused_decoder_shapes(config)}


def _unused_decoder_shapes(config: CodecConfig) -> list[tuple[str, tuple[int, ...]]]:
    """The mirror image of the encoder, but always with the strides of hop 320."""
    encoder, strides = config.encoder, (8, 5, 4, 2)
    width = encoder.num_filters * 2 ** len(strides)
    size, inner, first = encoder.kernel_size, encoder.residual_kernel_size, 3 if encoder.num_lstm_layers else 2
    convs = [("model.0.conv.conv", width, (width, encoder.latent_dim, size))]
    for stage, stride in enumerate(strides):
        place, width = first + 3 * stage, width // 2
        convs += [
            (f"model.{place}.convtr.convtr", width, (2 * width, width, 2 * stride)),
            (f"model.{place + 1}.block.1.conv.conv", width // 2, (width // 2, width, inner)),
            (f"model.{place + 1}.block.3.conv.conv", width, (width, width // 2, 1)),
            (f"model.{place + 1}.shortcut.conv.conv", width, (width, width, 1)),
        ]
    convs.append((f"model.{first + 3 * len(strides)}.conv.conv", 1, (1, width, size)))
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for key, num_outputs, shape in convs:
        shapes += [(f"{key}.bias", (num_outputs,)), (f"{key}.weight_g", (shape[0], 1, 1)), (f"{key}.weight_v", shape)]
    width = encoder.num_filters * 2 ** len(strides)
    for layer in range(encoder.num_lstm_layers):
        for end, rest in (("weight_ih", (width,)), ("weight_hh", (width,)), ("bias_ih", ()), ("bias_hh", ())):
            shapes.append((f"model.1.lstm.{end}_l{layer}", (4 * width, *rest)))
    return shapes


_CONV = r"(bias|weight_g|weight_v)"
_SEANET_DECODER = (
    r"model\.\d+\.(conv\.conv|convtr\.convtr|block\.\d+\.conv\.conv|shortcut\.conv\.conv)\." + _CONV,
    r"model\.\d+\.lstm\.(weight|bias)_(ih|hh)_l\d+",
)
_DISCRIMINATORS = (
    r"(multiperioddisc|multiresddisc)\.discriminators\.\d+\.((convs\.\d+|conv_post)\." + _CONV + r"|emb\.weight)",
    r"(dac|dacdiscriminator\.discriminator)\.discriminators\.\d+\."
    r"(convs\.\d+\.0|band_convs\.\d+\.\d+\.0|conv_post)\." + _CONV,
)
_MEL = r"melspec_loss\.mel_spec\.(spectrogram\.window|mel_scale\.fb)"
DISCRIMINATORS = "discriminators"
_UNUSED = {
    "wavtokenizer": {
        "codebook statistics": (re.escape(WAVTOKENIZER_CODEBOOK) + "(inited|cluster_size|embed_avg)",),
        "SEANet decoder, never called": tuple(r"feature_extractor\.encodec\.decoder\." + p for p in _SEANET_DECODER),
        DISCRIMINATORS: _DISCRIMINATORS,
        "tables that are computed": (re.escape(WINDOW), _MEL),
    },
    "simvq": {
        "SEANet decoder, never called": tuple(r"decoder\." + p for p in _SEANET_DECODER),
        DISCRIMINATORS: tuple(r"loss\." + p for p in _DISCRIMINATORS),
        "tables that are computed": (re.escape(WINDOW), r"loss\." + _MEL),
        "state of the weight averages": (r"model_ema\.(decay|num_updates)",),
    },
}


def unused_groups(kind: str) -> dict[str, Callable[[str], Any]]:
    """What a published checkpoint holds besides the codec: name of the group -> whether a key belongs to it."""
    groups = {name: re.compile("|".join(f"({p})" for p in patterns)) for name, patterns in _UNUSED[kind].items()}
    if kind == "simvq":
        for name in ("SEANet decoder, never called", DISCRIMINATORS):
            # Averages lose their dots, and so do the patterns.
            dotless = "|".join(f"({p})" for p in _UNUSED[kind][name]).replace(r"\.", "")
            groups[f"weight averages of {name}"] = re.compile(re.escape(EMA_PREFIX) + f"({dotless})")
    return {name: pattern.fullmatch for name, pattern in groups.items()}


def looks_like(keys: Mapping[str, Any]) -> str | None:
    """The kind of checkpoint that `keys` come from, if any."""
    if any(key.startswith("feature_extractor.") for key in keys):
        return "wavtokenizer"
    return "simvq" if any(key.startswith("quantize.") for key in keys) else None


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def infer_config(kind: str, shapes: Mapping[str, torch.Size]) -> CodecConfig:
    """The architecture that the shapes of a state dict tell; the sample rate, which they do not, is 24 kHz.

    A width that many tensors share is what most of them have, so that a single odd one can be named afterwards.

    Raises:
        ModelError: a key is missing, or the shapes are those of another architecture.
    """
    prefix = ENCODER_PREFIXES[kind]

    def shape_of(key: str) -> tuple[int, ...]:
        return shapes.get(key) or shapes.get(ema_key(key)) or ()

    def size(axis: int, *keys: str) -> int:
        found = [shape[axis] for shape in map(shape_of, keys) if len(shape) > axis]
        if not found:
            raise ModelError(f"lacks {keys[0]}, or its shape is odd")
        return mode(found)

    def conv(axis: int, place: str) -> int:
        layer = f"{prefix}model.{place}.conv.conv"
        keys = [f"{layer}.weight_v"] + ([f"{layer}.weight_g", f"{layer}.bias"] if axis == 0 else [])
        return size(axis, *keys)

    def highest(pattern: str) -> int:
        """The highest number in a key of this pattern, with its dots or, in an average, without; -1 for none."""
        found = re.compile(
            f"({re.escape(EMA_PREFIX)})?" + pattern.replace(".", r"\.?").replace("#", r"(?P<number>\d+)")
        )
        numbers = {int(match["number"]): key for key in shapes if (match := found.match(key))}
        last = max(numbers, default=-1)
        if last >= len(shapes):
            raise ModelError(f"has the unknown key {numbers[last]}")
        return last

    num_stages = (highest(f"{prefix}model.#.(block|shortcut)") + 2) // 3
    if not num_stages:
        raise ModelError(f"lacks {prefix}model.1.shortcut.conv.conv.bias")
    num_lstm_layers = highest(f"{prefix}model.{1 + 3 * num_stages}.lstm.(weight|bias)_[ih]h_l#") + 1
    num_blocks = highest("backbone.convnext.#.(gamma|dwconv|norm|pwconv)") + 1
    last = str(_last_place(num_stages, num_lstm_layers))
    try:
        encoder = SEANetEncoderConfig(
            latent_dim=conv(0, last),
            num_filters=conv(0, "0"),
            strides=[conv(2, str(3 + 3 * stage)) // 2 for stage in range(num_stages)],
            kernel_size=conv(2, "0"),
            residual_kernel_size=mode(conv(2, f"{1 + 3 * stage}.block.1") for stage in range(num_stages)),
            num_lstm_layers=num_lstm_layers,
            is_causal=kind == "simvq",
        )
        decoder = VocosDecoderConfig(
            latent_dim=encoder.latent_dim,
            width=size(0, *(f"backbone.pos_net.{place}.norm1.weight" for place in (0, 1, 3, 4))),
            inner_width=size(0, *(f"backbone.convnext.{block}.pwconv1.bias" for block in range(num_blocks or 1))),
            num_blocks=num_blocks,
            n_fft=size(0, "head.out.bias", "head.out.weight") - 2,
            hop_length=encoder.hop_length,
        )
        if kind == "simvq":
            rows = size(0, SIMVQ_CODEBOOK)
            quantizer: VQConfig = SimVQConfig(codebook_size=rows, codebook_dim=encoder.latent_dim, relative_loss=False)
        else:
            rows = size(0, *(WAVTOKENIZER_CODEBOOK + end for end in ("embed", "embed_avg")))
            quantizer = VQConfig(codebook_size=rows, codebook_dim=encoder.latent_dim)
        return CodecConfig(24000, encoder, quantizer, decoder)
    except ConfigError as error:
        raise ModelError(f"its shapes are not those of a {kind} model: {error}") from error


def apply_yaml(kind: str, values: Any, config: CodecConfig) -> None:
    """Take from a published configuration what shapes do not tell, and hold the rest against the checkpoint.

    Args:
        kind: of the checkpoint.
        values: the YAML file's content, in the layout of LightningCLI (class_path, init_args).
        config: as inferred from the checkpoint; its sample rate, causality and loss weight are set.

    Raises:
        ConfigError: another layout, an architecture setting that is unknown or not supported, or one that disagrees
            with the checkpoint. The message names the setting.
    """
    model = _section(values, "model")
    class_name = str(model.get("class_path", "")).rsplit(".", 1)[-1]
    expected_name = {"wavtokenizer": "WavTokenizer", "simvq": "VQModel"}[kind]
    if class_name != expected_name:
        raise ConfigError(f"model.class_path is {class_name or 'missing'}, expected {expected_name} for a {kind} model")
    settings = _section(model, "init_args", "model.")
    sample_rate = settings.get("sample_rate", 24000)
    if type(sample_rate) is not int or sample_rate < 1:
        raise ConfigError(f"model.init_args.sample_rate must be a number of Hz, got {sample_rate!r}")
    config.sample_rate = sample_rate
    strides = list(reversed(config.encoder.strides))  # listed from the frames to the waveform there
    (_apply_wavtokenizer if kind == "wavtokenizer" else _apply_simvq)(settings, config, strides)


def _apply_wavtokenizer(settings: dict[str, Any], config: CodecConfig, strides: list[int]) -> None:
    decoder = config.decoder
    parts: dict[str, dict[str, Any]] = {
        "feature_extractor": {
            "encodec_model": "encodec_24khz",
            "num_quantizers": 1,
            "dowmsamples": strides,
            "vq_bins": config.quantizer.codebook_size,
        },
        "backbone": {
            "input_channels": decoder.latent_dim,
            "dim": decoder.width,
            "intermediate_dim": decoder.inner_width,
            "num_layers": decoder.num_blocks,
        },
        "head": {
            "dim": decoder.width,
            "n_fft": decoder.n_fft,
            "hop_length": decoder.hop_length,
            "padding": "same",
        },
    }
    ignored = {
        "feature_extractor": ("bandwidths", "train_codebooks", "vq_kmeans"),
        "backbone": ("adanorm_num_embeddings", "layer_scale_init_value"),
    }
    for name, expected in parts.items():
        path = f"model.init_args.{name}."
        part = _section(_section(settings, name, "model.init_args."), "init_args", path)
        _compare(f"{path}init_args", part, expected, ignored.get(name, ()))


def _apply_simvq(settings: dict[str, Any], config: CodecConfig, strides: list[int]) -> None:
    at, encoder, quantizer = "model.init_args", config.encoder, config.quantizer
    tower = _section(settings, "ddconfig", f"{at}.")
    is_causal = tower.get("causal", False)  # which shapes do not tell
    if not isinstance(is_causal, bool):
        raise ConfigError(f"{at}.ddconfig.causal must be true or false, got {is_causal!r}")
    _compare(
        f"{at}.ddconfig",
        tower,
        {
            "channels": 1,
            "dimension": encoder.latent_dim,
            "n_filters": encoder.num_filters,
            "n_residual_layers": 1,
            "ratios": strides,
            "activation": "ELU",
            "norm": "weight_norm",
            "kernel_size": encoder.kernel_size,
            "last_kernel_size": encoder.kernel_size,
            "residual_kernel_size": encoder.residual_kernel_size,
            "pad_mode": "reflect",
            "true_skip": False,
            "compress": 2,
            "lstm": encoder.num_lstm_layers,
            "causal": is_causal,
        },
        ignored=("activation_params", "norm_params", "dilation_base"),
    )
    encoder.is_causal = is_causal
    target = _section(settings, "quantconfig", f"{at}.")
    if str(target.get("target")).rsplit(".", 1)[-1] != "SimVQ1D":
        raise ConfigError(f"{at}.quantconfig.target is {target.get('target')!r}, only SimVQ1D is supported")
    parameters = _section(target, "params", f"{at}.quantconfig.")
    beta = parameters.get("beta", quantizer.beta)
    if not is_of(beta, float) or not 0 <= beta <= LARGEST_SETTING:
        raise ConfigError(f"{at}.quantconfig.params.beta must be a number from 0 to 2**31, got {beta!r}")
    _compare(
        f"{at}.quantconfig.params",
        parameters,
        {"n_e": quantizer.codebook_size, "e_dim": quantizer.codebook_dim, "beta": beta, "legacy": False},
    )
    quantizer.beta = float(beta)
    if settings.get("audio_normalize"):
        raise ConfigError(f"{at}.audio_normalize is {settings['audio_normalize']!r}, only false is supported")


def _section(values: Any, name: str, path: str = "") -> dict[str, Any]:
    section = values.get(name) if isinstance(values, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"has no section {path}{name}; give the YAML file that the model was trained with")
    return section


def _compare(path: str, values: dict[str, Any], expected: dict[str, Any], ignored: tuple[str, ...] = ()) -> None:
    for name, value in values.items():
        if name in ignored:
            continue
        if name not in expected:
            raise ConfigError(f"{path}.{name} is not a setting that is known here; known: {', '.join(expected)}")
        if value != expected[name] or isinstance(value, bool) != isinstance(expected[name], bool):
            raise ConfigError(f"{path}.{name} is {value!r}, but the checkpoint needs {expected[name]!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Discriminators


def discriminator_prefixes(kind: str) -> tuple[str, str, str]:
    """Of the keys of the discriminators that the loss used: by period, by resolution, DAC-style.

    WavTokenizer holds a second DAC-style part, which took no part in training. SimVQ stores one part under two names.
    """
    return {
        "wavtokenizer": ("multiperioddisc.", "multiresddisc.", "dacdiscriminator.discriminator."),
        "simvq": ("loss.multiperioddisc.", "loss.multiresddisc.", "loss.dac."),
    }[kind]


def our_discriminators(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published discriminators under the names of our set of the same architecture.

    WavTokenizer's parts by period and resolution add, to their last convolution, a linear map of the last feature map
    that depends on the "bandwidth": that of row 0 goes into the convolution's middle tap.

    Raises:
        ModelError: these do not fit each other.
    """
    prefixes = discriminator_prefixes(kind)
    groups = {"period": prefixes[0], "resolution": prefixes[1], "dac_period": prefixes[2], "dac_spectrum": prefixes[2]}
    spectra = [_place(key, prefixes[2]) for key in state if key.startswith(prefixes[2]) and ".band_convs." in key]
    first = min(spectra, default=0)  # the DAC-style part is one list, periods first
    result = {}
    for group, prefix in groups.items():
        for key in (key for key in state if key.startswith(prefix) and ".emb." not in key):
            place = _place(key, prefix) - (first if group == "dac_spectrum" else 0)
            if place < 0 or (group == "dac_period" and place >= first):
                continue
            layer = key.removeprefix(f"{prefix}discriminators.").split(".")[1:-1]
            if layer[0] == "conv_post":
                layer = ["post"]
            elif group == "resolution":
                layer = ["band_convs", "0", layer[1]]  # one band
            elif group.startswith("dac"):
                layer = layer[:-1]  # convolution and activation are a pair there
            tensor = _with_condition(state, key).float()
            if tensor.ndim == 4 and group.endswith("period"):
                tensor = tensor.squeeze(-1)  # kernels one column wide
            elif tensor.ndim == 4 and group == "resolution":
                tensor = tensor.transpose(2, 3)  # bins before frames there
            name = ".".join(["groups", group, str(place), *layer, _CONV_ENDS[key.rsplit(".", 1)[1]]])
            result[name] = tensor.contiguous()
    return result


def _place(key: str, prefix: str) -> int:
    """Which of its part's discriminators a key belongs to."""
    return int(key.removeprefix(f"{prefix}discriminators.").split(".", 1)[0])


def _with_condition(state: Mapping[str, Tensor], key: str) -> Tensor:
    """A tensor; of a last convolution the one with the condition of row 0 in its middle tap."""
    layer, end = key.rsplit(".", 1)
    condition = layer.removesuffix("conv_post") + "emb.weight"
    if not layer.endswith("conv_post") or condition not in state or end == "bias":
        return state[key]
    try:
        direction, length = state[f"{layer}.weight_v"].float(), state[f"{layer}.weight_g"].float()
        weight = direction * (length / torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True))
        weight[0, :, weight.shape[2] // 2, weight.shape[3] // 2] += state[condition][0].float()
    except (KeyError, IndexError, RuntimeError) as error:  # one is missing, or of another shape
        raise ModelError(f"{condition} does not fit the convolution {layer}") from error
    return weight if end == "weight_v" else torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
