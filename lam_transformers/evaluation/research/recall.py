"""Associative recall of keys and values, through the rule alone and through the trained rule."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ...io.results import Numbers, Record, Results, numbers_of
from ...model.delta_rule_lam import dual_delta_rule
from ...scoring.statistics import bootstrap_mean, paired_test
from .. import drawing
from ..blocks import Block, Figure, Section, Table, p_value, prose, with_interval
from ..data import MissingData, held_out_books
from ..models import book_ids
from ..part import Context, Part
from .probe import Recorder, Rule, additive_rule, read, replaced_rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WIDTH = 32  # K = V of LAM-base-v1
OVERWRITTEN = 0.5  # share of the keys that get a second value
RULES = {"delta rule": dual_delta_rule, "additive": additive_rule}
KEYS = ("random", "alike")
TRAINED = ("trained rule", "random")  # the case whose weakness is told


@dataclass(frozen=True)
class RecallSettings:
    """Numbers of pairs, and trials of each."""

    recall_pairs: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    recall_trials: int = 20


def run(context: Context) -> Numbers:
    """Share of N keys for which a memory returns their last value, delta rule against additive memory.

    The rule alone: one memory of 32 x 32 that forgets nothing and writes with full strength. The trained rule: the same
    keys and values with the write strengths, decays and memory weights that the trained model gives to real text.
    Null hypothesis for each number of pairs: the delta rule recalls no more than the additive memory (paired one-sided
    Wilcoxon test over the trials).
    """
    settings = context.settings.of(RecallSettings)
    resamples = context.settings.resamples
    gates: dict[str, Any] = {"rule alone": None}
    with context.may_lack():
        gates["trained rule"] = trained_gates(context, int(max(settings.recall_pairs) * (1 + OVERWRITTEN)))
    rows: list[Numbers] = []
    for through, given in gates.items():
        for pairs in settings.recall_pairs:
            context.say(f"recall of {pairs} pairs, {through}")
            for keys in KEYS:
                for overwrites in (False, True):
                    recalled = {
                        name: recall_shares(rule, pairs, keys, overwrites, settings.recall_trials, given)
                        for name, rule in RULES.items()
                    }
                    p = paired_test(recalled["delta rule"][0], recalled["additive"][0])
                    rows += [
                        {
                            "through": through,
                            "keys": keys,
                            "pairs": pairs,
                            "overwrites": overwrites,
                            "rule": name,
                            "p": p,
                            **bootstrap_mean(shares, resamples),
                            "cosine": float(cosines.mean()),
                        }
                        for name, (shares, cosines) in recalled.items()
                    ]
    return {"rows": rows, "width": WIDTH, "trials": settings.recall_trials, "overwritten": OVERWRITTEN}


@torch.inference_mode()
def recall_shares(
    rule: Rule, pairs: int, keys: str, overwrites: bool, trials: int, gates: dict[str, torch.Tensor] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of keys for which what the memory returns is nearest, of all values ever written, to the key's last value.

    Values are random signs. With `overwrites` half of the keys, drawn anew, are written once more with another value.

    Args:
        rule: with the contract of `dual_delta_rule`.
        pairs: of keys and values.
        keys: "random": unit vectors of all directions; "alike": SiLU of those, as the model makes its keys.
        overwrites: write half of the keys twice.
        trials: with keys and values of their own.
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
        gates = {
            "beta": torch.ones(1, k.shape[1], 1),
            "log_decay": torch.zeros(1, k.shape[1], 1, 2),
            "write": one.expand(1, k.shape[1], 1, 2),
            "read": one.expand(1, k.shape[1], 1, 2),
        }
    shares: list[torch.Tensor] = []
    cosines: list[torch.Tensor] = []
    for layer in range(len(gates["beta"])):
        given = {name: x[layer, : k.shape[1]].expand(trials, *[-1] * (x.ndim - 1)) for name, x in gates.items()}
        wide = [x.unsqueeze(2).expand(-1, -1, given["beta"].shape[-1], -1) for x in (k, v)]
        z = rule(q=wide[0], k=wide[0], v=wide[1], **given)[1]
        returned = F.normalize(torch.einsum("npk,nhmkv,hm->nhpv", unit, z, gates["read"][layer, 0]), dim=-1)
        scores = returned @ F.normalize(v, dim=-1).transpose(1, 2).unsqueeze(1)  # [trials, H, keys, writes]
        place = last.unsqueeze(1).unsqueeze(-1).expand(-1, scores.shape[1], -1, 1)
        shares.append((scores.argmax(-1, keepdim=True) == place).float().mean((1, 2, 3)))
        cosines.append(scores.gather(-1, place).mean((1, 2, 3)))
    return torch.stack(shares).mean(0).numpy(), torch.stack(cosines).mean(0).numpy()


def trained_gates(context: Context, tokens: int) -> dict[str, torch.Tensor]:
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


def section(record: Record) -> Section:
    """Both rules side by side for each case."""
    numbers = record["numbers"]
    by_case: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for row in numbers["rows"]:
        case = (row["through"], row["keys"], "yes" if row["overwrites"] else "no", row["pairs"])
        by_case.setdefault(case, {})[row["rule"]] = row
    rows = []
    for case, by_rule in by_case.items():
        delta = by_rule["delta rule"]
        additive = by_rule["additive"]
        shown = [with_interval(x["mean"], x["interval"], 2) for x in (delta, additive)]
        rows.append((*map(str, case), *shown, p_value(delta["p"])))
    blocks: list[Block] = [
        prose(
            """
            Keys and values of width {{ width }}; share of keys whose last value comes back, {{ trials }} trials. Null
            hypothesis: the delta rule recalls no more than additive memory. The trained rule has the write strengths
            and decays that the model gives to real text.
            """,
            width=numbers["width"],
            trials=numbers["trials"],
        ),
        Table(("through", "keys", "overwrites", "pairs", "delta rule", "additive", "p"), rows),
        Figure("recall", "Recall with half of the keys written twice; dotted: as many pairs as dimensions."),
    ]
    return Section("Associative recall", blocks)


def weaknesses(results: Results) -> list[str]:
    """Cases in which additive memory recalls more, and how many pairs a trained head loses."""
    rows = [row for row in (numbers_of(results, PART.name) or {"rows": []})["rows"] if not row["overwrites"]]
    cases: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        cases.setdefault((row["through"], row["keys"], row["pairs"]), {})[row["rule"]] = row
    lines = [
        f"Keys written once, {through}, {keys} keys, {pairs} pairs: the delta rule recalls "
        f"{by_rule['delta rule']['mean']:.0%}, additive memory {by_rule['additive']['mean']:.0%}."
        for (through, keys, pairs), by_rule in cases.items()
        if by_rule["delta rule"]["interval"][1] < by_rule["additive"]["interval"][0]
    ]
    own = [by_rule["delta rule"] for (through, keys, _), by_rule in cases.items() if (through, keys) == TRAINED]
    low = next((row for row in own if row["mean"] < 0.5), None)
    if low:
        lines.append(
            f"With its trained decays a head of 32 x 32 recalls {low['mean']:.0%} of {low['pairs']} random pairs."
        )
    return lines


def draw(numbers: Numbers, model: str) -> "Drawing":
    """Share recalled against the number of pairs, where half of the keys were written twice."""
    title = "Keys that were written twice return the newer value"
    figure, axes = drawing.new_axes(title, "pairs", "share of keys recalled")
    series: drawing.Series = {}
    for row in numbers["rows"]:
        if row["keys"] == "random" and row["overwrites"]:
            drawing.add_point(series, f"{row['rule']}, {row['through']}", row["pairs"], row["mean"])
    drawing.lines(axes, series, model)
    axes.axvline(numbers["width"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    return figure


PART = Part(
    name="recall",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"recall": draw},
    settings=RecallSettings,
    quick=RecallSettings(recall_pairs=(4, 16, 64, 256), recall_trials=4),
)
