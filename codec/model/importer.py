"""Published WavTokenizer and SimVQ checkpoints -> our model directories, and back to their key names.

The one place that unpickles: always with torch's restricted loader, after a look at the classes the file asks for, and
never by a list that can grow at run time. Everything is checked before anything is written.
"""

import io
import os
import pickle
import pickletools
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from codec.digests import sha256
from codec.errors import ConfigError, ModelError, first_line
from codec.model import upstream
from codec.model.catalogue import DISCRIMINATORS_NAME
from codec.model.codec import Codec, CodecConfig
from codec.model.quantizer import SimVQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.model.weights import blank, load, read_tensors, save
from codec.output import open_output

ALLOWED_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch.DoubleStorage",
        "torch.HalfStorage",
        "torch.BFloat16Storage",
        "torch.LongStorage",
        "torch.IntStorage",
        "torch.ShortStorage",
        "torch.CharStorage",
        "torch.ByteStorage",
        "torch.BoolStorage",
        "torch.Size",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
    }
)
"""All that a checkpoint's pickle may name. Every one is also on torch's own list for `weights_only=True`."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass
class ImportReport:
    """What became of every key of a checkpoint."""

    kind: str
    weights: str
    """"ema" or "raw"; "ema" only where the checkpoint holds averages."""
    config: CodecConfig
    source: Path = Path()
    sha256: str = ""
    matched: list[str] = field(default_factory=list)
    """Keys whose tensors are in the model."""
    kept: list[str] = field(default_factory=list)
    """Keys of discriminators that were written beside the model."""
    unused: dict[str, list[str]] = field(default_factory=dict)
    """Keys that were left out, by group."""
    missing: list[str] = field(default_factory=list)
    """Groups of which a published checkpoint has keys and this one has none. A tensor that is needed and missing is an
    error instead."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        unused = [f"  {len(keys):5d} {group}" for group, keys in self.unused.items()]
        lines = [
            f"matched {len(self.matched)} keys ({self.weights} weights)",
            *([f"kept {len(self.kept)} keys of discriminators"] if self.kept else []),
            f"unused {sum(map(len, self.unused.values()))} keys{':' if unused else ''}",
            *unused,
            f"missing {', '.join(self.missing) or 'none'}",
            *self.notes,
        ]
        return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Import


def import_checkpoint(
    path: str | Path,
    kind: str,
    out_dir: str | Path,
    *,
    config: str | Path | None = None,
    weights: str = "ema",
    keep_discriminators: bool = False,
    with_simvq: bool = False,
) -> ImportReport:
    """Turn a published checkpoint into a model directory.

    Args:
        path: the checkpoint: a PyTorch file (Lightning's, or a bare state dict) or safetensors.
        kind: "wavtokenizer" or "simvq".
        out_dir: the directory to make; it must be missing or empty.
        config: the YAML file that the model was trained with. Without it the architecture is inferred from the shapes,
            with a sample rate of 24 kHz.
        weights: "ema" takes SimVQ's weight averages, which is what its authors evaluate, "raw" the last step's weights.
            WavTokenizer has no averages.
        keep_discriminators: also write them, for fine-tuning with the discriminators' published settings.
        with_simvq: put a SimVQ in the place of WavTokenizer's codebook, see `replace_codebook`.

    Returns:
        What became of every key.

    Raises:
        ModelError: the file is no such checkpoint, damaged, not safe to open, has a key that is unknown, missing or of
            another shape; or `out_dir` cannot be used. Nothing has been written then.
        ConfigError: the YAML file cannot be used or disagrees with the checkpoint; or an argument is none of the above.
    """
    path, out_dir = Path(path), Path(out_dir)
    _check_choices(kind, weights)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ModelError(f"{out_dir}: is not an empty directory; choose another name for the model")
    values = None if config is None else _read_yaml(Path(config))
    state = read_state_dict(path)
    try:
        settings = infer_config(state, kind)
        if config is not None:
            upstream.apply_yaml(kind, values, settings)
        codec, report = convert(state, kind, settings, weights=weights)
        discriminators = _kept_discriminators(kind, state, report) if keep_discriminators else {}
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if with_simvq:
        codec = replace_codebook(codec)
        report.config = codec.config
        report.notes.append("the codebook became the frozen one of a SimVQ whose linear layer is the identity")
    report.source, report.sha256 = path, sha256(path)
    _write(codec, report, discriminators, out_dir)
    return report


def infer_config(state: Mapping[str, Tensor], kind: str) -> CodecConfig:
    """The architecture of a published state dict, told from its shapes.

    Raises:
        ModelError: the state dict is of another kind, or lacks what tells.
    """
    other = upstream.looks_like(state)
    if other is None:
        raise ModelError(f"has no key of a {kind} model; it begins with {', '.join(list(state)[:3])}")
    if other != kind:
        raise ModelError(f"is a {other} checkpoint, not a {kind} one; import it as such")
    return upstream.infer_config(kind, {key: tensor.shape for key, tensor in state.items()})


def convert(
    state: Mapping[str, Tensor], kind: str, config: CodecConfig | None = None, *, weights: str = "ema"
) -> tuple[Codec, ImportReport]:
    """The codec in a published state dict, in eval mode, and what became of every key.

    Args:
        state: upstream key -> tensor.
        kind: "wavtokenizer" or "simvq".
        config: the architecture; inferred where it is left out.
        weights: as for `import_checkpoint`.

    Raises:
        ModelError: a key is unknown, missing, of another shape, or holds other than finite floating-point numbers.
    """
    _check_choices(kind, weights)
    config = infer_config(state, kind) if config is None else config
    weights = "raw" if kind == "wavtokenizer" else weights
    names = upstream.key_map(config, kind)
    sources = {(upstream.ema_key(key) if weights == "ema" else key): name for key, name in names.items()}
    if weights == "ema" and not any(key.startswith(upstream.EMA_PREFIX) for key in state):
        raise ModelError("has no weight averages (model_ema.*); import its raw weights")
    missing = [key for key in sources if key not in state]
    if missing:
        raise ModelError(f"lacks {missing[0]}" + (f" and {len(missing) - 1} more keys" if len(missing) > 1 else ""))
    unused, absent = _sort_unused(kind, state, names, sources)
    report = ImportReport(kind, weights, config, matched=list(sources), unused=unused, missing=absent)
    try:
        codec = blank(config)
    except ConfigError as error:
        raise ModelError(f"its shapes are not those of a {kind} model: {error}") from error
    _check_shapes(state, names, codec.state_dict())
    tensors, differing = {}, 0
    for key, name in sources.items():
        tensor = state[key]
        if not tensor.is_floating_point():
            raise ModelError(f"{key} holds {tensor.dtype}, expected floating point")
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{key} has values that are NaN or infinite")
        if upstream.is_conditioned(key):
            differing += bool((tensor != tensor[:1]).any())
            tensor = tensor[0]
        tensors[name] = tensor
    if differing:
        report.notes.append(
            f"the rows of {differing} adaptive norm tensors, one per bandwidth, differ; "
            f"row 0, which inference uses, is kept"
        )
    codec.load_state_dict(tensors)
    return codec.eval(), report


def _check_choices(kind: str, weights: str) -> None:
    if kind not in upstream.KINDS:
        raise ConfigError(f"a checkpoint is of kind {' or '.join(upstream.KINDS)}, got {kind!r}")
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights must be ema or raw, got {weights!r}")


def replace_codebook(codec: Codec) -> Codec:
    """The same codec with a SimVQ in the place of its plain codebook, so that all codes can be trained.

    The codebook is the frozen one, and the linear layer begins as the identity: at first every code is what it was.

    Raises:
        ModelError: the codec's quantizer is not a plain codebook.
    """
    old = codec.config.quantizer
    if old.kind != "vq":
        raise ModelError(
            f"only a plain codebook can be replaced by SimVQ, this codec has a quantizer of kind {old.kind}"
        )
    quantizer = SimVQConfig(codebook_size=old.codebook_size, codebook_dim=old.codebook_dim)
    state = codec.state_dict()
    state["quantizer.projection.weight"] = torch.eye(old.codebook_dim)
    state["quantizer.projection.bias"] = torch.zeros(old.codebook_dim)
    result = blank(replace(codec.config, quantizer=quantizer))
    result.load_state_dict(state)
    return result.train(codec.training)


def _sort_unused(
    kind: str, state: Mapping[str, Tensor], names: Mapping[str, str], sources: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Keys that are not in `sources` by group, and groups without keys."""
    unused: dict[str, list[str]] = {}
    copies = dict.fromkeys(names, "raw weights beside their averages")
    if kind == "simvq":
        copies |= {upstream.ema_key(key): "weight averages" for key in names if upstream.ema_key(key) != key}
    groups = upstream.unused_groups(kind)
    for key in state:
        if key in sources:
            continue
        group = copies.get(key) or next((name for name, holds in groups.items() if holds(key)), None)
        if group is None:
            raise ModelError(f"has the unknown key {key}")
        unused.setdefault(group, []).append(key)
    return unused, [name for name in groups if name not in unused]


def _check_shapes(state: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor]) -> None:
    """Hold every tensor of the codec, averaged or not, and what can be told of the others against what they must be."""
    for key, name in names.items():
        for copy in {key, upstream.ema_key(key)} & set(state):
            found, wanted = tuple(state[copy].shape), tuple(ours[name].shape)
            if upstream.is_conditioned(key) and len(found) == 2 and found[0] > 0:
                found = found[1:]
            if found != wanted:
                raise ModelError(f"{copy} has shape {tuple(state[copy].shape)}, expected {wanted}")
    for key, tensor in state.items():
        direction = state.get(key[:-1] + "v") if key.endswith("weight_g") else None
        if direction is not None and tuple(tensor.shape) != (direction.shape[:1] + (1,) * (direction.ndim - 1)):
            raise ModelError(f"{key} has shape {tuple(tensor.shape)}, which does not fit {key[:-1]}v")


def _kept_discriminators(kind: str, state: Mapping[str, Tensor], report: ImportReport) -> dict[str, Tensor]:
    keys = report.unused.pop(upstream.DISCRIMINATORS, [])
    report.kept = [key for key in keys if key.startswith(upstream.discriminator_prefixes(kind))]
    if not report.kept:
        raise ModelError("has no discriminators that could be kept")
    if len(report.kept) < len(keys):
        report.unused[f"second copy of {upstream.DISCRIMINATORS}"] = sorted(set(keys) - set(report.kept))
    return upstream.our_discriminators(kind, {key: state[key] for key in report.kept})


def _write(codec: Codec, report: ImportReport, discriminators: dict[str, Tensor], directory: Path) -> None:
    """Write the model directory beside its place, then move it there."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
            partial = Path(temporary) / "model"
            save(codec, partial, card=model_card(codec, report))
            if discriminators:
                with open_output(partial / DISCRIMINATORS_NAME) as stream:
                    stream.write(safetensors.torch.save(discriminators))
            if directory.exists():
                directory.rmdir()  # it is empty
            os.replace(partial, directory)
    except OSError as error:
        raise ModelError(f"{directory}: cannot be written ({error.strerror or error})") from error


def model_card(codec: Codec, report: ImportReport) -> str:
    """The card of an imported model, Markdown."""
    report_lines = "\n".join("    " + line for line in str(report).splitlines())
    return f"""# {report.source.stem}

Imported from a published {report.kind} checkpoint, {report.weights} weights. The terms of its publisher apply.

- source: `{report.source}`
- sha256 of the source: `{report.sha256}`
- {codec.sample_rate} Hz, {codec.frame_rate:g} codes per second, {codec.codebook_size} codes, {codec.bitrate:g} kbit/s
- parameters: {sum(p.numel() for p in codec.parameters()) / 1e6:.1f} M

{report_lines}
"""


# ---------------------------------------------------------------------------------------------------------------------
# Reading files that may be anything


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without running any code that the file asks for.

    Args:
        path: a PyTorch file that holds a state dict, or a dictionary with one under "state_dict"; or safetensors.

    Raises:
        ModelError: the file is missing, damaged, something else, or names classes outside `ALLOWED_GLOBALS`.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except IsADirectoryError as error:
        raise ModelError(f"{path}: is a directory; name the checkpoint file in it") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not head:
        raise ModelError(f"{path}: is empty; download it again")
    if head.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path}: is a git-LFS pointer, not the weights; run `git lfs pull` or download the file itself"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise ModelError(f"{path}: is a web page, not a checkpoint; download the file itself")
    if head[:4] == b"PK\x03\x04":
        loaded = _read_zip(path)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        loaded = read_tensors(path)
    elif head[:1] == b"\x80":
        loaded = _read_pickle(path)
    else:
        raise ModelError(f"{path}: is neither a PyTorch file nor safetensors")
    return _state_dict_in(path, loaded)


def _read_zip(path: Path) -> Any:
    """PyTorch's format since 1.6: a zip archive of one pickle and the tensors' bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if len(pickles) != 1 or any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ModelError(f"{path}: is a zip archive, but not one that PyTorch wrote")
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelError(f"{path}: is damaged in {damaged}; download it again")
            _refuse_foreign(path, io.BytesIO(archive.read(pickles[0])))
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{path}: is cut off or damaged ({error}); download it again") from error
    return _load(path, mmap=True)


def _read_pickle(path: Path) -> Any:
    """PyTorch's format before 1.6: five pickles in a row (two marks, the machine, the object, the tensors' keys)."""
    with open(path, "rb") as stream:
        for _ in range(5):
            _refuse_foreign(path, stream)
    return _load(path, mmap=False)


def _load(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # the loader raises half a dozen types for damaged files
        raise ModelError(f"{path}: cannot be read as a PyTorch file ({first_line(error)})") from error


def _refuse_foreign(path: Path, stream: BinaryIO) -> None:
    if (foreign := _foreign_global(stream)) is not None:
        raise ModelError(
            f"{path}: is not only tensors: it asks for {foreign}, which could run code and was not loaded; "
            f"save its state_dict alone where you trust it"
        )


def _foreign_global(stream: BinaryIO) -> str | None:
    """The first class or function that a pickle names and `ALLOWED_GLOBALS` lacks; nothing is loaded.

    The stream is left behind the pickle. A damaged one is taken to its readable end: loading it will tell.
    """
    # A damaged size may be larger than the memory.
    with suppress(ValueError, pickle.UnpicklingError, EOFError, OverflowError, MemoryError):
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
                if name not in ALLOWED_GLOBALS:
                    return name
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                return "a class that it names indirectly"
    return None


def _state_dict_in(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"{path}: holds {type(loaded).__name__}, not a checkpoint or state dict with tensors")
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"{path}: its state_dict is empty or no dictionary")
    odd = next((key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None)
    if odd is not None:
        if state is loaded:
            keys = ", ".join(str(key) for key in list(loaded)[:5])
            raise ModelError(f"{path}: is neither a checkpoint with a state_dict nor a state dict; it holds {keys}")
        raise ModelError(f"{path}: {odd} in its state_dict is no tensor")
    return dict(state)


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"{path}: to read YAML, pip install pyyaml; or leave the configuration out") from error
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # values that are not of the type that a tag says, or nested deeply, raise anything
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}: is not YAML{f', see line {mark.line + 1}' if mark else ''}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Export


def export_state_dict(codec: Codec) -> dict[str, Tensor]:
    """The weights of a reference-family codec under the published key names.

    A causal encoder with SimVQ becomes a SimVQ state dict, any other a WavTokenizer one, whose four conditions are then
    equal and whose codebook is the effective one. Tensors are float32 on the CPU.

    Raises:
        ModelError: no published network has this architecture.
    """
    config = codec.config
    if not isinstance(config.encoder, SEANetEncoderConfig) or not isinstance(config.decoder, VocosDecoderConfig):
        raise ModelError(
            f"a codec with a {config.encoder.kind} encoder and a {config.decoder.kind} decoder has no published "
            f"counterpart; only seanet with vocos can be exported"
        )
    if config.decoder.num_groups != 32:
        raise ModelError(f"published decoders have num_groups 32, not {config.decoder.num_groups}")
    kind = _export_kind(config)
    ours = {name: tensor.detach().float().cpu() for name, tensor in codec.state_dict().items()}
    if kind == "wavtokenizer":
        ours["quantizer.codebook"] = codec.quantizer.effective_codebook().detach().float().cpu()
    elif not config.quantizer.bias:
        ours["quantizer.projection.bias"] = torch.zeros(config.quantizer.codebook_dim)
    state = {}
    for key, name in upstream.key_map(config, kind).items():
        tensor = ours[name] if name in ours else _unfolded(ours, name)
        state[key] = tensor.repeat(upstream.NUM_CONDITIONS, 1) if upstream.is_conditioned(key) else tensor
    state[upstream.WINDOW] = torch.hann_window(config.decoder.n_fft)
    return state


def _export_kind(config: CodecConfig) -> str:
    if config.quantizer.kind not in ("vq", "ema", "simvq", "lc"):
        raise ModelError(f"a quantizer of kind {config.quantizer.kind} has no published counterpart in a codec")
    if isinstance(config.quantizer, SimVQConfig):
        return "simvq" if config.encoder.is_causal else "wavtokenizer"
    if config.encoder.is_causal:
        raise ModelError("a causal encoder with a plain codebook has no published counterpart")
    return "wavtokenizer"


def _unfolded(ours: dict[str, Tensor], name: str) -> Tensor:
    """Length or direction of a weight whose weight norm has been folded: the weight is a direction of that length."""
    layer, part = name.split(".parametrizations.weight.")
    weight = ours[f"{layer}.weight"]
    return weight if part == "original1" else torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)


def export_checkpoint(model_dir: str | Path, out_path: str | Path, *, overwrite: bool = False) -> None:
    """Write a model directory's weights under the published key names, for other tools.

    Args:
        model_dir: a model of the reference family.
        out_path: the suffix decides. `.ckpt`: a dictionary with "state_dict", as the published loaders take it; it also
            has what they insist on without using it (for WavTokenizer the other decoder, in zeros) or want twice (for
            SimVQ the weight averages). `.safetensors`: the state dict alone. Any other: the same as a PyTorch file.
        overwrite: replace an existing file.

    Raises:
        ModelError: the directory is no model, or no published network has its architecture.
        OSError: the file exists or cannot be written.
    """
    codec, out_path = load(model_dir), Path(out_path)
    state = export_state_dict(codec)
    data = io.BytesIO()
    if out_path.suffix == ".safetensors":
        data.write(safetensors.torch.save({key: tensor.contiguous() for key, tensor in state.items()}))
    elif out_path.suffix == ".ckpt":
        torch.save({"state_dict": state | upstream.placeholders(codec.config, _export_kind(codec.config), state)}, data)
    else:
        torch.save(state, data)
    with open_output(out_path, overwrite=overwrite) as stream:
        stream.write(data.getbuffer())
