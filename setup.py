"""The optional native kernel; everything else is in pyproject.toml. If it cannot be built, LAM runs without it."""

import sys

from setuptools import Extension, setup

FOLDER = "lam_transformers/kernels"
# Not -ffast-math: NaN has to stay NaN. Fused multiply-adds are wanted.
FLAGS = (
    []
    if sys.platform == "win32"
    else ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
)

setup(
    ext_modules=[
        Extension(
            "lam_transformers.kernels._lam_memory",
            sources=[f"{FOLDER}/lam_memory_{variant}.c" for variant in ("avx512", "avx2", "plain")],
            depends=[f"{FOLDER}/lam_memory.c", f"{FOLDER}/lam_elementwise.c"],
            extra_compile_args=[] if sys.platform == "win32" else FLAGS,
            optional=True,
        )
    ]
)
