"""What a conversion says: the table on the terminal and the model card."""

from typing import Any

from ..io.terminal import printable

FAMILIES = {
    "DeltaNet": "memory layers, their norms and intermediate.dense under deltanet_*",
    "embeddings": "word, position and token type tables and their norm, once",
    "FFN": "intermediate.dense, output.dense, attention.output.dense, ffn_norms",
    "layer norms": "the teacher's two a layer",
    "base/attention": "the teacher's q, k and v",
    "other": "poolers and the like",
    "training": "what only training used",
}


def format_report(report: dict[str, Any]) -> str:
    """The report of `convert` as lines of text."""
    lines = [f"{x['file']}  {x['bytes']:,} bytes  {x['format']}  sha256 {x['sha256']}" for x in report["sources"]]
    if report["kind"] == "BERT":
        return "\n".join([*lines, f"A BERT: started a LAM of {report['parameters']:,} parameters. It needs training."])
    size = ", ".join(f"{name} {value:,}" for name, value in report["geometry"].items())
    lines.append(f"{report['kind']}, layout {report['layout']}, rule {report['rule']}; {size}")
    notes = [
        f"{printable(name)} {printable(value)[:200]}" for x in report["sources"] for name, value in x["notes"].items()
    ]
    lines += [f"recorded in the file: {', '.join(notes)}"] if notes else []
    lines += _chain(report)
    # The notes that it can be compared with describe the single file.
    lines += _breakdown(report["published_breakdown"]) if report["kind"] == "one file" else []
    lines += _components("kept", report["kept"]) + _components("dropped as unused", report["unused"])
    lines += _pairs("dropped as duplicate", "=", report["duplicates"])
    lines += _pairs("replaced", "gives way to", report["replaced"])
    if "mapping" in report:
        lines.append("mapped to a LAM (to <- from: how)")
        lines += [f"  {row['to']} <- {row['from']}: {row['how']}" for row in report["mapping"]]
        lines.append("The result needs distillation: lam train distill OUT RUN --teacher CONVERTED")
    return "\n".join(lines)


def _chain(report: dict[str, Any]) -> list[str]:
    entries = report["entries"]
    tensors = report["tensors"]
    size = report["bytes"]
    written = f", model.safetensors {size['model.safetensors']:,}" if "model.safetensors" in size else ""
    return [
        f"entries {entries['in_files']:,} -> {entries['without_second_embeddings']:,} (embedding duplicates only) -> "
        f"{entries['unique']:,} (all duplicates) -> {entries['kept']:,} (needed for inference)",
        f"  {entries['in_files']:,} = {entries['duplicate']:,} duplicate + {entries['replaced']:,} replaced + "
        f"{entries['unused']:,} unused + {entries['kept']:,} kept",
        f"tensors {tensors['in_files']:,} names, {tensors['distinct_storages']:,} distinct storages, "
        f"{tensors['kept']:,} kept",
        f"bytes {size['in_files_one_by_one']:,} if each name had its own, {size['unique']:,} without duplicates, "
        f"{size['kept']:,} kept{written}",
    ]


def _breakdown(families: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"  {row['entries']:>12,}  {name}: {FAMILIES[name]}" for name, row in families.items()]
    total = sum(row["entries"] for row in families.values())
    return ["by name, embeddings counted once (the published breakdown)", *lines, f"  {total:>12,}  together"]


def _components(title: str, parts: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"  {row['entries']:>12,}  {part} ({row['tensors']} tensors)" for part, row in parts.items()]
    return [title, *lines] if lines else []


def _pairs(title: str, relation: str, pairs: list[dict[str, Any]]) -> list[str]:
    lines = [f"  {x['entries']:>12,}  {x['dropped']} {relation} {x['kept']} ({x['how']})" for x in pairs]
    return [title, *lines] if lines else []


CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
- custom_code
base_model: sentence-transformers/all-MiniLM-L6-v2
---

# {name}

{what}

Converted from:

{sources}

`conversion.json` beside the weights accounts for every number of the source.
"""
USE = """
## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", trust_remote_code=True)
embeddings = model.encode(["A man plays the guitar.", "Someone makes music."])
```

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
```

With the package `lam-transformers` installed, `import lam_transformers` makes the flag unnecessary. The code that runs
is the `*_lam_published.py` files in this folder.

## Limits

- Texts are cut after {length} tokens; more than {positions} are an error.
- The rule reads whole texts: no streaming and no packing. A text has the same embedding in any batch, the one that the
  published code gives it alone and without padding.
- Inside a chunk the cost is quadratic, and a text whose length is no multiple of the chunk is one chunk.
"""


def _sources(report: dict[str, Any]) -> str:
    return "\n".join(f"- `{x['file']}`, {x['bytes']:,} bytes, SHA-256 `{x['sha256']}`" for x in report["sources"])


def published_card(name: str, report: dict[str, Any], length: int) -> str:
    """README.md of a converted checkpoint."""
    what = (
        f'A published LAM checkpoint (layout "{report["layout"]}", forward rule "{report["rule"]}"), with the same '
        f"embeddings as before: {report['entries']['kept']:,} of the source's {report['entries']['in_files']:,} "
        "numbers, each stored once. Nothing was trained or changed."
    )
    use = USE.format(name=name, length=length, positions=report["geometry"]["max_position_embeddings"])
    return CARD.format(name=name, what=what, sources=_sources(report)) + use


def successor_card(name: str, report: dict[str, Any]) -> str:
    """README.md of a LAM started from a published checkpoint."""
    what = (
        "A LAM started from a published checkpoint. It is not trained: its embeddings are of no use before "
        "distillation (`lam train distill`, with the converted checkpoint as the teacher)."
    )
    rows = "\n".join(f"| {x['to']} | {x['from']} | {x['how']} |" for x in report["mapping"])
    table = f"\n## What was mapped\n\n| here | there | how |\n|---|---|---|\n{rows}\n"
    return CARD.format(name=name, what=what, sources=_sources(report)) + table
