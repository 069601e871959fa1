"""A LAM of this project started from a published checkpoint: `lam convert --to gated_delta`."""

import torch
from torch import nn

from ..model.configuration_lam import LAMConfig
from ..model.memory_lam import LAMMemory
from ..model.modeling_lam import LAMModel
from ..published.configuration_lam_published import LAMPublishedConfig


@torch.no_grad()
def start_successor(
    tensors: dict[str, torch.Tensor], config: LAMPublishedConfig, gate_rank: int | None = None
) -> tuple[LAMModel, list[dict[str, str]]]:
    """A LAM with what a published checkpoint and LAM have in common; it needs distillation.

    Args:
        tensors: role -> tensor, complete for `config`.
        config: of the published checkpoint.
        gate_rank: rank of the output gate; None takes the full matrix over as it is, a rank its best approximation.

    Returns:
        A float32 `LAMModel`, and the mapping: one {"to", "from", "how"} for each part.
    """
    model = LAMModel(
        LAMConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            position_table_size=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            flux_hidden_size=config.flux_hidden_size,
            pad_token_id=config.pad_token_id,
            output_gate_rank=gate_rank,
        )
    )
    model.embeddings.load_state_dict(_below(tensors, "embeddings."))
    errors = []
    for i, layer in enumerate(model.layers):
        for name in ("memory_norm", "feed_forward", "feed_forward_norm"):
            getattr(layer, name).load_state_dict(_below(tensors, f"layers.{i}.{name}."))
        errors.append(_start_memory(layer.memory, _below(tensors, f"layers.{i}.memory."), gate_rank))
    return model.eval(), _mapping(config, gate_rank, errors)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def _start_memory(memory: LAMMemory, theirs: dict[str, torch.Tensor], gate_rank: int | None) -> float:
    """Fill one memory and return the relative error of its output gate."""
    theirs = {name: x.float() for name, x in theirs.items()}
    heads = memory.heads
    size = 3 * theirs["q_proj.weight"].shape[0]
    rows = memory.in_proj.weight
    rows[:size] = torch.cat([theirs[f"{n}_proj.weight"] for n in "qkv"])
    # beta, slow, fast, gate_fast, gate_slow: the decays stay as they start.
    rows[size : size + heads] = theirs["b_proj.weight"]
    rows[size + 3 * heads : size + 5 * heads] = torch.cat(
        [theirs["fast_gate_proj.weight"], theirs["slow_gate_proj.weight"]]
    )
    # Their tap j weighs token t - 2 + j, ours t - 3 + j; the one that looks ahead has no place in a causal convolution.
    taps = torch.cat([theirs[f"{n}_conv1d.conv.weight"] for n in "qkv"])
    memory.conv1d.weight.copy_(torch.cat([torch.zeros_like(taps[..., :1]), taps[..., :3]], dim=-1))
    memory.conv1d.bias.copy_(torch.cat([theirs[f"{n}_conv1d.conv.bias"] for n in "qkv"]))
    _start_flux(memory.flux, _below(theirs, "resonance_flux."))
    memory.norm_weight.copy_(theirs["o_norm.weight"])
    memory.out_proj.weight.copy_(theirs["o_proj.weight"])
    memory.out_proj.bias.zero_()
    return _start_gate(memory, theirs["g_proj.weight"], rows[size + 5 * heads :], gate_rank)


def _start_gate(memory: LAMMemory, full: torch.Tensor, rows: torch.Tensor, rank: int | None) -> float:
    if rank == 0:
        return 1.0
    if rank is None:
        rows.copy_(full)
        return 0.0
    u, s, v = torch.linalg.svd(full)
    root = s[:rank].sqrt()
    memory.gate_proj.weight.copy_(u[:, :rank] * root)
    rows.copy_(root[:, None] * v[:rank])
    return float((s[rank:].square().sum() / s.square().sum()).sqrt())


def _start_flux(flux: nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    width = theirs["W_bilinear"].shape[-1]
    flux.bilinear.copy_(theirs["W_bilinear"].expand_as(flux.bilinear))
    # A temperature divides: near 0 it would drown everything else in the first updates.
    temperature = theirs["temp"]
    flux.temperature.copy_(torch.where(temperature < 0, -1.0, 1.0) * temperature.abs().clamp(min=0.1))
    # Their features are mean k, mean u and the resonance, ours q, k and the resonance.
    weight = theirs["flux_net.0.weight"]
    flux.in_proj.weight.copy_(
        torch.cat([torch.zeros_like(weight[:, :width]), weight[:, :width], weight[:, 2 * width :]], dim=1)
    )
    flux.in_proj.bias.copy_(theirs["flux_net.0.bias"])
    # Their psi favours the fast memory, ours is the share of the slow one.
    flux.out_proj.weight.copy_(-theirs["flux_net.2.weight"])
    flux.out_proj.bias.copy_(-theirs["flux_net.2.bias"])


def _mapping(config: LAMPublishedConfig, gate_rank: int | None, errors: list[float]) -> list[dict[str, str]]:
    gate = {
        None: "copied",
        0: "left out (--gate none)",
    }.get(gate_rank, f"best approximation of rank {gate_rank}, relative error up to {max(errors):.2f}")
    bilinear = "copied, head by head" if config.layout == "final" else "its one matrix copied to every head"
    unused = "" if config.rule == "main" else " (the published rule 'flat' never read it)"
    causal = "biases and three taps copied; the tap that looks ahead has no counterpart, the oldest one starts at 0"
    network = (
        "columns of k and of the resonance copied, those of q start at 0; negated, as psi there favours the fast memory"
    )
    decays = "not mapped, they start as in any LAM: they forget per token here, " + (
        "once per chunk there" if config.rule == "main" else "and the published rule 'flat' never reads them"
    )
    rows = (
        ("embeddings", "embeddings", "copied"),
        ("memory_norm, feed_forward_norm", "deltanet_norms, ffn_norms", "copied"),
        ("feed_forward", "deltanet_ffns, output.dense", "copied; one GELU here, two there"),
        ("memory: q, k, v", "q_proj, k_proj, v_proj", "copied"),
        ("memory: convolution", "q_conv1d, k_conv1d, v_conv1d", causal),
        ("memory: beta", "b_proj", "copied"),
        ("memory: gates of both memories", "fast_gate_proj, slow_gate_proj", "copied"),
        ("memory: output gate", "g_proj", gate),
        ("memory: norm and output projection", "o_norm.weight, o_proj", "copied; the bias starts at 0"),
        ("memory: flux, bilinear form", "W_bilinear, temp", bilinear + "; temperatures kept 0.1 away from 0" + unused),
        ("memory: flux, network", "flux_net", network + unused),
        ("memory: decays", "fast_decay_*, slow_decay_*", decays),
        (
            "nothing",
            "o_norm.gate" + (", token_flux_proj" if config.layout == "final" else ""),
            "no rule ever used them",
        ),
    )
    return [dict(zip(("to", "from", "how"), row, strict=True)) for row in rows]
