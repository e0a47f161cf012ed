"""What a wheel must hold: every file of the package that the repository has.

python -m build && python -m tools.package dist/*.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "contaccum_lite"


def package_files(root: Path = ROOT) -> set[str]:
    """Code, records, JavaScript, styles and the mark of types, as paths in a wheel."""
    files = (root / PACKAGE).rglob("*")
    paths = [file.relative_to(root) for file in files if file.is_file()]
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def faults(wheel: Path, root: Path = ROOT) -> list[str]:
    """What this wheel lacks of the package, and what it holds beside it."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = package_files(root)
    lacking = [f"lacks {name}" for name in sorted(wanted - names)]
    return lacking + [f"holds {name} beside the package" for name in sorted(names - wanted)]


def main(wheels: list[str]) -> None:
    found = [f"{wheel} {fault}" for wheel in wheels for fault in faults(Path(wheel))]
    if found or not wheels:
        raise SystemExit("\n".join(found) or "python -m tools.package dist/*.whl")


if __name__ == "__main__":
    main(sys.argv[1:])
