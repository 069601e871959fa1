"""Files and folders that appear complete or not at all, whatever happens on the way."""

import os
import signal
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from lam_transformers.io.atomic import atomic_file, atomic_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "caf\u00e9\n")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text(encoding="utf-8") == "caf\u00e9\n"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_is_not_finished_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "a.json"
    write_text(path, "before")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.json"]


def test_two_writers_have_a_temporary_file_each(tmp_path):
    path = tmp_path / "a.json"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which ended last
    with atomic_file(path, tmp_path / "a.json.tmp") as temporary:
        assert temporary == tmp_path / "a.json.tmp"
    assert path.read_text() == ""
    assert names(tmp_path) == ["a.json"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "above" / "model"
    with atomic_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")
        assert not path.exists()
    assert names(path.parent) == ["model"] and (path / "inner" / "a").read_text() == "a"
    with pytest.raises(FileExistsError, match="exists; choose a new folder"), atomic_folder(path):
        pytest.fail("it began")
    with atomic_folder(path, replace=True) as folder:
        (folder / "b").write_text("b")
    assert names(path.parent) == ["model"] and names(path) == ["b"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "c").write_text("c")
    assert names(tmp_path / "empty") == ["c"]


@pytest.mark.parametrize("error", [OSError, SafetensorError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_that_is_not_finished_leaves_nothing_new(tmp_path, error, replace):
    path = tmp_path / "model"
    if replace:
        path.mkdir()
        (path / "a").write_text("before")
    wanted = OSError if error is SafetensorError else error
    with pytest.raises(wanted), atomic_folder(path, replace) as folder:
        (folder / "a").write_text("half")
        raise error
    assert names(tmp_path) == (["model"] if replace else [])
    assert not replace or (path / "a").read_text() == "before"


def test_a_folder_that_appeared_in_the_meantime_is_not_replaced(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileExistsError), atomic_folder(path):
        path.mkdir()
        (path / "a").write_text("another's")
    assert (path / "a").read_text() == "another's"
    assert names(tmp_path) == ["model"]


KILLED = """
import os, signal, sys
from lam_transformers.io.atomic import atomic_file, atomic_folder
with atomic_file(sys.argv[1] + "/a") as file, atomic_folder(sys.argv[1] + "/b", replace=True) as folder:
    file.write_text("half")
    (folder / "c").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_one_to_the_same_place(tmp_path):
    write_text(tmp_path / "a", "before")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "before"
    assert len(names(tmp_path)) == 3
    running = tmp_path / f".a.{os.getpid()}-0123abcd.tmp"
    running.write_text("of a writer that still runs")
    write_text(tmp_path / "a", "after")
    assert {"a", running.name} < set(names(tmp_path)) and len(names(tmp_path)) == 3
    with atomic_folder(tmp_path / "b"):
        pass
    assert set(names(tmp_path)) == {"a", "b", running.name}
