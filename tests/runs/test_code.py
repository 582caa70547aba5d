"""Which keys move when the code is edited: in a copy of the package, edit by edit."""

import shutil

import pytest

from workbench import methods, runs
from workbench.runs import code

SYSTEMS = {name: method.code for name, method in methods.REGISTRY.items() if method.group}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package that the hash is made of; `keys()` gives the hash of every system."""
    ignored = shutil.ignore_patterns("__pycache__", "js", "templates")
    package = shutil.copytree(runs.PACKAGE, tmp_path / "workbench", ignore=ignored)
    monkeypatch.setattr(code, "PACKAGE", package)
    return package


def keys():
    return {name: code.code_hash(module) for name, module in SYSTEMS.items()}


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def moved(before):
    return {name for name, key in keys().items() if key != before[name]}


def test_what_can_change_no_number_moves_no_key(copy):
    before = keys()
    edit(
        copy / "methods" / "__init__.py",
        '        Method(\n            "sppo"',
        '        Method("new", "New", "align", "none", ()),\n        Method(\n            "sppo"',
    )
    (copy / "methods" / "align" / "new").mkdir()
    (copy / "methods" / "align" / "new" / "method.py").write_text("def train_arm(): ...\n")
    edit(copy / "claims.py", "\nimport", "\n# a comment\nimport")
    edit(copy / "claims.py", '"""', '"""Other words. ')
    edit(copy / "kernels" / "scoring.py", '"""', '"""Other words. ')
    edit(copy / "kernels" / "scoring.py", "\nimport ", "\n# a comment\n\n\nimport ")
    edit(copy / "config.py", "class Sampling:", "class Sampling:\n    new: int = neutral(0)\n")
    edit(copy / "__init__.py", '__version__ = "', '__version__ = "1')
    edit(copy / "runs" / "provenance.py", "GIT_S = 10.0", "GIT_S = 11.0")
    edit(copy / "methods" / "align" / "sppo" / "experiment.py", "NOISE = 0.03", "NOISE = 0.04")
    (copy / "objectives" / "new.py").write_text("def new(): ...\n")
    edit(copy / "objectives" / "__init__.py", "from ", "from workbench.objectives.new import new\nfrom ")
    assert moved(before) == set()


def test_an_edited_objective_moves_those_that_use_it(copy):
    before = keys()
    edit(copy / "objectives" / "ranked_lists.py", "def pro(", "NEW = 1\n\n\ndef pro(")
    assert "pro" in moved(before)
    assert {"sppo", "dpo", "pace_lm", "logo"} & moved(before) == set()


def test_an_edited_kernel_moves_all_that_train(copy):
    before = keys()
    edit(copy / "kernels" / "heads.py", "KEEP = 2**24", "KEEP = 2**23")
    assert {"spin", "sppo", "dpo", "logo", "flr"} <= moved(before)


def test_an_edited_method_moves_itself_alone(copy):
    before = keys()
    edit(copy / "methods" / "align" / "sppo" / "method.py", "log = ", "NEW = 1\nlog = ")
    assert moved(before) == {"sppo"}


def test_imports_for_types_alone_do_not_count(copy):
    before = keys()
    text = (copy / "methods" / "align" / "dpo" / "method.py").read_text()
    guard = "\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from workbench.objectives import longpo\n"
    (copy / "methods" / "align" / "dpo" / "method.py").write_text(text + guard)
    with_types = keys()["dpo"]
    edit(copy / "objectives" / "long_context.py", "def longpo(", "NEW = 1\n\n\ndef longpo(")
    assert keys()["dpo"] == with_types
    assert moved(before) >= {"dpo", "longpo"}


def test_a_package_handed_on_whole_counts_whole(copy):
    """Nobody can say what is used of a module that is passed to a function."""
    (copy / "methods" / "align" / "whole.py").write_text("from workbench import objectives\nprint(objectives)\n")
    before = code.code_hash("workbench.methods.align.whole")
    edit(copy / "objectives" / "__init__.py", "from ", "NEW = 1\nfrom ")
    assert code.code_hash("workbench.methods.align.whole") != before
