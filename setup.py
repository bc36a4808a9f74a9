"""The extensions of pgwire.hot; everything else is in pyproject.toml.

With PGLEASH_DEBUG=1 they are built with bounds checks, assertions and the address and undefined-behaviour sanitizers, their C
in build/debug (``make sanitize``).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HOT = Path("src/pgwire/hot")
DEBUG = os.environ.get("PGLEASH_DEBUG") == "1"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-omit-frame-pointer"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"pgwire.hot.{source.stem}",
                [str(source)],
                include_dirs=[str(HOT)],
                libraries=["dl"],
                extra_compile_args=["-O1", "-g", "-UNDEBUG", *SANITIZE] if DEBUG else ["-O3", "-fno-strict-aliasing", "-Wno-unused-function"],
                extra_link_args=SANITIZE if DEBUG else [],
            )
            for source in sorted(HOT.glob("*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": not DEBUG,
            "initializedcheck": DEBUG,
            "embedsignature": True,
        },
        include_path=["src"],
        build_dir="build/debug" if DEBUG else None,
    )
)
