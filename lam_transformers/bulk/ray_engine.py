"""The engine of several machines: a class that holds the model, mapped over a Ray Dataset. Needs the extra `ray`.

The machine that runs the command reads the inputs and writes the output; the others only need this package and the
model. A row of the Dataset is a block of texts, so that blocks, and with them the embeddings, are those of the local
engine. What is lost with a worker, Ray computes again.
"""

import logging
import pickle
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..io.loading import PinnedModel
from .block_encoder import BlockEncoder, Encoded
from .options import EncodeOptions
from .rows import read_blocks

AGAIN = "The same command again resumes."


class BlockReader:
    """Turns the one row that represents all inputs into a row for every block, and an empty one at the end."""

    def __init__(self, arguments: tuple[Any, ...]):
        self.arguments = arguments

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number, block in enumerate(chain(read_blocks(*self.arguments), [None])):
            yield {"number": [number], "block": [pickle.dumps(block)]}


class EncodingActor:
    """Loads the model once in an actor, then encodes blocks."""

    def __init__(self, model: PinnedModel, options: EncodeOptions):
        self.encoder = BlockEncoder(model, options)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = pickle.loads(row["block"])
        encoded = None if block is None else self.encoder(block)
        return {"number": row["number"], "encoded": pickle.dumps(encoded)}


def encode_with_ray(
    model: PinnedModel, options: EncodeOptions, arguments: tuple[Any, ...], workers: int | None
) -> Iterator[Encoded]:
    """The blocks of `read_blocks(*arguments)`, encoded by actors, in order.

    Connects to the cluster that RAY_ADDRESS names, to one that runs on this machine, or starts one here.

    Args:
        model: what every actor loads.
        options: of the run.
        arguments: of `read_blocks`.
        workers: number of actors; None for one a GPU, or one a CPU where there is no GPU.

    Raises:
        ValueError: if Ray is not installed.
        OSError: if the cluster cannot do it, with Ray's reason.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ValueError("--engine ray needs Ray: pip install 'lam-transformers[ray]'.") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = 0 if (options.device or "").startswith("cpu") else int(ray.cluster_resources().get("GPU", 0))
    count = workers or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
    # Half a CPU each, so that the actors of a machine that is lost find room on those that are left.
    needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 0.5}
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    # A block of texts is a row; a block of Ray must hold no more than one, or a worker would get several at a time.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    with DataContext.current(context):
        blocks = ray.data.from_items([0]).map_batches(
            BlockReader(arguments), batch_size=1, num_cpus=0, label_selector=here
        )
        encoded = blocks.map(
            EncodingActor,  # type: ignore[arg-type]  # Ray's types leave out classes, which its documentation asks for
            fn_constructor_args=(model, options),
            compute=ActorPoolStrategy(size=count),
            **needs,
        )
    try:
        for expected, row in enumerate(encoded.iter_rows()):
            block = pickle.loads(row["encoded"])
            if row["number"] != expected:
                raise OSError(f"Ray returned block {row['number']} in place of block {expected}. {AGAIN}")
            if block is None:
                return
            yield block
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]  # after the traceback of the worker
        raise OSError(f"Ray gave up: {reason} {AGAIN}") from error
    raise OSError(f"Ray ended before the last block. {AGAIN}")
