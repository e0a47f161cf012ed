"""What is published: the check of a wheel, and that its package data name every kind of file."""

import tomllib
import zipfile
from pathlib import Path

from tools.package import ROOT, faults, package_files


def wheel_of(folder, names):
    wheel = folder / "some-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*names, "some-0.dist-info/METADATA"]:
            archive.writestr(name, "")
    return wheel


def test_a_wheel_without_a_record_or_with_tests_is_told(tmp_path):
    names = package_files()
    assert "contaccum_lite/py.typed" in names and "contaccum_lite/lab/grid.js" in names
    assert faults(wheel_of(tmp_path, names)) == []
    record = "contaccum_lite/evidence/records/cost.json"
    wheel = wheel_of(tmp_path, (names - {record}) | {"tests/test_x.py"})
    assert faults(wheel) == [f"lacks {record}", "holds tests/test_x.py beside the package"]


def test_package_data_name_every_file_that_is_no_module():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    for name in package_files():
        path = Path(name)
        if path.suffix == ".py":
            continue
        patterns = list(data["*"])
        for package, package_patterns in data.items():
            folder = package.replace(".", "/")
            if package != "*" and name.startswith(folder + "/"):
                patterns += [f"{folder}/{pattern}" for pattern in package_patterns]
        assert any(path.match(pattern) for pattern in patterns), name
