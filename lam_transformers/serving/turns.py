"""Functions that call the model many times, such as a session's or late chunks', one turn of the scheduler at a time.

The function runs in a thread of its own and is given a `SharedModel`. That looks like the SentenceTransformer, but the
LAM inside hands every call to the thread that owns the model and waits for its turn. So the function need not know that
it shares the model, and a text of a million tokens lets short requests through between two of its segments.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .scheduler import Job, Scheduler

Result = TypeVar("Result")


class SharedModel:
    """A SentenceTransformer of a LAM folder whose LAM takes turns."""

    def __init__(self, model, scheduler: Scheduler, job: Job):
        self._model = model
        self.transformers_model = _SharedLAM(model.transformers_model, scheduler, job)

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def __getitem__(self, index):
        return self._model[index]

    def __iter__(self):
        return iter(self._model)


class _SharedLAM:
    """A LAMModel that runs in the scheduler's thread."""

    def __init__(self, lam, scheduler: Scheduler, job: Job):
        self._lam = lam
        self._scheduler = scheduler
        self._job = job

    def __getattr__(self, name: str):
        return getattr(self._lam, name)

    def __call__(self, input_ids: torch.Tensor, **kwargs) -> Any:
        def run():
            with torch.inference_mode():
                return self._lam(input_ids=input_ids, **kwargs)

        return self._scheduler.call(self._job, input_ids.numel(), run)


def in_turns(scheduler: Scheduler, model, job: Job, function: Callable[[Any], Result]) -> Result:
    """Run `function` on the model in the calling thread, sharing it with the scheduler's other work.

    Args:
        scheduler: owns the model.
        model: a SentenceTransformer of a LAM folder.
        job: of `Scheduler.open`; closed here.
        function: called with a `SharedModel`.

    Raises Cancelled if the job is cancelled on the way, and what the function raises.
    """
    try:
        result = function(SharedModel(model, scheduler, job))
        job.succeed(result)
        return result
    except BaseException as error:
        job.fail(error)
        raise
    finally:
        scheduler.close(job)
