"""Recipes: reading them, and all stages of a small one, interrupted and resumed, through the command line."""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("scipy", reason="the train extra is not installed")
pytest.importorskip("datasets", reason="the train extra is not installed")

from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from lam_transformers import LAMEncoder, LAMModel
from lam_transformers.scoring.statistics import bootstrap_correlations, interval
from lam_transformers.training import run as running
from lam_transformers.training.distill import DistillConfig
from lam_transformers.training.recipe import build, find_recipe, read_recipe, read_stage

from .conftest import scored_pairs, sentence, write_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder: texts, pair files, a retrieval set."""
    pick = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    dev = list(scored_pairs(pick, 20))
    write_records(folder / "sts/dev.jsonl", dev)
    write_records(folder / "sts/stsb_train.jsonl", [*scored_pairs(pick, 30), dev[0]])
    texts = [sentence(pick, pick.randint(3, 8)) for _ in range(300)]
    write_records(folder / "text/a.jsonl", [{"text": text} for text in [*texts, dev[1]["sentence1"]]])
    documents = [{"_id": str(i), "title": "", "text": sentence(pick, 12)} for i in range(12)]
    write_records(folder / "retrieval/corpus.jsonl", documents)
    write_records(
        folder / "retrieval/queries.jsonl", [{"_id": f"q{i}", "text": d["text"][:20]} for i, d in enumerate(documents)]
    )
    judged = "".join(f"q{i}\t{i}\t1\n" for i in range(12))
    (folder / "retrieval/qrels_test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.fixture
def small_recipe(tiny_bert, tmp_path):
    common = {"dev": "sts/dev.jsonl", "exclude": ["sts/dev.jsonl"], "evaluate_every": 4, "checkpoint_every": 4}
    short = {"steps": 6, "warmup_steps": 1, "decay_steps": 3, "bf16": False, "learning_rate": "1e-3"}
    base = str(tiny_bert)
    settings = {
        "distill": {"tokens_per_batch": 64, "teacher_forced_steps": 2},
        "relational": {"tokens_per_batch": 100, "teachers": [{"name": base}], "dimensions": [64, 16]},
        "finetune": {"batch_size": 8, "sources": [{"path": "sts/stsb_train.jsonl"}], "retention_text": ["text"],
                     "retention_texts": 50},
    }  # fmt: skip
    own = {"distill": {"text": ["text"], "teacher": base}, "relational": {"text": ["text"]}, "finetune": {}}
    for stage, name in (("distill", "one"), ("relational", "two"), ("finetune", "three")):
        content = {"stage": stage, **common, **own[stage], "settings": short | settings[stage]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    whole = {
        "name": "LAM-small", "base": base, "gate": "8",
        "stages": ["one.yaml", "two.yaml", {"recipe": "three.yaml", "settings": {"steps": 5}}],
        "sts": {"dev": "sts/dev.jsonl"}, "retrieval": {"toy": "retrieval"}, "dimensions": [16], "baselines": [base],
    }  # fmt: skip
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path / "whole.yaml"


def test_a_guide_may_be_what_an_earlier_stage_made(small_recipe):
    content = yaml.safe_load(small_recipe.read_text())
    guided = {"recipe": "three.yaml", "settings": {"guide": "stage:distill"}}
    small_recipe.write_text(yaml.safe_dump(content | {"stages": ["one.yaml", guided]}))
    stage = read_recipe(small_recipe)[1][1]
    assert running.with_models(stage, {"distill": Path("made")}).settings == stage.settings | {"guide": "made"}
    small_recipe.write_text(yaml.safe_dump(content | {"stages": [guided]}))
    with pytest.raises(ValueError, match="stage finetune: no stage before it is called distill"):
        read_recipe(small_recipe)


@pytest.mark.slow
def test_a_stage_may_make_a_teacher_for_a_later_one(lam, small_recipe, data, tmp_path, tiny_bert):
    content = yaml.safe_load(small_recipe.read_text())
    tune = {"train_everything": True, "frozen": ["embeddings.", "encoder.layer.0."], "retention_texts": 0}
    teacher = {"recipe": "three.yaml", "name": "teacher", "start": str(tiny_bert), "settings": tune}
    second = {"recipe": "two.yaml", "settings": {"teachers": [{"name": "stage:teacher", "weight": 2.0}]}}
    again = {"recipe": "one.yaml", "name": "again", "start": "stage:distill", "settings": {"seed": 1}}
    content |= {"stages": [{"recipe": "one.yaml", "settings": {"teacher_forced_steps": 0}}, teacher, second, again]}
    content |= {"average": {"distill": -0.25, "relational": 0.75, "again": 0.5}}
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "run"
    command = ("train", "run", tmp_path / "taught.yaml", "--data", data, "--out", out)
    lam(*command)
    before = AutoModel.from_pretrained(tiny_bert).state_dict()
    after = AutoModel.from_pretrained(out / "2-teacher" / "best").state_dict()
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert moved
    assert all(name.startswith("encoder.layer.") and ".0." not in name for name in moved)
    record = json.loads((out / "3-relational" / "checkpoint" / "progress.json").read_text())
    assert record["config"]["teachers"] == [{"name": str(out / "2-teacher" / "best"), "weight": 2.0}]
    started = [json.loads((out / name / "start.json").read_text()) for name in ("2-teacher", "3-relational", "4-again")]
    assert [Path(x["student"]).name for x in started] == [tiny_bert.name, "best", "best"]
    assert started[1] == started[2]  # both go on from the first stage
    lam(*command)  # nothing is left to do
    first, second_best, last, mean = (
        LAMModel.from_pretrained(out / name, dtype=torch.float32).state_dict()
        for name in ("1-distill/best", "3-relational/best", "4-again/best", "average")
    )
    for name, x in mean.items():
        assert torch.allclose(x, -0.25 * first[name] + 0.75 * second_best[name] + 0.5 * last[name], atol=1e-6), name
    card = (out / content["name"] / "README.md").read_text()
    assert "a weighted mean of these stages' best weights: 0.5 x again - 0.25 x distill + 0.75 x relational" in card
    for average, message in (
        ({"two": 1.0}, "average names no stage: two"),
        ({"distill": 0.5}, "must add up to 1"),
        ({"distill": 0.5, "teacher": 0.5}, "average names teacher, which trains another model"),
    ):
        (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content | {"average": average}))
        with pytest.raises(ValueError, match=message):
            read_recipe(tmp_path / "taught.yaml")
    del content["average"]
    content["stages"] = ["one.yaml", second]
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content))
    assert "no stage before it is called teacher" in lam(*command[:-1], tmp_path / "other", code=1)
    assert not (tmp_path / "other").exists()
    content["stages"] = [again, teacher]
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="stage again: no stage before it is called distill"):
        read_recipe(tmp_path / "taught.yaml")
    content["stages"] = ["one.yaml", teacher, again | {"start": "stage:teacher"}]
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="again cannot start from stage:teacher, which trains a teacher"):
        read_recipe(tmp_path / "taught.yaml")
    # Without "stage:" it is a Hub id or folder, which may be called like a stage.
    content["stages"] = ["one.yaml", teacher, teacher | {"name": "other", "start": "teacher"}]
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(content))
    assert read_recipe(tmp_path / "taught.yaml")[1][-1].trains_a_teacher


def test_all_stages_run_resume_and_write_a_model_with_its_card(lam, small_recipe, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ("train", "run", small_recipe, "--data", data, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(running.Finetuner, "run", lambda *_: (_ for _ in ()).throw(OSError("the machine went down")))
        assert "the machine went down" in lam(*command, code=1)
    distilled = (out / "1-distill" / "checkpoint" / "state.pt").stat().st_mtime_ns
    lam(*command)
    assert (out / "1-distill" / "checkpoint" / "state.pt").stat().st_mtime_ns == distilled
    assert json.loads((out / "3-finetune" / "checkpoint-5" / "progress.json").read_text())["progress"]["step"] == 5

    model = out / "LAM-small"
    card = (model / "README.md").read_text()
    results = json.loads((out / "results.json").read_text())["numbers"]["models"]
    assert "$" not in card
    assert [row["model"] for row in results] == ["LAM-small", results[1]["model"]]
    score = results[0]["sts"]["dev"]
    low, high = score["spearman_interval"]
    assert low <= score["spearman"] <= high
    assert f"{100 * score['spearman']:.2f} ({100 * low:.1f} to {100 * high:.1f})" in card
    assert f"{100 * score['pearson@16']:.2f}" in card
    assert "STS-B train was used" in card
    assert "| distill | a.jsonl | " in card
    assert "in evaluation 1 |" in card
    assert f"| LAM-small | {results[0]['retrieval']['toy']['ndcg@10']:.4f} |" in card
    exported = SentenceTransformer(str(model), trust_remote_code=True, device="cpu").encode(["the dog runs"])
    assert np.allclose(exported, LAMEncoder(model).encode(["the dog runs"]), atol=1e-6)

    # Once more: nothing is trained or scored again.
    scored = (out / "results.json").stat().st_mtime_ns
    lam(*command)
    assert (out / "results.json").stat().st_mtime_ns == scored
    assert (model / "README.md").read_text() == card

    # More updates of an earlier stage would leave the later ones built on weights that are no more.
    message = lam(*command, "--set", "distill.steps=8", code=1)
    assert "started from other weights" in message
    assert "2-relational" in message


def test_single_stages_run_from_recipes_with_changes(lam, small_recipe, data, tiny_bert, tmp_path):
    lam("init", tiny_bert, tmp_path / "start", "--gate", 8)
    first = ("train", "relational", tmp_path / "start", tmp_path / "a", "--recipe", tmp_path / "two.yaml")
    message = lam(*first, "--data", data, "--set", "steps=2", "--set", "margin=0.3")
    assert "Best STS-B dev Pearson" in message
    assert "in evaluation: 1" in message
    record = json.loads((tmp_path / "a" / "checkpoint" / "progress.json").read_text())
    assert (record["progress"]["step"], record["config"]["margin"]) == (2, 0.3)
    assert "'margin': (0.3, 0.4)" in lam(*first, "--data", data, "--set", "margin=0.4", code=1)
    second = ("train", "finetune", tmp_path / "a" / "best", tmp_path / "b", "--data", data)
    assert "is a recipe of stage relational" in lam(*second, "--recipe", tmp_path / "two.yaml", code=1)
    lam(*second, "--recipe", tmp_path / "three.yaml", "--set", "steps=2")
    assert (tmp_path / "b" / "best" / "modules.json").exists()
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "empty.jsonl").write_text('{"body": 1}\n')
    missing = lam(
        *second, "--recipe", tmp_path / "three.yaml", "--set", f"sources=[{{path: {tmp_path / 'empty.jsonl'}}}]", code=1
    )
    assert "empty.jsonl gives no pairs" in missing


def test_the_recipes_of_the_package_are_whole():
    recipe, stages = read_recipe("recipes/lam_base_v1.yaml")
    kinds = ["distill"] * 5 + ["relational", "finetune", "relational", "relational", "finetune", "longtext"]
    kinds += ["relational", "relational", "finetune", "relational", "finetune", "longtext"]
    assert sum(recipe.average.values()) == pytest.approx(1)
    assert [stage.stage for stage in stages] == kinds
    configs = [stage.config for stage in stages]
    assert all(config.steps >= config.warmup_steps + config.decay_steps for config in configs)
    for stage in stages:
        assert stage.config.held_out if stage.stage == "longtext" else "sts/stsb_test.jsonl.gz" in stage.exclude
    # STS-B train may keep its overlap, in the text of a stage nothing may; SICK-R is never trained on.
    assert not any(
        "sickr" in str(asdict(config)) + str(stage.text) for config, stage in zip(configs, stages, strict=True)
    )
    tuned = {stage.name: stage for stage in stages}
    assert tuned["teacher"].start == recipe.baselines[1]
    assert tuned["relational-tuned-2"].settings["teachers"] == [{"name": "stage:teacher"}]
    assert tuned["relational-tuned-3"].settings["teachers"][0]["name"] == "stage:teacher-2"
    strict = {"sources": [{"path": "sts/stsb_train.jsonl.gz"}]}
    labelled = ("teacher", "finetune", "teacher-2", "finetune-2")
    changes = dict.fromkeys(labelled, strict) | {"finetune": strict | {"steps": 7}}
    changed = read_recipe("lam_base_v1.yaml", changes)[1]
    assert [stage.config.steps for stage in changed if stage.name in labelled] == [358, 7, 358, 150]
    assert not any("keep_overlap" in str(stage.settings) for stage in changed)


def test_the_list_of_evaluation_files_is_kept_once_and_may_be_anybodys(tmp_path):
    wanted = [f"sts/{name}.jsonl.gz" for name in ("stsb_dev", "stsb_test", "sickr_dev")]
    wanted += [f"retrieval/{name}/queries.jsonl.gz" for name in ("cranfield", "cisi")]
    for name in ("stage1_distill", "stage1_embeddings", "stage2_relational", "stage3_finetune", "second_relational"):
        assert read_stage(f"{name}.yaml").exclude == wanted
    (tmp_path / "mine.txt").write_text("a.jsonl\n")
    (tmp_path / "mine.yaml").write_text("stage: distill\ndev: a.jsonl\nexclude: mine.txt\n")
    assert read_stage(tmp_path / "mine.yaml").exclude == ["a.jsonl"]
    (tmp_path / "whole.yaml").write_text("name: x\nstages: [{recipe: mine.yaml, name: own}]\n")
    assert read_recipe(tmp_path / "whole.yaml")[1][0].exclude == ["a.jsonl"]
    with pytest.raises(FileNotFoundError, match=r"no list of files nowhere\.txt"):
        read_stage(tmp_path / "mine.yaml", {"exclude": "nowhere.txt"})


def test_the_first_stage_takes_a_recipe_options_and_settings(lam, small_recipe, data, tiny_bert, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("lam_transformers.cli.train._run", lambda stage, *paths: given.append((stage, paths)))

    def stage(*options, code=0):
        message = lam("train", "distill", tmp_path / "start", tmp_path / "out", *options, code=code)
        return message if code else given.pop()[0]

    monkeypatch.chdir(tmp_path)
    # The command line of the README: the stage's defaults, paths from the current folder whatever LAM_DATA_DIR is.
    monkeypatch.setenv("LAM_DATA_DIR", str(data))
    plain = stage("--text", "texts", "--text", "more", "--dev", "dev.jsonl")
    assert plain.config == DistillConfig()
    assert (plain.dev, plain.text) == (str(tmp_path / "dev.jsonl"), [str(tmp_path / x) for x in ("texts", "more")])
    assert (plain.exclude, plain.teacher, plain.tensorboard) == ([], "all-MiniLM-L6-v2", False)
    assert (plain.evaluate_every, plain.checkpoint_every) == (250, 250)
    # What earlier versions wrote into the checkpoints of a run that was started so.
    known = {"steps": 6000, "warmup_steps": 100, "decay_steps": 3000, "tokens_per_batch": 2048, "max_length": 128}
    known |= {"learning_rate": 1e-3, "feed_forward_learning_rate": 0.0, "hidden_weight": 1.0, "embedding_weight": 4.0}
    known |= {
        "similarity_weight": 20.0,
        "orthogonality_weight": 0.0,
        "train_everything": False,
        "bf16": True,
        "seed": 0,
    }
    known |= {"teacher_forced_steps": 0, "curriculum_steps": 0, "weight_decay": 0.01, "beta2": 0.98, "clip_norm": 1.0}
    assert asdict(plain.config) == known

    recipe = ("--recipe", "one.yaml")
    assert stage(*recipe).config == read_stage("one.yaml").config
    changed = stage(
        *recipe, "--no-bf16", "--steps", 9, "--set", "warmup_steps=3", "--set", "steps=8", "--dev", "d.jsonl"
    )
    assert (changed.config.steps, changed.config.warmup_steps, changed.text) == (8, 3, ["text"])
    assert (changed.dev, changed.evaluate_every) == (str(tmp_path / "d.jsonl"), 4)
    assert stage("--recipe", "stage1_distill.yaml").exclude == read_stage("stage1_distill.yaml").exclude
    assert "is a recipe of stage relational, not distill" in stage("--recipe", "two.yaml", code=1)
    assert "--dev FILE, or a --recipe" in stage("--text", "texts", code=1)
    assert "Give some text" in stage("--dev", "dev.jsonl", code=1)


def test_errors_in_recipes_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"there is no 'learnin_rate'; did you mean learning_rate"):
        build(DistillConfig, {"learnin_rate": 1}, "settings")
    with pytest.raises(ValueError, match="learning_rate must be a number, got 'fast'"):
        build(DistillConfig, {"learning_rate": "fast"}, "settings")
    with pytest.raises(ValueError, match=r"steps must be of type int, got 1\.5"):
        build(DistillConfig, {"steps": 1.5}, "settings")
    assert build(DistillConfig, {"learning_rate": "1e-4"}, "settings").learning_rate == 1e-4
    with pytest.raises(ValueError, match="stage must be one of distill"):
        read_stage({"stage": "destill", "dev": "x"})
    with pytest.raises(ValueError, match="missing 1 required keyword-only argument: 'dev'"):
        read_stage({"stage": "distill"})
    with pytest.raises(FileNotFoundError, match=r"no recipe nowhere\.yaml.*lam_base_v1\.yaml"):
        find_recipe("nowhere.yaml")
    with pytest.raises(ValueError, match="no stage nonsense; it has distill-1, distill-2"):
        read_recipe("lam_base_v1.yaml", {"nonsense": {}})
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="must hold a mapping"):
        read_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_recipe(tmp_path / "broken.yaml")


def test_bootstrap_intervals_hold_the_correlation_and_narrow_with_more_pairs():
    random_numbers = np.random.default_rng(0)
    widths = []
    for count in (50, 2000):
        x = random_numbers.standard_normal(count)
        y = x + random_numbers.standard_normal(count)
        low, high = interval(bootstrap_correlations({"x": x}, y, 300)["pearson"]["x"])
        assert low < np.corrcoef(x, y)[0, 1] < high
        widths.append(high - low)
    # The standard error of a correlation r is about (1 - r^2) / sqrt(pairs); r^2 is 1/2 here.
    assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.25)
    assert widths[0] > 4 * widths[1]


def test_a_whole_recipe_refuses_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="one process, got 2"):
        running.run_recipe("lam_base_v1.yaml", tmp_path, tmp_path)
