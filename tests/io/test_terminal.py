"""What the command `lam` shows: one line for each fault, and nothing from a file that commands the terminal."""

import json
import pickle
import zipfile

import pytest
import torch
from typer.testing import CliRunner

from lam_transformers import late_chunks
from lam_transformers.checkpoints.inspect import format_inspection
from lam_transformers.checkpoints.pickles import read_checkpoint
from lam_transformers.cli.app import app
from lam_transformers.io.terminal import one_line, printable
from lam_transformers.published.checks_lam_published import check_ids, real_tokens

from ..checkpoints.published_checkpoints import SMALL, one_file

NASTY = "\x1b]0;owned\x07\x1b[2J\u202eno\u2028yes\r\nloads: yes"


def run(*arguments, code=1):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def lines_of(*arguments):
    """What a command says that fails: one line, with "lam: " before it."""
    output = run(*arguments).strip()
    assert output.startswith("lam: ") and "\n" not in output, output
    return output


def test_control_characters_are_written_out():
    assert printable("caf\u00e9 [b] \U0001f642") == "caf\u00e9 [b] \U0001f642"
    assert printable(NASTY) == r"\x1b]0;owned\x07\x1b[2J\u202eno\u2028yes\x0d\x0aloads: yes"
    assert printable("a\tb\n\x00", keep="\t\n") == "a\tb\n\\x00"
    assert one_line("a\n  b\x1b\n") == "a b\\x1b"
    assert one_line("x" * 50, 10) == "x" * 10 + " ..."


@pytest.mark.parametrize("name", ["my[draft].bin", "[/b]", "[red]x", ":smile:", "[link=http://x]y[/link]", r"a\[b"])
def test_names_of_files_are_no_markup(tmp_path, name):
    path = tmp_path / name
    assert f"{path} does not exist." in lines_of("inspect", path)
    assert f"{path} does not exist." in lines_of("convert", path, tmp_path / "out")
    assert str(path) in lines_of("export", path, tmp_path / "out")
    setting = name.replace("=", "")
    assert repr(setting)[1:-1] in run("train", "relational", tmp_path, path, "--set", setting, code=2)


def test_what_is_written_is_named_as_it_is(tiny_bert, tmp_path):
    out = tmp_path / "my[draft] :smile:"
    assert f"Wrote {out}: " in run("init", tiny_bert, out, code=0)
    assert f"Wrote {out}." in run("export", out, out, code=0)


def test_what_a_checkpoint_says_does_not_command_the_terminal(tmp_path):
    content = one_file("final", SMALL) | {"note": NASTY, NASTY: 3}
    torch.save(content, tmp_path / "a.bin")
    output = run("inspect", tmp_path / "a.bin", code=0)
    assert not {"\x1b", "\x07", "\u202e", "\u2028", "\r"} & set(output)
    assert "\\x1b]0;owned" in output
    assert [line for line in output.splitlines() if line.startswith("loads")] == ["loads: yes"]
    torch.save({NASTY: torch.ones(2)}, tmp_path / "b.bin")
    output = run("inspect", tmp_path / "b.bin")
    assert "\x1b" not in output and output.count("loads:") == 2
    assert output.splitlines()[-1].startswith("loads: no.")
    assert "\x1b" not in run("convert", tmp_path / "b.bin", tmp_path / "out")
    assert json.loads(run("inspect", tmp_path / "a.bin", "--json", code=0))["files"][0]["notes"]["note"] == NASTY
    found = json.loads(run("inspect", tmp_path / "a.bin", "--json", code=0))
    assert "\x1b" not in format_inspection(found)


class Blocked:
    def __reduce__(self):
        return getattr, ("text", "upper")


def _rewrite(path, name, content):
    """The zip archive with other bytes in one entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, data in entries.items():
            archive.writestr(key, content if key.endswith(name) else data)


@pytest.mark.parametrize("form", ["object", "legacy object", "plain", "cut pickle", "garbage", "other opcode"])
def test_no_message_advises_to_load_without_safeguards(tmp_path, form):
    path = tmp_path / "a.bin"
    if form == "plain":
        path.write_bytes(pickle.dumps({"a": Blocked()}, protocol=2))
    elif "object" in form:
        torch.save({"a": Blocked()}, path, _use_new_zipfile_serialization=form == "object")
    else:
        torch.save({"a": torch.ones(3)}, path)
        content = {"cut pickle": b"\x80\x02}q\x00", "garbage": b"\xff" * 50, "other opcode": b"\x80\x02(I1\nI2\nd."}
        _rewrite(path, "data.pkl", content[form])
    with pytest.raises((OSError, ValueError)) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("weights_only", "torch.load", "trust", "add_safe_globals"):
        assert word not in message
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert lines_of("inspect", path)


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


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids", "position_ids", "cu_seq_lens_q"])
def test_lists_in_the_place_of_tensors_are_named(tiny_model, name):
    given = {"input_ids": torch.ones(1, 3, dtype=torch.long), name: [[1, 1, 1]]}
    with pytest.raises(ValueError, match=f"{name} must be a tensor, got list"):
        tiny_model(**given)
    with pytest.raises(ValueError, match="inputs_embeds must be a tensor, got list"):
        tiny_model(inputs_embeds=[[[1.0]]])


def test_ids_that_are_no_integers_are_named(tiny_model):
    with pytest.raises(ValueError, match=r"input_ids must hold integers \(torch.long\), got torch.float32"):
        tiny_model(torch.ones(1, 3))


def test_a_published_model_wants_tensors_too():
    with pytest.raises(ValueError, match="input_ids must be a tensor, got list"):
        check_ids("input_ids", [[1]], 5)
    with pytest.raises(ValueError, match="attention_mask must be a tensor, got list"):
        real_tokens([[1]], torch.ones(1, 1, dtype=torch.long))


@pytest.mark.parametrize("boundaries", [None, 3.5, 0, -1, True, 2 + 1j, object, "words", [3], [(1, None)], {"a": 1}])
def test_boundaries_of_late_chunks_that_are_none(encoder, boundaries):
    with pytest.raises(ValueError, match=r"boundaries must be|A span must be") as caught:
        late_chunks(encoder, "A text. Another.", boundaries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_texts_of_late_chunks_that_are_none(encoder, text):
    with pytest.raises(ValueError, match="LAM embeds strings"):
        late_chunks(encoder, text)
