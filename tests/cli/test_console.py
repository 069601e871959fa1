"""What the command `lam` shows: one line for each fault, and nothing from a file that commands the terminal."""

import json

import pytest
import torch

from lam_transformers.checkpoints.inspect import format_inspection

from ..checkpoints.published_checkpoints import SMALL, one_file
from ..helpers import run_lam

NASTY = "\x1b]0;owned\x07\x1b[2J\u202eno\u2028yes\r\nloads: yes"


def lines_of(*arguments):
    """What a command says that fails: one line, with "lam: " before it."""
    output = run_lam(*arguments, code=1).strip()
    assert output.startswith("lam: ") and "\n" not in output, output
    return output


@pytest.mark.parametrize("name", ["my[draft].bin", "[/b]", "[red]x", ":smile:", "[link=http://x]y[/link]", r"a\[b"])
def test_names_of_files_are_no_markup(tmp_path, name):
    path = tmp_path / name
    assert f"{path} does not exist." in lines_of("inspect", path)
    assert f"{path} does not exist." in lines_of("convert", path, tmp_path / "out")
    assert str(path) in lines_of("export", path, tmp_path / "out")
    setting = name.replace("=", "")
    assert repr(setting)[1:-1] in run_lam("train", "relational", tmp_path, path, "--set", setting, code=2)


def test_what_is_written_is_named_as_it_is(tiny_bert, tmp_path):
    out = tmp_path / "my[draft] :smile:"
    assert f"Wrote {out}: " in run_lam("init", tiny_bert, out)
    assert f"Wrote {out}." in run_lam("export", out, out)


def test_what_a_checkpoint_says_does_not_command_the_terminal(tmp_path):
    content = one_file("final", SMALL) | {"note": NASTY, NASTY: 3}
    torch.save(content, tmp_path / "a.bin")
    output = run_lam("inspect", tmp_path / "a.bin")
    assert not {"\x1b", "\x07", "\u202e", "\u2028", "\r"} & set(output)
    assert "\\x1b]0;owned" in output
    assert [line for line in output.splitlines() if line.startswith("loads")] == ["loads: yes"]
    torch.save({NASTY: torch.ones(2)}, tmp_path / "b.bin")
    output = run_lam("inspect", tmp_path / "b.bin", code=1)
    assert "\x1b" not in output and output.count("loads:") == 2
    assert output.splitlines()[-1].startswith("loads: no.")
    assert "\x1b" not in run_lam("convert", tmp_path / "b.bin", tmp_path / "out", code=1)
    assert json.loads(run_lam("inspect", tmp_path / "a.bin", "--json"))["files"][0]["notes"]["note"] == NASTY
    inspection = json.loads(run_lam("inspect", tmp_path / "a.bin", "--json"))
    assert "\x1b" not in format_inspection(inspection)


def test_numbers_that_no_run_can_have_are_one_line_each(tiny_bert, tmp_path):
    assert "--gate must be" in lines_of("init", tiny_bert, tmp_path / "a", "--gate", 10**12)
    assert "--gate must be" in lines_of("init", tiny_bert, tmp_path / "a", "--gate", "9" * 5000)
    assert "--seed must be" in lines_of("init", tiny_bert, tmp_path / "a", "--seed", -1)
    assert "--seed must be" in lines_of("init", tiny_bert, tmp_path / "a", "--seed", 10**30)
    distill = ("train", "distill", tiny_bert, tmp_path / "run", "--dev", "dev.jsonl", "--text", "a.txt")
    for option, name, value in (
        ("--evaluate-every", "evaluate_every", 0), ("--checkpoint-every", "checkpoint_every", 0),
        ("--evaluate-every", "evaluate_every", -3), ("--steps", "steps", -1), ("--steps", "steps", 0),
        ("--tokens-per-batch", "tokens_per_batch", 0), ("--max-length", "max_length", -1), ("--seed", "seed", -1),
        ("--warmup-steps", "warmup_steps", -1), ("--learning-rate", "learning_rate", "nan"),
    ):  # fmt: skip
        assert f"{name} must be" in lines_of(*distill, option, value)
    assert not (tmp_path / "run").exists()
    stage = ("train", "finetune", tiny_bert, tmp_path / "run", "--set")
    assert "evaluate_every must be" in lines_of(*stage, "evaluate_every=0")
    assert "batch_size must be" in lines_of(*stage, "batch_size=0")
