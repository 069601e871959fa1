"""Result files: what they say of the machine, and what is refused when they are read."""

import json

import pytest
import torch

from lam_transformers.io.results import baseline_names, model_name, numbers_of, read_result, read_results, write_result


def test_a_result_says_with_what_it_was_measured(tmp_path):
    write_result(tmp_path / "new folder" / "result.json", {"pearson": 0.5})
    record = json.loads((tmp_path / "new folder" / "result.json").read_text())
    assert record["numbers"] == {"pearson": 0.5}
    assert {"command", "commit", "versions", "processor", "threads", "date"} <= record["environment"].keys()
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert len(list((tmp_path / "new folder").iterdir())) == 1


def test_a_number_that_is_not_finite_is_refused_and_the_file_that_was_there_is_kept(tmp_path):
    path = tmp_path / "result.json"
    write_result(path, {"pearson": 0.5})
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_result(path, {"pearson": float("nan")})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_of_results_is_read_by_part(tmp_path):
    model = {"name": "lam", "checksum": "1"}
    write_result(tmp_path / "sts.json", {"sets": {"a": 1}}, model=model, baselines={"b": {}, "a": {}})
    write_result(tmp_path / "babi.json", {}, model=model, baselines={"c": {}})
    write_result(tmp_path / "ablation_retrained.json", {"rows": []}, model={"name": "lam"})
    results = read_results(tmp_path)
    assert list(results) == ["ablation_retrained", "babi", "sts"]
    assert model_name(results) == "lam"
    assert baseline_names(results) == ["a", "b", "c"]
    assert numbers_of(results, "sts") == {"sets": {"a": 1}}
    assert numbers_of(results, "babi") is None and numbers_of(results, "recall") is None
    write_result(tmp_path / "recall.json", {"rows": []}, model={"name": "other", "checksum": "2"})
    with pytest.raises(ValueError, match="several models: lam, other"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [("{", r"result\.json is no JSON"), ('{"a": 1}', r"result\.json is no result"), ("[]", "is no result")],
)
def test_a_damaged_result_is_refused_by_file(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_result(path)
