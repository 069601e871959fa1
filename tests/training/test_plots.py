"""Pictures of runs, and the log for TensorBoard."""

import json

import pytest

from lam_transformers.training.plots import read_log

RECORDS = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 10, "dev_pearson": 0.5, "evaluation_seconds": 1.0},
    {"step": 20, "loss": 9.0, "learning_rate": 1e-3},
    {"step": 20, "loss": 1.0, "learning_rate": 1e-3},
]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def test_a_repeated_step_counts_as_it_was_last(run_folder):
    updates, scores = read_log(run_folder)
    assert {step: record["loss"] for step, record in updates.items()} == {10: 2.0, 20: 1.0}
    assert scores[10]["dev_pearson"] == 0.5


def test_runs_are_drawn_into_a_folder(lam, run_folder, tmp_path):
    pytest.importorskip("matplotlib", reason="the train extra is not installed")
    lam("train", "plot", run_folder, "--out", tmp_path / "docs")
    assert (tmp_path / "docs" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "has no log.jsonl" in lam("train", "plot", tmp_path, "--out", tmp_path, code=1)


def test_the_log_goes_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lam_transformers.training.loop import RunLog

    log = RunLog(tmp_path, tensorboard=True)
    for record in RECORDS:
        log.write(record)
    log.writer.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(x.step, x.value) for x in events.Scalars("loss")] == [(10, 2.0), (20, 9.0), (20, 1.0)]
