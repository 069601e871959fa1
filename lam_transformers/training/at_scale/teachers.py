"""What the teachers say about the pool, computed once before a run.

    python -m lam_transformers.training.at_scale.teachers --data POOL --out TEACHERS

Two teachers: the base model, from which the student also starts (all-MiniLM-L6-v2), and a larger one
(all-mpnet-base-v2). Files of the folder TEACHERS:
    base.pt [texts, D], large.pt [texts, D']: embeddings, float16.
    clusters.pt [texts]: number of a text's cluster; near numbers are near clusters.
    mined.pt: queries [Q] and, for each, 64 near documents [Q, 64], the nearest first.
    near.pt: pairs i, j of near and of random texts with the score that a cross-encoder gives them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from .cross_encoder import CrossEncoderSettings, label_near_pairs
from .mining import Mixture, cluster_texts, mine_documents
from .pool_teacher import BASE, LARGE, load_teacher
from .texts import Pool, embed, say


def write_teachers(
    data: Path,
    out: Path,
    base: str,
    large: str,
    settings: CrossEncoderSettings,
    device: torch.device,
    limit: int | None = None,
) -> None:
    """Write the folder `out` for the pool `data`.

    Args:
        data: folder of the pool.
        out: folder to write.
        base: first teacher; its tokenizer is the pool's.
        large: second teacher.
        settings: of the cross-encoder.
        device: where the teachers run.
        limit: number of first texts that are used; None: all.
    """
    out.mkdir(parents=True, exist_ok=True)
    pool = Pool(data, device, limit)
    base_teacher = load_teacher(base, device, half=True)
    large_teacher = load_teacher(large, device, pool_base=base, half=True)
    base_embeddings = embed(base_teacher, pool.texts, base_teacher.width)
    large_embeddings = embed(large_teacher, pool.texts, large_teacher.width)
    torch.save(base_embeddings.cpu(), out / "base.pt")
    torch.save(large_embeddings.cpu(), out / "large.pt")
    say("embeddings of", len(pool), "texts")
    mixture = Mixture(base_embeddings, large_embeddings)
    torch.save(cluster_texts(mixture).int().cpu(), out / "clusters.pt")
    say("clusters")
    queries, near = mine_documents(pool, mixture)
    torch.save({"queries": queries.cpu(), "near": near.cpu()}, out / "mined.pt")
    say("documents for", len(queries), "queries")
    first, second, score = label_near_pairs(pool, mixture, large_teacher, settings)
    torch.save({"i": first, "j": second, "score": score}, out / "near.pt")
    say("scores of", len(first), "pairs")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compute what the teachers say about a pool.")
    parser.add_argument("--data", type=Path, required=True, help="the pool")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--base", default=BASE, help="first teacher; its tokenizer is the pool's")
    parser.add_argument("--large", default=LARGE, help="second teacher")
    parser.add_argument("--limit", type=int, default=None, help="number of first texts that are used")
    settings = CrossEncoderSettings()
    parser.add_argument("--near-pairs", type=int, default=settings.near_pairs, help="pairs that get a score")
    parser.add_argument("--nli-pairs", type=int, default=settings.nli_pairs)
    parser.add_argument("--random-pairs", type=int, default=settings.random_pairs)
    parser.add_argument("--stsb-epochs", type=int, default=settings.stsb_epochs)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    settings = CrossEncoderSettings(
        near_pairs=options.near_pairs,
        nli_pairs=options.nli_pairs,
        random_pairs=options.random_pairs,
        stsb_epochs=options.stsb_epochs,
    )
    device = torch.device(options.device)
    write_teachers(options.data, options.out, options.base, options.large, settings, device, options.limit)


if __name__ == "__main__":
    main()
