"""Final answers: found where a solution puts them, compared by value, and never guessed."""

import json

import pytest

from workbench.tasks.reasoning.answers import final_answer, number, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 = 13\n#### 18", "18"),
        ("so \\boxed{\\frac{1}{2}} and then \\boxed{3}.", "3"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The answer is: 42.", "42"),
        ("Answer: (1, 2)\nbye", "(1, 2)"),
        ("I do not know", None),
        ("\\boxed{", None),
        ("\\boxed{}", None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0.5", "\\frac{1}{2}", True),
        ("\\dfrac12", "1/2", True),
        ("1,234", "\\$1234", True),
        ("1,234.50", "1234.5", True),
        ("50\\%", "1/2", True),
        ("18 dollars", "18", True),
        ("2\\frac{1}{2}", "2.5", True),
        ("-\\frac{1}{2}", "-0.5", True),
        ("18", "18.0", True),
        ("18", "19", False),
        ("1/3", "0.3333", False),
        ("(1, 2)", "(1,2.0)", True),
        ("(1,2)", "(2,1)", False),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("\\{1, 1\\}", "\\{1, 2\\}", False),
        ("(1,2)", "[1,2]", False),
        ("x+1", "x + 1", True),
        ("x+1", "1+x", None),
        ("", "", None),
        ("\\frac{1}{0}", "1", None),
        ("90^\\circ", "90", True),
        ("7 text{cm}", "x", None),
    ],
)
def test_same_answers(a, b, same):
    assert same_answer(a, b) is same
    assert same_answer(b, a) is same


def test_two_numbers_among_words_are_not_guessed():
    assert number("between 3 and 4") is None


def test_every_answer_of_the_real_problems_is_read(shared):
    rows = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    answers = [final_answer(row["answer"]) for row in rows]
    assert all(answer is not None and number(answer) is not None for answer in answers)


def test_real_solutions_are_judged_as_their_authors_did(shared):
    """Right and wrong solutions of four real models: the marks that came with the data are reached from the text
    alone."""
    golds = [json.loads(line)["answer"] for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (shared / "data/gsm8k/example_model_solutions.jsonl").read_text().splitlines()]
    agree = []
    for gold, row in zip(golds, rows, strict=False):
        for marked in (value for value in row.values() if isinstance(value, dict) and "is_correct" in value):
            found = final_answer(marked["solution"])
            right = found is not None and same_answer(found, final_answer(gold) or "") is True
            agree.append(right == bool(marked["is_correct"]))
    assert len(agree) > 4_000
    assert sum(agree) / len(agree) > 0.99
