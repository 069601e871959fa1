"""`lam inspect` says what a checkpoint is and whether it loads; `lam push` says what it would upload."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lam_transformers.checkpoints.convert import PUBLISHED_CODE
from lam_transformers.checkpoints.export import export_model
from lam_transformers.checkpoints.inspect import format_inspection, inspect
from lam_transformers.checkpoints.push import HEADING, files_to_push, pinned_card

from ..helpers import run_lam
from .published_checkpoints import SMALL, cloned, one_file, two_files

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_the_full_size_file_is_described_in_seconds(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(one_file(), path)
    began = time.perf_counter()
    inspection = inspect(path)
    assert time.perf_counter() - began < 3
    assert inspection["what"] == "a published LAM checkpoint, layout final (6 layers of width 384)"
    assert inspection["loads"]
    assert (inspection["tensors"], inspection["distinct_storages"], inspection["entries"]) == (338, 295, 43_020_756)
    assert inspection["dtypes"] == {"float32": 43_020_756}
    components = {name: row["entries"] for name, row in inspection["components"].items()}
    assert components["deltanet_layers: memory layers"] == 4_683_732
    assert components["teacher_model: embeddings"] == components["embeddings: embeddings"] == 11_918_592
    assert sum(components.values()) == 43_020_756
    assert len(inspection["duplicates"]) == 43
    text = format_inspection(inspection)
    assert "43 duplicates, 15,623,808 entries" in text
    assert text.endswith("loads: yes")


def test_copies_are_found_by_value(tmp_path):
    torch.save(cloned(one_file("main", SMALL)), tmp_path / "a.bin")
    inspection = inspect(tmp_path / "a.bin")
    assert {pair["how"] for pair in inspection["duplicates"]} == {"equal values"}
    assert inspection["distinct_storages"] == inspection["tensors"]


def test_a_pair_loads_and_its_halves_say_what_they_are(tmp_path):
    base, tweak = two_files(SMALL)
    torch.save(base, tmp_path / "lam_base.bin")
    torch.save(tweak, tmp_path / "lam_tweak.pt")
    inspection = inspect(tmp_path)
    assert inspection["loads"]
    assert "layout main" in inspection["what"]
    assert inspection["files"][0]["notes"] == {"step": 4000}
    assert inspection["dtypes"]["int64"] == SMALL.positions
    half = inspect(tmp_path / "lam_tweak.pt")
    assert not half["loads"]
    assert "--base" in half["reason"]
    assert "a BERT" in inspect(tmp_path / "lam_base.bin")["what"]


def test_a_checkpoint_that_does_not_load_says_why_and_exits_with_one(tmp_path):
    weights = one_file("final", SMALL)
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"] + 1
    torch.save(weights, tmp_path / "a.bin")
    output = run_lam("inspect", tmp_path / "a.bin", code=1)
    assert "loads: no." in output
    assert "differ by up to 1" in output
    assert "deltanet_layers: memory layers" in output
    torch.save({"a": torch.ones(2)}, tmp_path / "b.bin")
    assert "nothing that LAM knows" in run_lam("inspect", tmp_path / "b.bin", code=1)
    (tmp_path / "c.bin").write_bytes(b"")
    assert "damaged, cut short" in run_lam("inspect", tmp_path / "c.bin", code=1)


def test_folders_of_this_package_load(converted, tiny_folder):
    inspection = json.loads(run_lam("inspect", converted, "--json"))
    assert inspection["what"] == "a converted published checkpoint"
    assert inspection["loads"]
    assert not inspection["duplicates"]
    assert inspection["components"]["memory"]["tensors"] == 32 * SMALL.layers
    assert "a LAM\n" in run_lam("inspect", tiny_folder)


@pytest.mark.parametrize("damage", ["flipped", "missing", "shape", "NaN", "config", "no config"])
def test_folders_of_this_package_that_do_not_load(converted, damage):
    path, config = converted / "model.safetensors", converted / "config.json"
    tensors = load_file(path)
    name = "layers.0.memory.g_proj.weight"
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    elif damage == "config":
        config.write_text(config.read_text().replace('"hidden_size": 96', '"hidden_size": 97'))
    elif damage == "no config":
        config.unlink()
    else:
        x = tensors.pop(name)
        changed = {"missing": {}, "shape": {name: x[:5]}, "NaN": {name: x * float("nan")}}[damage]
        save_file(tensors | {n: y.contiguous() for n, y in changed.items()}, path, {"format": "pt"})
    inspection = inspect(converted)
    assert not inspection["loads"]
    expected = {
        "flipped": "SHA-256", "missing": name, "shape": name, "NaN": f"{name} holds NaN", "config": "hidden_size",
        "no config": "config.json",
    }  # fmt: skip
    assert expected[damage] in inspection["reason"]


def test_push_is_a_dry_run_unless_told(converted, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("a dry run reached for the network"))
    before = (converted / "README.md").read_text()
    output = run_lam("push", converted, "org/name")
    assert "Would upload these" in output
    assert 'revision="REVISION"' in output
    assert all(name in output for name in ("model.safetensors", *PUBLISHED_CODE))
    assert (converted / "README.md").read_text() == before


def test_push_uploads_and_pins_the_revision_it_made(converted, monkeypatch):
    (converted / "optimizer.pt").write_bytes(b"")
    (converted / ".secret.json").write_text("{}")
    calls = []

    class Api:
        def create_repo(self, repository, **options):
            calls.append(("create_repo", repository, options))

        def upload_folder(self, **options):
            calls.append(("upload_folder", options["repo_id"], options))
            return SimpleNamespace(oid=REVISION)

        def upload_file(self, **options):
            calls.append(("upload_file", options["repo_id"], options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert REVISION in run_lam("push", converted, "org/name", "--upload", "--private")
    assert [(name, repository) for name, repository, _ in calls] == [
        ("create_repo", "org/name"), ("upload_folder", "org/name"), ("upload_file", "org/name"),
    ]  # fmt: skip
    assert calls[0][2] == {"private": True, "exist_ok": True}
    uploaded = calls[1][2]["allow_patterns"]
    assert uploaded == [str(path) for path in files_to_push(converted)]
    assert "1_Pooling/config.json" in uploaded
    assert not {"optimizer.pt", ".secret.json"} & set(uploaded)
    card = calls[2][2]["path_or_fileobj"].decode()
    assert card == (converted / "README.md").read_text()
    assert card.count(f'revision="{REVISION}"') == 4
    assert f'code_revision="{REVISION}"' in card
    assert f'"code_revision": "{REVISION}"' in card
    assert 'SentenceTransformer(\n    "org/name"' in card


def test_a_pin_replaces_the_one_before():
    card = pinned_card("# Name\n\ntext\n", "org/name", "first")
    assert card.startswith("# Name\n\ntext\n\n" + HEADING)
    again = pinned_card(card + "\n## Limits\n\nnone\n", "org/name", "second")
    assert again.count(HEADING) == 1
    assert "first" not in again
    assert again.rstrip().endswith("## Limits\n\nnone")


def test_push_refuses_what_does_not_load(converted, tiny_folder):
    assert "must be org/name" in run_lam("push", converted, "name", code=1)
    assert "needs a config.json and a README.md" in run_lam("push", tiny_folder, "org/name", code=1)
    (converted / "model.safetensors").write_bytes((converted / "model.safetensors").read_bytes()[:-50])
    assert "damaged" in run_lam("push", converted, "org/name", code=1)


def test_push_takes_an_exported_lam(tiny_folder, tmp_path):
    export_model(tiny_folder, tmp_path / "release", card="# A card\n")
    output = run_lam("push", tmp_path / "release", "org/name")
    assert "modeling_lam.py" in output
    assert "# A card" in output
    assert type(AutoModel.from_pretrained(tmp_path / "release")).__name__ == "LAMModel"
