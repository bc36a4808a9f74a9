"""The extensions of pgwire.hot; everything else is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HOT = Path("src/pgwire/hot")

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"pgwire.hot.{source.stem}",
                [str(source)],
                include_dirs=[str(HOT)],
                libraries=["dl"],
                extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wno-unused-function"],
            )
            for source in sorted(HOT.glob("*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
        include_path=["src"],
    )
)
