"""Associative recall of keys and values, through the rule alone and through the trained rule."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...model.delta_rule_lam import dual_delta_rule
from ...scoring.statistics import bootstrap_mean, paired_test
from ..data import MissingData, held_out_books
from .long_context import book_ids
from .probe import Recorder, additive_rule, read, replaced_rule

WIDTH = 32  # K = V of LAM-base-v1
OVERWRITTEN = 0.5  # share of the keys that get a second value
RULES = {"delta rule": dual_delta_rule, "additive": additive_rule}
KEYS = ("random", "alike")


def run(context) -> dict[str, Any]:
    """Share of N keys for which a memory returns their last value, delta rule against additive memory.

    The rule alone: one memory of 32 x 32 that forgets nothing and writes with full strength. The trained rule: the same
    keys and values with the write strengths, decays and memory weights that the trained model gives to real text.
    Null hypothesis for each number of pairs: the delta rule recalls no more than the additive memory (paired one-sided
    Wilcoxon test over the trials).
    """
    settings = context.settings
    gates: dict[str, Any] = {"rule alone": None}
    with context.may_lack():
        gates["trained rule"] = trained_gates(context, int(max(settings.recall_pairs) * (1 + OVERWRITTEN)))
    rows = []
    for through, given in gates.items():
        for pairs in settings.recall_pairs:
            context.say(f"recall of {pairs} pairs, {through}")
            for keys in KEYS:
                for overwrites in (False, True):
                    found = {
                        name: recall_shares(rule, pairs, keys, overwrites, settings.recall_trials, given)
                        for name, rule in RULES.items()
                    }
                    p = paired_test(found["delta rule"][0], found["additive"][0])
                    rows += [
                        {"through": through, "keys": keys, "pairs": pairs, "overwrites": overwrites, "rule": name,
                         "p": p, **bootstrap_mean(shares, settings.resamples), "cosine": float(cosines.mean())}
                        for name, (shares, cosines) in found.items()
                    ]  # fmt: skip
    return {"rows": rows, "width": WIDTH, "trials": settings.recall_trials, "overwritten": OVERWRITTEN}


@torch.inference_mode()
def recall_shares(
    rule, pairs: int, keys: str, overwrites: bool, trials: int, gates: dict[str, torch.Tensor] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of keys for which what the memory returns is nearest, of all values ever written, to the key's last value.

    Values are random signs. With `overwrites` half of the keys, drawn anew, are written once more with another value.

    Args:
        keys: "random": unit vectors of all directions; "alike": SiLU of those, as the model makes its keys.
        gates: beta [L, T, H], log_decay, write and read [L, T, H, 2] by name; every trial runs through all L H heads.
            The first token's `read` is what the memories are asked with in the end. None: write strength 1, no
            forgetting, one memory.

    Returns:
        the shares [trials], and the mean cosine between what is returned and the last value [trials].
    """
    g = torch.Generator().manual_seed(1000 * pairs + overwrites)
    drawn = torch.randn(trials, pairs, WIDTH, generator=g)
    k = unit = F.normalize(F.silu(drawn) if keys == "alike" else drawn, dim=-1)
    v = torch.randint(0, 2, (trials, pairs, WIDTH), generator=g) * 2.0 - 1
    last = torch.arange(pairs).expand(trials, -1)  # which write holds the last value of each key
    if overwrites:
        again = torch.rand(trials, pairs, generator=g).argsort(1)[:, : int(OVERWRITTEN * pairs)]
        second = torch.randint(0, 2, (*again.shape, WIDTH), generator=g) * 2.0 - 1
        k = torch.cat([unit, unit.gather(1, again.unsqueeze(-1).expand(-1, -1, WIDTH))], 1)
        v = torch.cat([v, second], 1)
        last = last.scatter(1, again, pairs + torch.arange(again.shape[1]).expand(trials, -1))
    if gates is None:
        one = torch.tensor([0.0, 1.0])
        gates = {"beta": torch.ones(1, k.shape[1], 1), "log_decay": torch.zeros(1, k.shape[1], 1, 2),
                 "write": one.expand(1, k.shape[1], 1, 2), "read": one.expand(1, k.shape[1], 1, 2)}  # fmt: skip
    shares, cosines = [], []
    for layer in range(len(gates["beta"])):
        given = {name: x[layer, : k.shape[1]].expand(trials, *[-1] * (x.ndim - 1)) for name, x in gates.items()}
        wide = [x.unsqueeze(2).expand(-1, -1, given["beta"].shape[-1], -1) for x in (k, v)]
        z = rule(q=wide[0], k=wide[0], v=wide[1], **given)[1]
        found = F.normalize(torch.einsum("npk,nhmkv,hm->nhpv", unit, z, gates["read"][layer, 0]), dim=-1)
        scores = found @ F.normalize(v, dim=-1).transpose(1, 2).unsqueeze(1)  # [trials, H, keys, writes]
        place = last.unsqueeze(1).unsqueeze(-1).expand(-1, scores.shape[1], -1, 1)
        shares.append((scores.argmax(-1, keepdim=True) == place).float().mean((1, 2, 3)))
        cosines.append(scores.gather(-1, place).mean((1, 2, 3)))
    return torch.stack(shares).mean(0).numpy(), torch.stack(cosines).mean(0).numpy()


def trained_gates(context, tokens: int) -> dict[str, torch.Tensor]:
    """beta, log_decay, write and read that the trained layers give to `tokens` tokens of a held-out book."""
    lam = context.model.lam
    if lam.config.head_size != WIDTH:
        raise MissingData("the trained rule", f"Its heads are {lam.config.head_size} wide, the test is for {WIDTH}.")
    ids = book_ids(context.model, held_out_books(context.data)[0], tokens)
    recorder = Recorder(lam)
    with replaced_rule(lam, recorder):
        read(lam, torch.tensor([ids]), lam.new_state(1))
    gates = {name: recorder.stacked(name)[:, 0].float() for name in ("beta", "log_decay", "write", "read")}
    # The sum of both memories, in mode space.
    both = torch.ones(gates["read"].shape[:-1])
    return gates | {"read": lam.layers[0].memory.to_modes(both, both)}
