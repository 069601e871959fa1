"""`lam memory`."""

import json

import pytest
from typer.testing import CliRunner

from lam_transformers.cli import app


@pytest.fixture
def lam(tmp_path):
    def run(command, *arguments, code=0, input=None):
        group = ["memory", command]
        if command == "keys":
            group.append(arguments[0])
            arguments = arguments[1:]
        words = [*group, str(tmp_path / "memory.db"), *arguments]
        ended = CliRunner().invoke(app, words, input=input)
        assert ended.exit_code == code, ended.output
        return ended.output

    return run


WORDS = ("--model", "none")


def test_a_memory_from_the_command_line(lam, tmp_path):
    lam("add", "The dog is called Rex.", "--user", "ada", "--key", "dog", *WORDS)
    first = json.loads(lam("list", "--user", "ada", "--json"))
    lam("update", first["id"], "The dog is called Max.", *WORDS)
    assert [line[-4:] for line in lam("history", first["id"]).splitlines()] == ["Rex.", "Max."]
    messages = json.dumps([{"role": "user", "content": "Hello otters."}])
    lam("add", "-", "--user", "ada", "--run", "chat", *WORDS, input=messages)
    assert lam("conversations", "--user", "ada").endswith("1 turns  chat\n")
    assert json.loads(lam("conversations", "--user", "ada", "--json"))["run_id"] == "chat"
    (tmp_path / "notes.md").write_text("# Whales\n\nThey sing in the deep.\n", encoding="utf-8")
    lam("add-document", str(tmp_path / "notes.md"), "--user", "ada", *WORDS)
    assert "They sing" in lam("search", "who can sing", "--user", "ada", *WORDS)
    assert json.loads(lam("search", "dog", "--user", "ada", "--explain", *WORDS))["parts"]["bm25"] > 0
    lam("export", str(tmp_path / "all.jsonl"))
    assert "All is well" in lam("verify")
    assert "versions: 5" in lam("stats")
    lam("forget", first["id"], "--user", "ada")
    lam("forget", "--user", "ada", code=1, input="n\n")
    lam("forget", "--user", "ada", "--yes")
    assert lam("list", "--user", "ada") == ""
    lam("import", str(tmp_path / "all.jsonl"), *WORDS)
    assert "Max." in lam("list", "--user", "ada")
    lam("rebuild", *WORDS)


def test_errors_are_one_line(lam, tmp_path):
    assert "text is empty" in lam("add", " ", *WORDS, code=1)
    assert "no memory" in lam("forget", "nope", code=1)
    (tmp_path / "memory.db").write_text("something else entirely", encoding="utf-8")
    assert "is no memory" in lam("search", "dog", *WORDS, code=1)


def test_keys(lam, tmp_path):
    key = lam("keys", "add", "phone", "--user", "ada").splitlines()[0]
    assert key.startswith("lam-")
    lam("keys", "add", "handbook", "--shared")
    assert "There is a key named 'phone'" in lam("keys", "add", "phone", "--user", "bob", code=1)
    for wrong in ((), ("--shared", "--user", "ada")):
        assert "needs a scope" in lam("keys", "add", "other", *wrong, code=1)
    lam("keys", "revoke", "phone")
    assert "no key named 'phone'" in lam("keys", "revoke", "phone", code=1)
    lines = lam("keys", "list").splitlines()
    assert "user_id ada" in lines[0] and "revoked 20" in lines[0]
    assert "shared" in lines[1] and "in use" in lines[1]
    rows = [json.loads(line) for line in lam("keys", "list", "--json").splitlines()]
    assert [(row["name"], row["user_id"], row["revoked"] is None) for row in rows] == [
        ("phone", "ada", False),
        ("handbook", None, True),
    ]
    assert key not in lam("keys", "list", "--json")
