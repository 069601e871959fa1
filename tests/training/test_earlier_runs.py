"""Runs of every stage that an earlier version of the package began go on with this one (tests/fixtures/training)."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("scipy", reason="the train extra is not installed")
pytest.importorskip("datasets", reason="the train extra is not installed")

from lam_transformers.training.finetune import _Watcher
from lam_transformers.training.loop import TrainingLoop

from ..fixtures.training.write import COMMANDS
from ..helpers import relative_rms

# Settings that came after those runs, with what an earlier run is taken to have had.
SINCE = {"finetune": {"guide": "", "guide_margin": 0.0}}
ARCHIVE = Path(__file__).parents[1] / "fixtures" / "training" / "runs.tar.gz"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folders of the archive, in the current folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAM_DATA_DIR", raising=False)
    return tmp_path


def count_updates(monkeypatch):
    """A list that gets an item for each update that is made from now on."""
    updates = []
    update = TrainingLoop._update
    end = _Watcher.on_step_end
    monkeypatch.setattr(TrainingLoop, "_update", lambda run: (updates.append(1), update(run))[1])
    monkeypatch.setattr(_Watcher, "on_step_end", lambda *args, **kwargs: (updates.append(1), end(*args, **kwargs))[1])
    return updates


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint."""
    if (folder / "checkpoint").exists():
        return torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["model"]
    return load_file(folder / "checkpoint-8" / "model.safetensors")


@pytest.mark.parametrize("stage", list(COMMANDS))
def test_a_run_of_the_version_before_goes_on_to_the_same_end(lam, runs, stage, monkeypatch):
    kept = {path: path.read_bytes() for path in (runs / stage).glob("teachers/*/embeddings.f16")}
    start = load_file(runs / "start" / "model.safetensors")
    updates = count_updates(monkeypatch)
    lam("train", stage, "start", stage, *COMMANDS[stage].split())
    assert len(updates) == 4  # the first four of the eight updates are those of the earlier version

    checkpoint = "checkpoint-8" if stage == "finetune" else "checkpoint"
    ours = json.loads((runs / stage / checkpoint / "progress.json").read_text())
    theirs = json.loads((runs / f"end-{stage}.json").read_text())
    assert ours["config"] == SINCE.get(stage, {}) | theirs["config"]
    assert ours["progress"]["step"] == 8
    assert ours["progress"]["tokens"] == theirs["progress"]["tokens"]
    for name, loss in theirs["progress"]["losses"].items():
        assert ours["progress"]["losses"][name] == pytest.approx(loss, rel=1e-2, abs=1e-6), name
    weights = weights_of(runs / stage)
    for name, end in load_file(runs / f"end-{stage}.safetensors").items():
        key = next(key for key in weights if key.endswith(name.removeprefix("0.model.")))
        begun = next(x for key, x in start.items() if name.endswith(key))
        assert relative_rms(weights[key] - begun, end - begun) < 0.05, name
    # What teachers gave is not computed again.
    again = {path: path.read_bytes() for path in (runs / stage).glob("teachers/*/embeddings.f16")}
    assert again == kept


def test_another_setting_of_an_earlier_run_is_refused_as_before(lam, runs):
    message = lam("train", "distill", "start", "distill", *COMMANDS["distill"].split(), "--seed", "3", code=1)
    assert "'seed': (0, 3)" in message
