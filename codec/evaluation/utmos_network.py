"""The network of UTMOS22 strong, and the three layouts in which its weights are passed around."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.errors import ModelError
from codec.evaluation.checkpoint import read_tensors
from codec.evaluation.hub import import_transformers
from codec.model.weights import check_fit

LISTENER = 288  # the artificial listener whose ratings are the means of all
DOMAIN = 0  # the main track


class UtmosNetwork(nn.Module):
    """wav2vec 2.0, two constant embeddings, a bidirectional LSTM and two linear layers.

    Args:
        config: of transformers' `Wav2Vec2Model`; None is the base model, which the published weights need.
        embedding_dim: width of the domain's and of the listener's embedding.
        rnn_dim: of the LSTM, per direction.
        projection_dim: between the linear layers.
    """

    domain: Tensor
    listener: Tensor

    def __init__(self, config: Any = None, embedding_dim: int = 128, rnn_dim: int = 512, projection_dim: int = 2048):
        super().__init__()
        transformers = import_transformers()
        config = config or transformers.Wav2Vec2Config()
        self.wav2vec2 = transformers.Wav2Vec2Model(config)
        self.register_buffer("domain", torch.zeros(embedding_dim))
        self.register_buffer("listener", torch.zeros(embedding_dim))
        width = config.hidden_size + 2 * embedding_dim
        self.lstm = nn.LSTM(width, rnn_dim, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * rnn_dim, projection_dim), nn.ReLU(), nn.Linear(projection_dim, 1))

    def forward(self, wav: Tensor) -> Tensor:
        """(B, T) at 16 kHz -> (B,) scores. All of one length: there is no mask."""
        features = self.wav2vec2(wav).last_hidden_state  # (B, N, H)
        constant = torch.cat([self.domain, self.listener]).expand(*features.shape[:2], -1)
        hidden, _ = self.lstm(torch.cat([features, constant], dim=-1))  # (B, N, 2 * rnn_dim)
        return self.projection(hidden).mean(dim=(1, 2)) * 2 + 3

    @classmethod
    def load(cls, path: Path) -> "UtmosNetwork":
        """The network with the weights of a file, in eval mode.

        Raises:
            ModelError: see `read_tensors` and `take`.
        """
        network = cls()
        network.take(read_tensors(path, _is_wanted), path)
        return network.eval()

    def take(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Take the weights of any known layout.

        Raises:
            ModelError: the layout is unknown, or weights are missing, surplus or of another shape.
        """
        expected = self.state_dict()
        found = {_weight_norm_name(name, expected): tensor.float() for name, tensor in rename(tensors, path).items()}
        # What training masks with has no part in scoring, and not every file has it.
        found.setdefault("wav2vec2.masked_spec_embed", torch.zeros(self.wav2vec2.config.hidden_size))
        expected.setdefault("wav2vec2.masked_spec_embed", found["wav2vec2.masked_spec_embed"])
        check_fit(expected, found, f"{path}: is not UTMOS22 strong")
        own = self.state_dict()
        self.load_state_dict({name: tensor for name, tensor in found.items() if name in own})


# ------------------------------------------------------------------------------------------------------------ layouts


class _Layout(NamedTuple):
    marker: str  # a key that only it has
    prefix: str  # of the wav2vec 2.0 weights
    is_fairseq: bool  # whether those have fairseq's names
    heads: dict[str, str]  # the beginnings of all other names, here and in `UtmosNetwork`


_LAYOUTS = (
    _Layout(  # of the demonstration, by Lightning
        "output_layers.0.judge_embedding.weight",
        "feature_extractors.0.ssl_model.",
        True,
        {
            "feature_extractors.1.embedding.weight": "domain",
            "output_layers.0.judge_embedding.weight": "listener",
            "output_layers.0.decoder_rnn.": "lstm.",
            "output_layers.1.net.0.": "projection.0.",
            "output_layers.1.net.3.": "projection.2.",
        },
    ),
    _Layout(  # of SpeechMOS
        "judge_emb",
        "wav2vec2.",
        True,
        {
            "domain_emb": "domain",
            "judge_emb": "listener",
            "blstm.": "lstm.",
            "projection.0.": "projection.0.",
            "projection.2.": "projection.2.",
        },
    ),
    _Layout(  # of SpeechBrain
        "judge_embedding.weight",
        "ssl_encoder.model.",
        False,
        {
            "domain_embedding.weight": "domain",
            "judge_embedding.weight": "listener",
            "decoder.": "lstm.",
            "classifier.0.": "projection.0.",
            "classifier.3.": "projection.2.",
        },
    ),
)

_FAIRSEQ = (
    # From the longest to the shortest, so that no name is the beginning of another.
    ("encoder.pos_conv.0.", "encoder.pos_conv_embed.conv."),
    ("post_extract_proj.", "feature_projection.projection."),
    (".self_attn_layer_norm.", ".layer_norm."),
    (".self_attn.", ".attention."),
    (".fc1.", ".feed_forward.intermediate_dense."),
    (".fc2.", ".feed_forward.output_dense."),
)

# Of fairseq's pre-training, not of the network: they may stand in a checkpoint and are passed over.
_PRETRAINING = ("quantizer.", "project_q.", "final_proj.", "target_glu.")


def rename(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights of any known layout by the names of `UtmosNetwork`, weight norm as `weight_g` and `weight_v`.

    Raises:
        ModelError: the layout is unknown.
    """
    layout = next((layout for layout in _LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        raise ModelError(
            f"{path}: is in none of the known layouts of UTMOS22 strong (the checkpoint of its demonstration, "
            f"SpeechMOS, SpeechBrain)"
        )
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(layout.prefix):
            inner = name.removeprefix(layout.prefix)
            if not layout.is_fairseq:
                renamed[f"wav2vec2.{inner}"] = tensor
            elif not inner.startswith(_PRETRAINING):
                renamed[f"wav2vec2.{_from_fairseq(inner)}"] = tensor
        for old, new in layout.heads.items():
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = tensor
    # Embeddings come as tables, or as the one row that is used.
    for name, row in (("domain", DOMAIN), ("listener", LISTENER)):
        if name in renamed and renamed[name].ndim == 2:
            table = renamed[name]
            used = row if len(table) != 1 else 0
            if used >= len(table):
                raise ModelError(f"{path}: its {name} table has {len(table)} rows, row {used} is needed")
            renamed[name] = table[used]
    return renamed


def _from_fairseq(name: str) -> str:
    if name == "mask_emb":
        return "masked_spec_embed"
    if name.startswith("layer_norm."):
        return "feature_projection." + name
    if name.startswith("feature_extractor.conv_layers."):
        parts = name.split(".")  # feature_extractor conv_layers N 0 weight, or N 2 bias
        parts[3] = {"0": "conv", "2": "layer_norm"}.get(parts[3], parts[3])
        return ".".join(parts)
    for old, new in _FAIRSEQ:
        name = name.replace(old, new)
    return name


def _weight_norm_name(name: str, expected: dict[str, Tensor]) -> str:
    """The name of weight norm's halves that this release of transformers uses."""
    for letter, number in (("g", 0), ("v", 1)):
        old, new = f"weight_{letter}", f"parametrizations.weight.original{number}"
        for one, other in ((old, new), (new, old)):
            if name.endswith(f".{one}") and name not in expected:
                return name.removesuffix(one) + other
    return name


def _is_wanted(name: str) -> bool:
    return any(name.startswith((layout.prefix, *layout.heads)) for layout in _LAYOUTS)
