"""The compiled kernel and the code that calls it: one interface, by number, and a library with another is refused."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lam_transformers.kernels import native

FOLDER = Path(native.__file__).parent
# SHA-256 of the structures and signatures. If this test fails after a change of them, raise the number in
# lam_memory_plain.c and native.py and write the new digest here.
INTERFACE = {3: "5bfe0adc646f9b557825cdd910ace4d2c256f942efed39dd8fe8b549f82e3672"}


def interface() -> str:
    found = []
    for name in ("lam_memory.c", "lam_elementwise.c"):
        text = re.sub(r"/\*.*?\*/", "", (FOLDER / name).read_text(), flags=re.DOTALL)
        found += re.findall(r"^struct lam_\w+ \{.*?^\};|^\w+ JOIN\(lam_.*?\{", text, flags=re.DOTALL | re.MULTILINE)
    assert len(found) > 6
    return " ".join(" ".join(found).split())


def test_both_sides_have_the_number_of_this_interface():
    (number,) = re.findall(r"int64_t lam_abi\(void\) \{ return (\d+); \}", (FOLDER / "lam_memory_plain.c").read_text())
    assert int(number) == native.ABI
    assert hashlib.sha256(interface().encode()).hexdigest() == INTERFACE[native.ABI]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("source", ["long long lam_abi(void) { return 999; }", "int lam_nothing(void) { return 0; }"])
def test_a_library_of_other_sources_is_refused(tmp_path, monkeypatch, source):
    code = source + " long long lam_supported(void) { __builtin_trap(); }"
    built = tmp_path / "_lam_memory.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(built)], input=code, text=True, check=True)
    with pytest.raises((OSError, AttributeError), match="999|lam_abi"):
        native.Library(built)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native.library.cache_clear()
    try:
        assert native.library() is None
        assert "from other sources" in native.why_missing()
    finally:
        native.library.cache_clear()
