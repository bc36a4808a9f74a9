"""Generate src/pgleash/v1 from the protos; ``--check`` only says whether that would change anything.

Never add here: edits of what the generators write.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src"


def generate(target: Path) -> list[Path]:
    """Write the modules below ``target``; their paths relative to it."""
    protos = sorted((ROOT / "protos" / "pgleash" / "v1").glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *map(str, protos),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("the protos have errors")
    return sorted(path.relative_to(target) for path in (target / "pgleash" / "v1").glob("*_pb2*"))


def main() -> int:
    """Exit code 1 when ``--check`` finds a difference."""
    if "--check" not in sys.argv[1:]:
        generate(OUT)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory)
        stale = [str(path) for path in generate(target) if not _same(target / path, OUT / path)]
    if stale:
        print("out of date, run `make proto`: " + ", ".join(stale), file=sys.stderr)
        return 1
    return 0


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    sys.exit(main())
