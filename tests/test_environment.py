"""One source of pins: conda reads the file that make reads, and what is installed is what is pinned."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PINS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned():
    pinned = {canonical(name) for name in PINS}
    asked = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    assert not {canonical(name.partition(";")[0]) for name in asked} - pinned
    assert PINS["torch"] == "2.13.0"


def test_conda_installs_the_same_pins_and_extras_as_make():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    makefile = (ROOT / "Makefile").read_text()
    assert pip == ["--constraint constraints.txt", "--editable .[lab,dev]"]
    assert '--constraint constraints.txt --editable ".[lab,dev]"' in makefile
    (python,) = (item for item in environment["dependencies"] if str(item).startswith("python"))
    assert python.removeprefix("python").startswith(PROJECT["requires-python"])


@pytest.mark.parametrize("name", sorted(PINS))
def test_installed_version_is_the_pinned_one(name):
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed on this platform")
    assert installed.partition("+")[0] == PINS[name]
