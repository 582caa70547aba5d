"""Question rows, how they are shown and read, and the agreement of repeated answers."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.feedback.chat import Reply
from workbench.tasks import questions as q

ROW = {"qid": "a", "question": "Which?", "choices": ["red", "blue", "B"], "gold": 1, "dataset": "d"}


@pytest.mark.parametrize(
    ("gold", "index"), [(1, 1), (1.0, 1), ("B", 2), ("blue", 1), (" a ", 0), ("C", 2), (None, None), (math.nan, None)]
)
def test_gold_may_be_an_index_a_letter_a_text_or_unknown(gold, index):
    """A text among the choices is taken before a letter: "B" is the third option here."""
    assert q.check_questions([{**ROW, "gold": gold}])[0]["gold"] == index


@pytest.mark.parametrize("gold", [3, -1, "D", "green", True, 0.5, "", "AB"])
def test_a_gold_that_is_no_choice_names_its_row(gold):
    with pytest.raises(ValueError, match=r"row 1, column 'gold': .*3 choices"):
        q.check_questions([ROW, {**ROW, "qid": "b", "gold": gold}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": None}, "row 1, column 'qid': text is needed; got None; found qid, question, choices, gold, dataset"),
        ({"question": " "}, "row 1, column 'question': text is needed"),
        ({"qid": "a"}, "row 1, column 'qid': 'a' stands in row 0 too"),
        ({"choices": ["one"]}, "row 1, column 'choices': 2 to 26 texts are needed, or none"),
        ({"choices": "red, blue"}, "row 1, column 'choices': a list of texts is needed"),
        ({"choices": 4}, "row 1, column 'choices': a list of texts is needed"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        q.check_questions([ROW, {**ROW, "qid": "b", **change}])


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="row 0, column 'question': text is needed; got None; found qid, choices"):
        q.check_questions([{"qid": "a", "choices": []}])


def test_a_parquet_file_becomes_a_task(tmp_path):
    rows = [{**ROW, "qid": f"q{i}", "dataset": "one" if i % 2 else "two"} for i in range(10)]
    pd.DataFrame(rows).to_parquet(tmp_path / "q.parquet")
    task = q.QuestionFile.load(str(tmp_path / "q.parquet"), model="m", device="cpu", n_questions=3)
    drawn = q.by_data_set(task.questions(seed=0))
    assert {name: len(part) for name, part in drawn.items()} == {"one": 3, "two": 3}
    assert task.questions(0) == task.questions(0) != task.questions(1)


def test_rows_without_a_data_set_take_the_file_name(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"qid": 1, "question": "2 + 2?", "gold": 4}\n')
    (row,) = q.QuestionFile.load(str(tmp_path / "mine.jsonl"), model="m", device="cpu", n_questions=9).rows
    assert row == {"qid": "1", "question": "2 + 2?", "choices": [], "gold": "4", "dataset": "mine"}


def test_open_answers_are_compared_as_text():
    question = q.check_questions([{"qid": "a", "question": "How many?", "gold": 1234}])[0]
    for text in ("Answer: 1,234", "Answer: $1234.", "**Answer:** 1234"):
        assert q.read_answer(text, question) == question["gold"] == "1234"
    assert q.read_answer("Answer:", question) is None
    assert q.read_answer("1234", question) is None


def test_what_is_shown_keeps_the_ends_of_a_shortened_text():
    question = {**ROW, "question": "begin" + 200 * "x" + "end?", "choices": ["r" * 100, "b" * 100]}
    full, short = q.shown(question), q.shown(question, text_share=0.1)
    assert full == f"{question['question']}\nA. {'r' * 100}\nB. {'b' * 100}"
    assert short.startswith("begin")
    assert "end?\n" in short
    assert " [...] " in short
    assert "B. " + "b" * 100 in short
    assert "b" * 100 not in q.shown(question, option_share=0.1)


# ---- asking
def answers(*texts):
    return lambda requests: [Reply(text) for text in texts]


def three():
    return q.check_questions([{**ROW, "qid": name} for name in "abc"])


def test_answers_carry_truth_and_confidence():
    ask = answers("Answer: B\nConfidence: 0.9", "Answer: A\nConfidence: sure", "Answer: B\nConfidence: 2")
    answered, missing = q.ask_answers(three(), ask, max_tokens=8)
    assert [(p["answer"], p["correct"]) for p in answered] == [(1, 1), (0, 0), (1, 1)]
    assert [math.isnan(p["confidence"]) for p in answered] == [False, True, True]
    assert missing == []


def test_a_question_without_an_answer_stops_the_run_or_is_left_out():
    ask = answers("Answer: B\nConfidence: 0.9", "no idea", "Answer: A\nConfidence: 0.5")
    with pytest.raises(ValueError, match=r"no answer could be read for 1 of 3 questions \(b\); on_missing='drop'"):
        q.ask_answers(three(), ask, max_tokens=8)
    answered, missing = q.ask_answers(three(), ask, max_tokens=8, on_missing="drop")
    assert ([p["qid"] for p in answered], missing) == (["a", "c"], ["b"])


def test_one_answered_question_is_no_ranking():
    with pytest.raises(ValueError, match="at least 2 answered questions; 'd' has 1 of 3"):
        q.ask_answers(three(), answers("Answer: A", "", ""), max_tokens=8, on_missing="drop")


def test_samples_are_compared_with_the_answer():
    answered, _ = q.ask_answers(
        three()[:2], answers("Answer: B\nConfidence: 1", "Answer: A\nConfidence: 1"), max_tokens=8
    )
    ask = answers("Answer: B\nConfidence: 0.5", "gone", "Answer: B\nConfidence: 0.25", "Answer: A\nConfidence: no")
    agree, stated = q.ask_samples(answered, ask, 2, temperature=1.0, max_tokens=8)
    np.testing.assert_equal(agree, [[1, np.nan], [0, 1]])
    np.testing.assert_equal(stated, [[0.5, np.nan], [0.25, np.nan]])


# ---- repeated answers
def test_self_consistency_by_hand():
    """Row 0: two of three agree, saying 0.9, 0.6 against 0.5: hybrid 1.5 / 2, product 2/3 of 0.75. Row 1: none."""
    scores = q.self_consistency(np.array([[1, 1, 0], [0, 0, 0]]), np.array([[0.9, 0.6, 0.5], [1, 1, 1]]))
    np.testing.assert_allclose(scores["sc"], [2 / 3, 0])
    np.testing.assert_allclose(scores["hybrid_sc"], [0.75, 0])
    np.testing.assert_allclose(scores["hybrid_product"], [0.5, 0])


def test_unread_samples_count_neither_for_nor_against():
    nan = np.nan
    scores = q.self_consistency(np.array([[1, nan, 0, 1], [nan] * 4]), np.array([[0.9, 0.1, 0.3, nan], [nan] * 4]))
    np.testing.assert_allclose(scores["sc"], [2 / 3, 2 / 3])  # the second row tells nothing: mean of the others
    np.testing.assert_allclose(scores["hybrid_sc"], [0.75, 0.75])


def test_nothing_read_is_an_error():
    with pytest.raises(ValueError, match="none of 2 stated confidences could be read"):
        q.neutral(np.array([np.nan, np.nan]))


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=3, max_size=3), min_size=1, max_size=5))
def test_scores_are_shares(rows):
    agree = np.array(rows)
    if np.isfinite(agree).any():
        scores = q.self_consistency(agree, np.where(np.isfinite(agree), 0.5, np.nan))
        for values in scores.values():
            assert ((values >= 0) & (values <= 1)).all()
        np.testing.assert_allclose(scores["sc"], scores["hybrid_sc"])  # equal confidence everywhere changes nothing
