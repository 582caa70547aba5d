"""What a notebook says before it is run: question, paragraph, formula, as pieces that a view inserts as text."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from toy_notebooks import write_notebook

from workbench import methods
from workbench.runs.files import PACKAGE
from workbench.share import formulas, notebook_story


def story(tmp_path, *cells, first="# Why?\n\nBecause."):
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(cell) for cell in (first, *cells)]), path)
    return notebook_story.read(path)


def flat(blocks):
    return [[piece[0] if piece[0] in ("math", "display") else piece[1] for piece in block] for block in blocks]


def test_question_and_paragraph_are_those_of_the_first_cell(tmp_path):
    found = story(
        tmp_path, first="# Does *it* help?\n\nA `tool` of **two**\nlines, $x^2$, [a link](http://x).\n\nMore."
    )
    assert found.question == "Does it help?"
    kinds = [piece[0] for piece in found.about]
    assert kinds == ["text", "code", "text", "strong", "text", "math", "text", "text", "text"]
    assert found.about[3][1] == "two"
    assert found.about[5][1] == formulas.tree("$x^2$")
    assert found.about[7][1] == "a link"


def test_method_is_the_cell_with_the_formula_up_to_the_end_of_its_sentence(tmp_path):
    cell = (
        "## The method in one equation\n\nWith $y$ minimise\n\n$$L = y$$\n\nwhose minimum is 0.\n\n**The world.** Left"
        " out."
    )
    found = story(tmp_path, "## Other words", cell)
    assert flat(found.method) == [["With ", "math", " minimise"], ["display"], ["whose minimum is 0."]]


def test_formulas_in_the_text_do_where_none_stands_alone(tmp_path):
    found = story(tmp_path, "## Three views\n\n- **Rate** of $m$\n- $P$ of a win\n\n## Next\n\n$z$")
    assert flat(found.method) == [["• ", "Rate", " of ", "math"], ["• ", "math", " of a win"]]
    assert story(tmp_path, "no formula").method == []


def test_hostile_text_stays_text_and_unreadable_tex_stays_code(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    found = story(tmp_path, f"$$\\text{{{bad}}} \\frac$$", first=f"# {bad}?\n\n{bad}")
    assert found.question == f"{bad}?"
    assert found.about == [["text", bad]]
    kinds = {piece[0] for block in found.method for piece in block}
    assert kinds <= {"display", "code"}


def test_every_registered_notebook_has_a_question_and_a_formula():
    for method in methods.REGISTRY.values():
        found = notebook_story.read(PACKAGE.parent / method.notebook)
        assert found.question.endswith("?"), method.name
        assert found.about, method.name
        assert {"math", "display"} & {piece[0] for block in found.method for piece in block}, method.name


def test_no_notebook_and_no_notebook_inside_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        notebook_story.read(tmp_path / "none.ipynb")
    (tmp_path / "bad.ipynb").write_text("[1]")
    with pytest.raises(ValueError, match=r"bad\.ipynb is not a notebook"):
        notebook_story.read(tmp_path / "bad.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "empty.ipynb")
    assert notebook_story.read(tmp_path / "empty.ipynb") == notebook_story.Story("")
    assert notebook_story.read(write_notebook(tmp_path / "toy.ipynb")).question == "Does the toy work?"


def test_tree_is_mathml_as_plain_lists():
    tag, attributes, _, children = formulas.tree("$$a < b$$")
    assert (tag, attributes["display"]) == ("math", "block")
    assert json.loads(json.dumps(children)) == children
    assert formulas.mathml("$a < b$").startswith("<math")
    assert "&lt;" in formulas.mathml("$a < b$")
    assert formulas.tree(r"$\frac$") is None
    assert formulas.mathml(r"$\frac$") == r"<code>$\frac$</code>"
