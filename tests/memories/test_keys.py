"""Keys bound to scopes: only hashes are stored, and a revoked key opens nothing."""

from pathlib import Path

import pytest

from lam_transformers.memories import Keys, Memory, Scope


def test_a_key_opens_its_scope_until_it_is_revoked(words_only, clock):
    keys = Keys(words_only.store, clock)
    assert not keys.exist()
    scope = Scope("ada", "robot", "chat")
    first = keys.add("phone", scope)
    second = keys.add("reader", Scope())
    assert first.startswith("lam-") and len(first) > 40 and first != second
    assert (keys.scope_of(first), keys.scope_of(second)) == (scope, Scope())
    with pytest.raises(ValueError, match="There is a key named 'phone'"):
        keys.add("phone", Scope("bob"))
    keys.revoke("phone")
    assert keys.scope_of(first) is None
    with pytest.raises(ValueError, match="no key named 'phone' in use"):
        keys.revoke("phone")
    third = keys.add("phone", Scope("ada"))
    assert (keys.scope_of(first), keys.scope_of(third)) == (None, Scope("ada"))
    assert [(key.name, key.scope, key.revoked is None) for key in keys.list()] == [
        ("phone", scope, False),
        ("reader", Scope(), True),
        ("phone", Scope("ada"), True),
    ]
    assert keys.list()[0].created < keys.list()[0].revoked
    keys.revoke("phone")
    keys.revoke("reader")
    assert keys.exist()


@pytest.mark.parametrize("wrong", ["", "lam-", "' OR 1=1 --", "\0", "\ud800", "x" * 100_000])
def test_what_is_no_key(words_only, wrong):
    keys = Keys(words_only.store)
    keys.add("phone", Scope("ada"))
    assert keys.scope_of(wrong) is None
    with pytest.raises(ValueError, match="name of the key|no key named"):
        keys.revoke("x") if wrong == "lam-" or "OR" in wrong else keys.add(wrong, Scope())


def test_the_key_itself_is_nowhere(words_only, place):
    key = Keys(words_only.store).add("phone", Scope("ada"))
    words_only.close()
    for file in Path(place).parent.iterdir():
        assert key.encode() not in file.read_bytes()
        assert key[4:].encode() not in file.read_bytes()


def test_keys_are_not_exported_and_outlive_what_is_forgotten(words_only, tmp_path):
    keys = Keys(words_only.store)
    key = keys.add("the phone of ada", Scope("ada"))
    words_only.add("The dog.", user_id="ada")
    words_only.export(tmp_path / "all.jsonl")
    assert "phone" not in (tmp_path / "all.jsonl").read_text(encoding="utf-8")
    words_only.delete_all(everything=True)
    assert keys.scope_of(key) == Scope("ada")


def test_a_memory_of_schema_1_gets_keys(words_only, place):
    words_only.add("The dog.", user_id="ada")
    with words_only.store.write() as transaction:
        transaction.run("DROP TABLE api_keys")
        transaction.run("UPDATE settings SET value = '1' WHERE name = 'schema'")
    words_only.close()
    with Memory(place, model=None) as memory:
        key = Keys(memory.store).add("phone", Scope("ada"))
        assert Keys(memory.store).scope_of(key) == Scope("ada")
        assert [result.text for result in memory.search("dog", user_id="ada")] == ["The dog."]
        assert memory.settings()["schema"] == "2"
    assert Path(f"{place}.schema-1").exists()
