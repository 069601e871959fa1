"""The evaluation suite end to end on tiny models and made-up data, its refusals, its report."""

import dataclasses
import json
import re
import shutil

import jinja2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="the evaluate extra is not installed")
pytest.importorskip("sklearn", reason="the evaluate extra is not installed")

from lam_transformers import LAMModel
from lam_transformers.cli.app import app
from lam_transformers.evaluation import drawing, models, report, suite
from lam_transformers.evaluation.blocks import Section, Text, prose
from lam_transformers.evaluation.compare import compare_results
from lam_transformers.evaluation.data import Data, MissingData, read_babi
from lam_transformers.evaluation.part import Part, Settings
from lam_transformers.evaluation.parts import scaling, sts
from lam_transformers.evaluation.readme import BEGIN, END, ROOT, below_floor, main, numbers_block, with_block
from lam_transformers.evaluation.report import report_sections, to_markdown, weaknesses, write_report
from lam_transformers.evaluation.research import babi, claims, recall
from lam_transformers.evaluation.research.claims import findings
from lam_transformers.evaluation.suite import PARTS, QUICK, evaluate, settings_record
from lam_transformers.io.results import read_results

from .conftest import write_pairs
from .small import SMALL, SMALL_SCALING, Lines

# The parts that need no further package.
LOCAL = [part.name for part in PARTS if part.run is not None and part.name != "mteb"]


def run(model, baselines, data, out, *only, settings=SMALL, **options):
    return evaluate(str(model), list(map(str, baselines)), Data(data), out, only, settings, **options)


@pytest.fixture(scope="module")
def results(lam_folder, tiny_bert, data_folder, tmp_path_factory):
    """A folder with the results of all parts that need no further package; points of scaling in this process."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "measure_apart", scaling.measure)
        patch.setattr(scaling, "LEAST_SECONDS", 0.01)
        assert run(lam_folder, [tiny_bert], data_folder, out, *LOCAL) == []
    return out


def test_every_part_is_measured_and_says_how(results, lam_folder):
    records = read_results(results)
    assert set(records) == set(LOCAL)
    for part, record in records.items():
        assert record["numbers"], part
        assert record["missing"] == []
        assert record["model"]["name"] == "tiny-lam"
        assert len(record["model"]["checksum"]) == 64
        assert {"command", "commit", "versions", "processor", "cores", "threads", "date"} <= set(record["environment"])
        assert record["settings"]["resamples"] == SMALL.resamples


@pytest.mark.parametrize("part", ["long_context", "pillars", "ablation", "babi"])
def test_what_looks_into_the_memories_runs_on_a_model_that_reads_two_ways(two_way_folder, data_folder, tmp_path, part):
    run(two_way_folder, [], data_folder, tmp_path, part)
    assert (tmp_path / f"{part}.json").exists()


def test_parts_keep_their_contract():
    """Names are files, so no two parts share one; neither do two settings, which lie side by side in the files."""
    names = [part.name for part in PARTS]
    figures = [name for part in PARTS for name in part.figures]
    fields = [field.name for part in PARTS if part.settings for field in dataclasses.fields(part.settings)]
    for given in (names, figures, fields):
        assert len(given) == len(set(given))
    for part in PARTS:
        assert part.settings is None or isinstance(part.quick, part.settings), part.name
        assert part.run is None or part.run.__doc__, part.name
        assert part.weaknesses(records("none", {})) == [], part.name


def test_settings_of_the_committed_results_are_the_defaults_in_their_layout():
    record = json.loads((ROOT / "docs/evaluation/sts.json").read_text())
    assert json.dumps(record["settings"]) == json.dumps(settings_record(Settings()))
    assert list(settings_record(QUICK)) == list(record["settings"])
    assert settings_record(QUICK)["quick"] is True
    assert settings_record(SMALL)["retention_lags"] == (1, 8, 40)


def test_a_part_is_added_in_one_line(lam_folder, data_folder, tmp_path, monkeypatch):
    """As docs/EVALUATION.md shows it."""

    def measure(context):
        return {"letters": len(context.model.name)}

    def section(record):
        return Section("Names", [prose("It has {{ letters }} letters & no more.", **record["numbers"])])

    def weaknesses(results):
        return [f"Its name is long: {results['names']['numbers']['letters']} letters."]

    def draw(numbers, model):
        figure, axes = drawing.new_axes("Letters", "model", "letters")
        axes.bar([model], [numbers["letters"]])
        return figure

    names = Part(name="names", run=measure, section=section, weaknesses=weaknesses, figures={"letters": draw})
    for module in (suite, report):
        monkeypatch.setattr(module, "PARTS", (names,))
    run(lam_folder, [], data_folder, tmp_path)
    assert read_results(tmp_path)["names"]["numbers"] == {"letters": len("tiny-lam")}
    page = write_report(tmp_path).read_text()
    markdown = (tmp_path / "EVALUATION_REPORT.md").read_text()
    assert "## Names\n\nIt has 8 letters & no more.\n" in markdown
    assert "It has 8 letters &amp; no more." in page
    assert "- Its name is long: 8 letters.\n" in markdown
    assert (tmp_path / "figures/letters.png").exists()


def test_a_template_that_lacks_a_value_is_an_error():
    assert prose("a {{ b }}\n   c", b="  d ") == Text("a   d  c")
    with pytest.raises(jinja2.UndefinedError, match="b"):
        prose("a {{ b }}")


def test_sts_numbers_are_correlations_with_intervals_around_them(results):
    sets = read_results(results)["sts"]["numbers"]["sets"]
    assert set(sets) == {"stsb_dev", "stsb_test"}
    for measured in sets.values():
        assert measured["pairs"] == 40
        for x in measured["models"].values():
            assert x["pearson_interval"][0] <= x["pearson"] <= x["pearson_interval"][1]
            assert x["rmse"] >= x["mae"] > 0
            assert x["calibration"]["fitted_on"] == "stsb_dev"
            assert sum(r["pairs"] for r in x["ranges"]) == 40
        assert set(measured["differences"]) == set(measured["models"]) - {"tiny-lam"}


def test_a_baseline_beyond_its_limit_gets_a_row_that_says_so(results):
    numbers = read_results(results)["scaling"]["numbers"]
    (other,) = [name for name in numbers["models"] if name != "tiny-lam"]
    assert [row["tokens"] for row in numbers["models"][other]["rows"] if "failed" in row] == [1_200]
    assert "1,100" in numbers["models"][other]["rows"][-1]["failed"]
    rows = numbers["models"]["tiny-lam"]["rows"]
    assert [row["tokens"] for row in rows] == list(SMALL_SCALING.lengths)
    assert all(row["finite"] and row["peak_mb"] >= row["loaded_mb"] > 0 for row in rows)
    assert numbers["models"]["tiny-lam"]["time_fit"]["points"] == 3
    assert {row["tokens"] for row in numbers["speed_ratio"]} == {16, 1_000, 1_100}


def test_the_report_is_written_from_the_files_alone(results, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    page = write_report(folder)
    text, markdown = page.read_text(), (folder / "EVALUATION_REPORT.md").read_text()
    drawn = sorted(path.name for path in (folder / "figures").iterdir())
    assert drawn == sorted(f"{name}.png" for part in PARTS if part.name in LOCAL for name in part.figures)
    assert sum(path.stat().st_size for path in (folder / "figures").iterdir()) < 3_000_000
    assert text.count("data:image/png;base64,") == len(drawn)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    for name in drawn:
        assert f"figures/{name}" in markdown
    for finding in findings(read_results(folder)):
        assert finding.claim.replace("|", "/") in markdown
    for line in weaknesses(read_results(folder)):
        assert line in markdown
    assert "mteb was not measured" in markdown
    path = folder / "sts.json"
    record = json.loads(path.read_text())
    record["numbers"]["sets"]["stsb_test"]["models"]["tiny-lam"]["pearson"] = 0.98765
    path.write_text(json.dumps(record))
    assert "0.9877" in to_markdown("", report_sections(read_results(folder)))


def test_every_claim_of_the_documents_has_a_verdict(results):
    judged = findings(read_results(results))
    said = " ".join(finding.claim for finding in judged)
    wanted = (
        "0.836",
        "50 to 180 MB",
        "1x to 100x",
        "One million",
        "short lengths",
        "12 MB",
        "ablation",
        "first linear",
    )
    for word in wanted:
        assert word in said
    assert {finding.verdict for finding in judged} <= {"holds", "holds in part", "does not hold", "not measured"}
    # Nothing was read beyond 1,200 tokens here: what needs more is not called measured.
    by_claim = {finding.claim: finding.verdict for finding in judged}
    assert by_claim["One million tokens in one pass"] == "not measured"
    assert by_claim["12 MB at 8K tokens"] == "not measured"


def records(part, numbers, parameters=10**6):
    return {part: {"model": {"name": "lam", "checksum": "1", "parameters": parameters}, "numbers": numbers}}


@pytest.mark.parametrize(
    "dev, test, verdict",
    [
        (0.85, 0.84, "holds"),
        (0.8365, 0.7728, "holds in part"),
        (0.8, 0.7, "does not hold"),
        (None, None, "not measured"),
    ],
)
def test_verdict_on_the_correlation(dev, test, verdict):
    sets = {
        name: {"models": {"lam": {"pearson": x, "pearson_interval": [x - 0.01, x + 0.01], "ranges": []}}}
        for name, x in (("stsb_dev", dev), ("stsb_test", test))
        if x is not None
    }
    assert claims.pearson(records("sts", {"sets": sets})).verdict == verdict


@pytest.mark.parametrize(
    "longest, above, process, verdict",
    [
        (1_000_000, 40, 170, "holds"),
        (1_000_000, 40, 700, "holds in part"),
        (1_000_000, 400, 900, "does not hold"),
        (100_000, 40, 170, "not measured"),
    ],
)
def test_verdict_on_memory(longest, above, process, verdict):
    rows = [
        {"tokens": n, "seconds": n / 1_000, "above_loaded_mb": above, "peak_mb": process, "finite": True}
        for n in (128, longest)
    ]
    numbers = {"models": {"lam": {"rows": rows, "time_fit": None}}, "speed_ratio": []}
    assert claims.memory(records("scaling", numbers, 20 * 2**20)).verdict == verdict


def test_a_million_tokens_that_failed_are_a_claim_that_does_not_hold():
    rows = [{"tokens": 128, "seconds": 1.0, "finite": True}, {"tokens": 1_000_000, "failed": "killed by signal 9"}]
    finding = claims.million(records("scaling", {"models": {"lam": {"rows": rows}}}))
    assert finding.verdict == "does not hold"
    assert "killed by signal 9" in finding.measured


@pytest.mark.parametrize(
    "exponent, interval, verdict",
    [(1.0, [0.98, 1.02], "holds"), (1.6, [1.5, 1.7], "does not hold"), (1.05, [0.7, 1.4], "not measured")],
)
def test_verdict_on_linear_time(exponent, interval, verdict):
    fit = {"exponent": exponent, "interval": interval, "from": 1_000, "to": 1_000_000}
    numbers = {"models": {"lam": {"rows": [], "time_fit": fit}}, "speed_ratio": []}
    assert claims.linear(records("scaling", numbers)).verdict == verdict


def test_verdict_on_components_and_what_it_says_of_those_without_effect():
    def row(name, sts, long):
        return {
            "ablation": name,
            "stsb_dev_interval": sts,
            "long_text_interval": long,
            "stsb_dev_difference": sum(sts) / 2,
            "long_text_difference": sum(long) / 2,
        }

    rows = [
        row("full model", [0, 0], [0, 0]),
        row("flux", [-0.02, -0.01], [-0.1, 0.1]),
        row("decay", [-0.02, 0.01], [-0.1, 0.1]),
        row("exchange", [0.001, 0.003], [-0.1, 0.1]),
    ]
    trained = records("ablation_retrained", {"rows": rows})
    finding = claims.components(trained)
    assert finding.verdict == "holds in part"
    assert "long texts: flux; no such effect: decay, exchange" in finding.measured
    lines = weaknesses(trained)
    assert len(lines) == 2
    assert "decay" in lines[0] and lines[0].endswith("Contributes: no.")
    assert "exchange" in lines[1] and "better without it" in lines[1]
    assert claims.components(records("ablation", {"rows": rows[:2]})).verdict == "holds in part"


def test_finished_parts_are_kept_and_the_rest_resumed_after_an_interrupt(
    lam_folder, tiny_bert, data_folder, tmp_path, monkeypatch
):
    def interrupted(context):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "PARTS", (sts.PART, dataclasses.replace(recall.PART, run=interrupted)))
    with pytest.raises(KeyboardInterrupt):
        run(lam_folder, [], data_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sts.json"]
    monkeypatch.setattr(suite, "PARTS", (sts.PART, recall.PART))
    said = Lines()
    run(lam_folder, [], data_folder, tmp_path, progress=said)
    assert any(line.startswith("sts: kept") for line in said.lines)
    assert {path.name for path in tmp_path.iterdir()} == {"sts.json", "recall.json"}
    said.lines.clear()
    run(lam_folder, [], data_folder, tmp_path, settings=dataclasses.replace(SMALL, resamples=30), progress=said)
    assert not any("kept" in line for line in said.lines)


def test_missing_data_is_named_and_the_rest_runs(lam_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "PARTS", (sts.PART, babi.PART, recall.PART))
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    for path in (*folder.glob("longdoc/babi*"), folder / "sts/stsb_test.jsonl"):
        path.unlink()
    out = tmp_path / "results"
    missing = run(lam_folder, [], folder, out)
    assert len(missing) == 2
    assert "stsb_test" in missing[0] and "mteb/stsbenchmark-sts" in missing[0]
    assert "babi" in missing[1] and "tasks_1-20_v1-2" in missing[1]
    records = read_results(out)
    assert set(records["sts"]["numbers"]["sets"]) == {"stsb_dev"}
    assert records["babi"]["numbers"] == {}
    assert records["recall"]["numbers"]["rows"]
    write_report(out)
    assert "babi" in (out / "EVALUATION_REPORT.md").read_text().split("What was not measured")[1]
    # A part that lacked data is measured again once it is there.
    said = Lines()
    run(lam_folder, [], data_folder, out, progress=said)
    assert [line for line in said.lines if "kept" in line] == [
        line for line in said.lines if line.startswith("recall: kept")
    ]
    assert set(read_results(out)["sts"]["numbers"]["sets"]) == {"stsb_dev", "stsb_test"}


def test_a_folder_with_results_of_another_model_is_refused(results, make_model, tokenizer, data_folder, tmp_path):
    other = tmp_path / "other-lam"
    make_model(seed=3).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match=r"another model \(tiny-lam.*other-lam"):
        run(other, [], data_folder, results, "sts")


@pytest.mark.parametrize(
    "damage, message", [("nan", "NaN or infinity"), ("constant", "same vector for 4 different texts")]
)
def test_a_model_that_gives_no_real_embeddings_fails_loudly(
    make_model, tokenizer, data_folder, tmp_path, damage, message
):
    model = make_model(seed=4)
    with torch.no_grad():
        norm = model.layers[-1].feed_forward_norm
        if damage == "nan":
            norm.weight.fill_(torch.nan)
        else:
            norm.weight.zero_()
            norm.bias.fill_(1.0)
    folder = tmp_path / "damaged"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(FloatingPointError, match=message):
        run(folder, [], data_folder, tmp_path / "results", "sts")
    assert not (tmp_path / "results").exists()


def test_wrong_requests_are_refused_by_name(lam_folder, tiny_bert, data_folder, tmp_path):
    with pytest.raises(ValueError, match="no part nonsense; the parts are sts"):
        run(lam_folder, [], data_folder, tmp_path, "nonsense")
    with pytest.raises(ValueError, match="is no LAM"):
        run(tiny_bert, [], data_folder, tmp_path, "sts")
    with pytest.raises(FileNotFoundError, match=r"The pair file .*none\.jsonl does not exist"):
        run(lam_folder, [], data_folder, tmp_path, "sts", pairs=[tmp_path / "none.jsonl"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Data(tmp_path / "nowhere")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text1": "a", "text2": "b", "score": 1}\n')
    with pytest.raises(ValueError, match="sentence1"):
        run(lam_folder, [], data_folder, tmp_path / "out", "sts", pairs=[wrong])


def test_a_pair_file_of_ones_own_is_measured(lam_folder, data_folder, tmp_path):
    write_pairs(tmp_path / "mine.jsonl", 25, seed=9)
    run(lam_folder, [], data_folder, tmp_path / "out", "sts", pairs=[tmp_path / "mine.jsonl"])
    assert read_results(tmp_path / "out")["sts"]["numbers"]["sets"]["mine"]["pairs"] == 25


@pytest.mark.slow
def test_a_point_of_scaling_runs_in_a_process_of_its_own(lam_folder, tmp_path):
    row = scaling.measure_apart(str(lam_folder), 16)
    assert row["finite"] and row["tokens_per_second"] > 0
    row = scaling.measure_apart(str(tmp_path / "no-model"), 16)
    assert row["tokens"] == 16
    assert "no-model" in row["failed"]
    assert "not finished after 0 s" in scaling.measure_apart(str(lam_folder), 16, timeout=0.01)["failed"]


def test_babi_stories_begin_anew_at_line_one(data_folder):
    questions = list(read_babi(Data(data_folder).path("babi"), 1, "train"))
    assert len(questions) == 40
    assert all(story.count("sings") == 1 and answer in story for story, _, answer in questions)
    with pytest.raises(MissingData, match="task 7"):
        list(read_babi(Data(data_folder).path("babi"), 7, "train"))


def test_compare_sets_results_and_models_side_by_side(results, lam_folder, data_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(results, other)
    record = json.loads((other / "sts.json").read_text())
    before = record["numbers"]["sets"]["stsb_dev"]["models"]["tiny-lam"]["pearson"]
    record["numbers"]["sets"]["stsb_dev"]["models"]["tiny-lam"]["pearson"] = before + 0.25
    (other / "sts.json").write_text(json.dumps(record))
    lines = compare_results(str(results), str(other))
    (line,) = [line for line in lines if line.startswith("sts/sets/stsb_dev/models/LAM/pearson ")]
    assert line.split()[-1] == "+0.25"
    assert not any(line.split()[-1] != "+0" for line in lines if line.startswith("babi"))
    assert compare_results(str(results / "sts.json"), str(other / "sts.json"))
    models_line = next(
        line for line in compare_results(str(lam_folder), str(lam_folder), data_folder) if "dev/p" in line
    )
    assert models_line.split()[-1] == "+0"
    with pytest.raises(ValueError, match="same kind"):
        compare_results(str(results), str(lam_folder))
    with pytest.raises(ValueError, match="no number in common"):
        compare_results(str(results / "sts.json"), str(other / "babi.json"))


def _checked(root, capsys):
    """What --check says. Untrained weights may be below the floor, so its status is not looked at."""
    main(["--check"], root)
    return capsys.readouterr().out


def test_the_readme_says_what_the_result_files_say(results, tmp_path, capsys):
    block = numbers_block(read_results(results))
    pearson = read_results(results)["sts"]["numbers"]["sets"]["stsb_test"]["models"]["tiny-lam"]["pearson"]
    assert block.startswith("| | tiny-lam | ")
    assert f"| STS-B test, Pearson | {pearson:.3f} [" in block
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    shutil.copytree(results, tmp_path / "docs/evaluation")
    assert main(["--check"], tmp_path) == 1
    assert "differs" in capsys.readouterr().out
    assert main([], tmp_path) == 0
    assert "differs" not in _checked(tmp_path, capsys)
    assert (tmp_path / "README.md").read_text() == f"before\n{BEGIN}\n\n{block}\n\n{END}\nafter\n"
    record = json.loads((results / "sts.json").read_text())
    record["settings"]["quick"] = True
    with pytest.raises(ValueError, match="sts are of a --quick run"):
        numbers_block({"sts": record})
    with pytest.raises(ValueError, match="pair of marks"):
        with_block("no marks", block)


def test_results_that_a_bag_of_tokens_beats_are_not_for_the_readme(results, tmp_path, capsys):
    """The floor belongs to the numbers that are published, not to the weights that tests are run with."""
    records = read_results(results)
    for name in ("stsb_dev", "stsb_test"):
        records["sts"]["numbers"]["sets"][name]["differences"]["bag of tokens"]["pearson"]["interval"] = [0.01, 0.02]
    for measured in records["retrieval"]["numbers"]["sets"].values():
        measured["differences"]["bag of tokens"]["interval"] = [-0.1, 0.1]
    assert below_floor(records) == []
    records["sts"]["numbers"]["sets"]["stsb_dev"]["differences"]["bag of tokens"]["pearson"]["interval"] = [-0.1, 0.1]
    assert below_floor(records) == ["stsb_dev: the correlation is not above that of a bag of tokens (-0.100, 0.100)."]
    retrieval = records["retrieval"]["numbers"]["sets"]["L-Eval questions"]
    retrieval["differences"]["bag of tokens"]["interval"] = [-0.2, -0.1]
    assert below_floor(records)[1:] == ["L-Eval questions: nDCG@10 is below that of a bag of tokens (-0.200, -0.100)."]
    assert below_floor({}) == []
    folder = tmp_path / "docs/evaluation"
    shutil.copytree(results, folder)
    (folder / "sts.json").write_text(json.dumps(records["sts"]))
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    main([], tmp_path)
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 1
    assert "stsb_dev: the correlation is not above" in capsys.readouterr().out


def test_the_readme_of_this_checkout_has_not_drifted():
    assert main(["--check"], ROOT) == 0


def test_the_committed_report_is_that_of_the_committed_results(tmp_path):
    committed = ROOT / "docs/evaluation"
    if not list(committed.glob("*.json")):
        pytest.skip("no results are committed yet")
    for path in committed.glob("*.json"):
        shutil.copy(path, tmp_path)
    write_report(tmp_path)
    name = "EVALUATION_REPORT.md"
    assert (tmp_path / name).read_text() == (committed / name).read_text()


def command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_command_line(lam_folder, tiny_bert, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "QUICK", SMALL)
    out = tmp_path / "results"
    command(
        "evaluate", lam_folder, "--baseline", tiny_bert, "--data", data_folder, "--out", out, "--only", "sts", "--quick"
    )
    assert (out / "report.html").exists()
    assert "STS-B Pearson" in (out / "EVALUATION_REPORT.md").read_text()
    command("report", out)
    assert "sts/sets/stsb_dev" in command("compare", out, out)
    assert "no results" in command("report", tmp_path / "empty", code=1)
    assert "no part" in command("evaluate", lam_folder, "--data", data_folder, "--only", "x", code=1)
    assert "two seeds" in command(
        "evaluate", "ablation", lam_folder, "--text", data_folder / "sts", "--data", data_folder, "--seed", 1, code=1
    )


def test_baselines_are_checked_too(tiny_bert, tmp_path):
    from transformers import BertModel

    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    bert = BertModel.from_pretrained(folder)
    with torch.no_grad():
        bert.encoder.layer[-1].output.LayerNorm.weight.fill_(torch.nan)
    bert.save_pretrained(folder)
    with pytest.raises(FloatingPointError, match="NaN"):
        models.load_encoder(folder)


def test_embed_ids_agrees_with_encode_for_both_kinds(lam_folder, tiny_bert):
    text = "the old man plays the guitar in the street"
    for name in (lam_folder, tiny_bert):
        encoder = models.load_encoder(name)
        got = encoder.embed_ids([encoder.with_special(encoder.token_ids(text))])
        assert np.abs(got - encoder.encode([text])).max() < 1e-5
    long = encoder.embed_ids([[5] * 200])  # the position table of 48 rows is taken over again
    assert np.isfinite(long).all()
    assert isinstance(models.load_encoder(lam_folder).lam, LAMModel)
