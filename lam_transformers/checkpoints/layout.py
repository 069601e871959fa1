"""The published checkpoints: which tensor has which place in the model, and what the shapes say about the model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..published.configuration_lam_published import LAMPublishedConfig
from ..published.modeling_lam_published import LAMPublishedModel

EMBEDDINGS = "embeddings"
MEMORY = "memory layers"


@dataclass(frozen=True)
class Place:
    """What a tensor is.

    Attributes:
        role: its name in the converted model; copies of one tensor share it.
        part: its line in the table of components.
        family: its line in the breakdown that was published with the checkpoints.
        needed: whether the published forward pass uses it (memory layers are needed whole).
        training: whether it belongs to the training and not to the model.
    """

    role: str
    part: str
    family: str
    needed: bool = True
    training: bool = False


_TEACHER = r"(?:teacher_model\.)?"
_LAYER = _TEACHER + r"encoder\.layer\.(?P<i>\d+)\."
_ATTENTION = _LAYER + r"attention\."
_KIND = r"\.(?P<kind>weight|bias)"
_QKV = "layers.{i}.attention.{rest}.{kind}"
_ATTENTION_OUT = "layers.{i}.attention.output.{kind}"
_IN_PROJ = "layers.{i}.feed_forward.in_proj.{kind}"
_OUT_PROJ = "layers.{i}.feed_forward.out_proj.{kind}"
_LAST_NORM = "layers.{i}.feed_forward_norm.{kind}"
# (pattern of the name, role, part, family, needed). The first that matches decides.
_PATTERNS = (
    (_TEACHER + r"embeddings\.position_ids", "position_ids", "position counter", "other", False),
    (_TEACHER + r"embeddings\.(?P<rest>.+)", "embeddings.{rest}", EMBEDDINGS, "embeddings", True),
    (r"(?:deltanet|lam)_layers\.(?P<i>\d+)\.(?P<rest>.+)", "layers.{i}.memory.{rest}", MEMORY, "DeltaNet", True),
    (r"(?:deltanet|lam)_norms\.(?P<i>\d+)" + _KIND, "layers.{i}.memory_norm.{kind}", "norms", "DeltaNet", True),
    (r"deltanet_ffns\.(?P<i>\d+)(?:\.dense)?" + _KIND, _IN_PROJ, "intermediate.dense", "DeltaNet", True),
    (r"output_dense_layers\.(?P<i>\d+)(?:\.dense)?" + _KIND, _OUT_PROJ, "output.dense", "FFN", True),
    (r"ffn_norms\.(?P<i>\d+)" + _KIND, _LAST_NORM, "norms", "FFN", True),
    (
        _ATTENTION + r"self\.(?P<rest>query|key|value)" + _KIND,
        _QKV,
        "attention q, k, v",
        "base/attention",
        False,
    ),
    (_ATTENTION + r"output\.dense" + _KIND, _ATTENTION_OUT, "attention.output.dense", "FFN", False),
    (_ATTENTION + r"output\.LayerNorm" + _KIND, "layers.{i}.memory_norm.{kind}", "norms", "layer norms", True),
    (_LAYER + r"intermediate\.dense" + _KIND, _IN_PROJ, "intermediate.dense", "FFN", True),
    (_LAYER + r"output\.dense" + _KIND, _OUT_PROJ, "output.dense", "FFN", True),
    (_LAYER + r"output\.LayerNorm" + _KIND, _LAST_NORM, "norms", "layer norms", True),
    (_TEACHER + r"pooler\.dense" + _KIND, "pooler.{kind}", "pooler", "other", False),
)
_PLACES: tuple[tuple[re.Pattern[str], str, str, str, bool], ...] = tuple(
    (re.compile(pattern), role, part, family, needed) for pattern, role, part, family, needed in _PATTERNS
)
_TRAINING = re.compile(
    r"(feature_proj|projections|emb_projection|optimizer_state_dict|scheduler_state_dict|optimizer|scheduler|config)\."
)


def place_of(name: str) -> Place | None:
    """The place of a tensor of a published checkpoint or of a BERT; None for a name that neither has."""
    for pattern, role, part, family, needed in _PLACES:
        if match := pattern.fullmatch(name):
            return Place(role.format(**match.groupdict()), part, family, needed)
    if match := _TRAINING.match(name):
        return Place(name, match[1], "training", needed=False, training=True)
    return None


def has_memory(names: Iterable[str]) -> bool:
    """Whether tensors of these names include the memory layers of a published checkpoint."""
    return any(re.match(r"(deltanet|lam)_layers\.\d+\.", name) for name in names)


def is_bert(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a BERT's and nothing of a published checkpoint's."""
    names = list(names)
    whole = all(name.startswith(("embeddings.", "encoder.", "pooler.")) for name in names)
    return whole and any(re.match(_LAYER + "attention", name) for name in names)


def published_name(role: str) -> str:
    """The published name of a tensor of the converted model, for messages."""
    for pattern, name in (
        (r"layers\.(\d+)\.memory\.", r"deltanet_layers.\1."),
        (r"layers\.(\d+)\.memory_norm\.", r"deltanet_norms.\1."),
        (r"layers\.(\d+)\.feed_forward\.in_proj\.", r"deltanet_ffns.\1.dense."),
        (r"layers\.(\d+)\.feed_forward\.out_proj\.", r"encoder.layer.\1.output.dense."),
        (r"layers\.(\d+)\.feed_forward_norm\.", r"ffn_norms.\1."),
    ):
        role = re.sub(pattern, name, role)
    return role


def config_of(tensors: dict[str, torch.Tensor], rule: str | None = None) -> LAMPublishedConfig:
    """The configuration that the shapes of `tensors` (role -> tensor) imply; a file's own config is not looked at.

    Args:
        rule: "flat" or "main"; None for the rule of the layout ("final" ran under flat, "main" under main).

    Raises:
        ValueError: if a tensor that decides is missing or has no such shape.
    """

    def shape(role: str, *ndims: int) -> tuple[int, ...]:
        if role not in tensors:
            raise ValueError(f"{published_name(role)} is missing: {_mend([role])}.")
        if tensors[role].ndim not in ndims or 0 in tensors[role].shape:
            raise ValueError(f"{published_name(role)} has shape {list(tensors[role].shape)}, which no such tensor has.")
        return tuple(tensors[role].shape)

    layers = {int(m[1]) for role in tensors if (m := re.match(r"layers\.(\d+)\.", role))}
    # A number that no shape depends on must not decide how many layers are built.
    if not layers or max(layers) >= len(tensors):
        raise ValueError(f"The layers are numbered {sorted(layers)}: this is no complete published checkpoint.")
    memory = "layers.0.memory."
    layout = "final" if len(shape(memory + "resonance_flux.W_bilinear", 2, 3)) == 3 else "main"
    vocab, size = shape("embeddings.word_embeddings.weight", 2)
    heads = shape(memory + "b_proj.weight", 2)[0]
    if size % heads:
        raise ValueError(f"{published_name(memory)}b_proj.weight has {heads} heads, which do not divide {size}.")
    return LAMPublishedConfig(
        vocab_size=vocab,
        hidden_size=size,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=heads,
        intermediate_size=shape("layers.0.feed_forward.in_proj.weight", 2)[0],
        max_position_embeddings=shape("embeddings.position_embeddings.weight", 2)[0],
        type_vocab_size=shape("embeddings.token_type_embeddings.weight", 2)[0],
        flux_hidden_size=shape(memory + "resonance_flux.flux_net.0.weight", 2)[0],
        layout=layout,
        rule=rule or {"final": "flat", "main": "main"}[layout],
    )


def _mend(missing: Iterable[str]) -> str:
    if any(".memory." in role for role in missing):
        return "the file is cut down or damaged"
    return "give the model it was trained from with --base (lam_base.bin, or all-MiniLM-L6-v2)"


def check_complete(tensors: dict[str, torch.Tensor], names: dict[str, str], config: LAMPublishedConfig) -> None:
    """Raise ValueError unless `tensors` are exactly those of the model of `config`, shape for shape.

    names: role -> name in the file, for the messages.
    """
    with torch.device("meta"):
        model = LAMPublishedModel(config)
    expected = {role: tuple(x.shape) for role, x in model.state_dict().items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        shown = ", ".join(published_name(role) for role in missing[:4])
        raise ValueError(f"{len(missing)} tensors are missing, such as {shown}: {_mend(missing)}.")
    if extra := sorted(tensors.keys() - expected.keys()):
        shown = ", ".join(names[role] for role in extra[:4])
        raise ValueError(
            f"{len(extra)} tensors, such as {shown}, have no place in a model of {config.num_hidden_layers} layers of "
            f"layout '{config.layout}'; this is no published checkpoint."
        )
    for role, x in tensors.items():
        if tuple(x.shape) != expected[role]:
            raise ValueError(
                f"{names[role]} has shape {list(x.shape)}, the other tensors imply {list(expected[role])}."
            )
