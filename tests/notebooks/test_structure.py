"""Every notebook of the project keeps one shape: question, parameters, calls only, claims, finish; stored empty."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from toy_notebooks import CLAIM, OPEN, write_notebook

from workbench import methods
from workbench.share import pages

ROOT = Path(__file__).resolve().parents[2]
REGISTERED = {method.notebook: method for method in methods.REGISTRY.values()}
PASSED = {"scale", "model", "dataset", "seeds", "device", "overrides", "output"}  # what `workbench reproduce` passes
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda)
HIDDEN_FROM_PAPERMILL = re.compile(r"\||Optional|Union|Literal|[Tt]uple|['\"]")  # its inspector drops such annotations
MAX_LINES = 12


def notebooks_of(checkout: Path) -> list[Path]:
    """The notebooks of a checkout, relative to it, without the copies that JupyterLab keeps in hidden folders."""
    found = (path.relative_to(checkout) for path in (checkout / "notebooks").glob("**/*.ipynb"))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))


NOTEBOOKS = notebooks_of(ROOT)


def problems(path: Path, is_method: bool, is_study: bool = False) -> list[str]:
    """What is wrong with the shape of a notebook, one line each."""
    node = nbformat.read(path, as_version=4)
    found = []
    first = node.cells[0]
    if first.cell_type != "markdown" or not re.match(r"#\s.*\?", first.source):
        found.append("the first cell is not a title with the question")
    tagged = [cell for cell in node.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged parameters")
    for cell in tagged:
        found += _parameter_problems(cell.source, is_method)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        if cell.outputs or cell.execution_count is not None:
            found.append(f"code cell {number} is not stripped")
        if len(cell.source.strip().splitlines()) > MAX_LINES:
            found.append(f"code cell {number} has more than {MAX_LINES} lines")
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            found.append(f"code cell {number} is not plain Python: {error.msg}")
            continue
        found += [f"code cell {number} has a {type(n).__name__}" for n in ast.walk(tree) if isinstance(n, LOGIC)]
    if "widgets" in node.metadata or "papermill" in node.metadata:
        found.append("metadata of an execution is left")
    if is_method:
        if not any(re.search(r"^claims\s*$", cell.source, re.MULTILINE) for cell in code):
            found.append("no cell shows the claims")
        if not re.search(r"^experiment\.run\.finish\(claims\)\s*$", code[-1].source, re.MULTILINE):
            found.append("the last code cell does not call experiment.run.finish(claims)")
    if is_study and not any(".finish(" in cell.source for cell in code):
        found.append("no cell calls run.finish(): the batch would never count it as done")
    for cell in node.cells:
        if cell.cell_type == "markdown":
            for formula in re.findall(r"(?<!\\)(\$\$.+?\$\$|\$[^$\n]+\$)", cell.source, re.DOTALL):
                if re.search(r"<code>|<mi>\\", pages.mathml(formula)):
                    found.append(f"formula {formula} cannot be drawn on a page")
    return found


def _parameter_problems(source: str, is_method: bool) -> list[str]:
    found, names = [], set()
    for statement in ast.parse(source).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            found.append(f"parameters: line {statement.lineno} is not an assignment")
            continue
        names.add(target.id)
        try:
            ast.literal_eval(value)
        except ValueError:
            found.append(f"parameters: {target.id} is not a literal")
        annotation = getattr(statement, "annotation", None)
        if annotation is not None and HIDDEN_FROM_PAPERMILL.search(ast.unparse(annotation)):
            found.append(f"parameters: papermill does not see {target.id} with this annotation")
    if is_method and PASSED - names:
        found.append(f"parameters: {', '.join(sorted(PASSED - names))} missing")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook_has_the_shape(path):
    method = REGISTERED.get(path)
    assert problems(ROOT / path, bool(method and method.group), bool(method and not method.group)) == []


def test_every_method_has_its_notebook_and_every_grouped_notebook_its_method():
    assert set(REGISTERED) - set(NOTEBOOKS) == set()
    assert {path for path in NOTEBOOKS if len(path.parts) > 2} - set(REGISTERED) == set()


def test_what_jupyterlab_leaves_is_no_notebook_of_the_project(tmp_path):
    folder = tmp_path / ".hidden checkout" / "notebooks" / "align"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("spin.ipynb", ".ipynb_checkpoints/spin-checkpoint.ipynb", ".~spin.ipynb"):
        (folder / name).touch()
    assert notebooks_of(folder.parents[1]) == [Path("notebooks/align/spin.ipynb")]


# ------------------------------------------------------------------------------------------- the check itself can fail
GOOD_END = (OPEN, CLAIM, "experiment.run.finish(claims)")


def test_good_notebook_passes(tmp_path):
    assert problems(write_notebook(tmp_path / "x.ipynb", *GOOD_END), is_method=True) == []


def test_study_that_never_finishes_is_found(tmp_path):
    (problem,) = problems(write_notebook(tmp_path / "x.ipynb", OPEN), is_method=False, is_study=True)
    assert problem.startswith("no cell calls run.finish()")


@pytest.mark.parametrize(
    ("cells", "title", "problem"),
    [
        (GOOD_END, "No question", "the first cell is not a title with the question"),
        (("def f():\n    return 1", *GOOD_END), "Why?", "code cell 2 has a FunctionDef"),
        (("for x in []:\n    x", *GOOD_END), "Why?", "code cell 2 has a For"),
        (("f = lambda x: x", *GOOD_END), "Why?", "code cell 2 has a Lambda"),
        (("%matplotlib inline", *GOOD_END), "Why?", "code cell 2 is not plain Python: invalid syntax"),
        (("\n".join("abcdefghijklm"), *GOOD_END), "Why?", "code cell 2 has more than 12 lines"),
        ((OPEN, CLAIM), "Why?", "the last code cell does not call experiment.run.finish(claims)"),
        ((OPEN, "experiment.run.finish(claims)"), "Why?", "no cell shows the claims"),
        (("md:$\\unknowncommand x$", *GOOD_END), "Why?", "formula $\\unknowncommand x$ cannot be drawn on a page"),
    ],
)
def test_bad_cells_are_found(tmp_path, cells, title, problem):
    assert problems(write_notebook(tmp_path / "x.ipynb", *cells, title=title), is_method=True) == [problem]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1 + n", "parameters: x is not a literal"),
        ("x: int | None = 3", "parameters: papermill does not see x with this annotation"),
        ("x: 'int' = 3", "parameters: papermill does not see x with this annotation"),
        ("import os", "parameters: line 1 is not an assignment"),
        ("x: list[int] = [-1]", None),
    ],
)
def test_bad_parameters_are_found(source, problem):
    assert _parameter_problems(source, is_method=False) == ([problem] if problem else [])


def test_executed_or_untagged_notebooks_are_found(tmp_path):
    path = write_notebook(tmp_path / "x.ipynb", *GOOD_END)
    node = nbformat.read(path, 4)
    node.cells[2].execution_count = 1
    node.cells[1].metadata.tags = []
    nbformat.write(node, path)
    assert problems(path, is_method=True) == ["0 cells are tagged parameters", "code cell 2 is not stripped"]
