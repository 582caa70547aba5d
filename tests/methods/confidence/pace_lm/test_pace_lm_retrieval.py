"""Retrieval: the most similar older incidents, never the case itself, and bad vectors by name."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.methods.confidence.pace_lm import retrieval

START = pd.Timestamp("2024-01-01")


def tables(case_texts, history_texts, case_day=10):
    cases = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(len(case_texts))],
            "title": "",
            "summary": case_texts,
            "created": START + pd.Timedelta(case_day, "D"),
        }
    )
    history = pd.DataFrame(
        {"incident_id": [f"h{i}" for i in range(len(history_texts))], "title": "", "summary": history_texts}
        | {"root_cause": "x", "created": START + pd.to_timedelta(range(len(history_texts)), "D")}
    )
    return cases, history


def test_the_most_similar_first_by_binary_cosine():
    found = retrieval.retrieve(*tables(["a b c"], ["a x y", "a b z", "q r s", "a b c d"]), 3)
    assert found["incident_id"].tolist() == ["h3", "h1", "h0"]
    assert found["rank"].tolist() == [1, 2, 3]
    assert list(found) == ["case_id", "rank", "incident_id", "similarity"]
    cosine = [3 / np.sqrt(3 * 4), 2 / 3, 1 / 3]
    np.testing.assert_allclose(found["similarity"], cosine)


def test_equal_similarities_keep_the_stores_order_and_few_incidents_give_few_references():
    found = retrieval.retrieve(*tables(["a b"], ["a x", "a y", "b z"]), 10)
    assert found["incident_id"].tolist() == ["h0", "h1", "h2"]
    assert retrieval.retrieve(*tables(["a b"], ["a x"]), 0).empty


@pytest.mark.parametrize("order", ["similarity", "random"])
@given(days=st.lists(st.integers(0, 20), min_size=2, max_size=8), k=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_reference_is_always_strictly_older(order, days, k, seed):
    cases, history = tables(["a b c", "a d"], [f"a w{i}" for i in range(len(days))])
    history["created"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D")
    older = sum(day < 10 for day in days)
    if not older:
        with pytest.raises(ValueError, match="no case has an earlier incident"):
            retrieval.retrieve(cases, history, k)
        return
    found = retrieval.retrieve(cases, history, k, order=order, rng=np.random.default_rng(seed))
    retrieval.check_references(found, cases, history)
    assert found.groupby("case_id").size().tolist() == [min(k, older)] * 2
    assert found["similarity"].between(-1, 1 + 1e-9).all()


def test_the_case_itself_is_left_out_and_counted():
    cases, history = tables(["A  b c", "d e"], ["a b C", "a b x", "d e"])
    history.loc[1, "incident_id"] = "c0"
    found = retrieval.retrieve(cases, history, 3)
    assert found[found["case_id"] == "c0"]["incident_id"].tolist() == ["h2"]
    allowed = retrieval.allowed(cases, history)
    assert (allowed.not_older, allowed.same) == (0, 3)


def test_the_second_look_finds_what_a_broken_guard_lets_through():
    cases, history = tables(["a b c"], ["a b c", "a b"])
    itself = pd.DataFrame({"case_id": ["c0"], "rank": [1], "incident_id": ["h0"], "similarity": [1.0]})
    with pytest.raises(ValueError, match="references row 0: incident 'h0' is case 'c0' itself"):
        retrieval.check_references(itself, cases, history)
    history["created"] = cases["created"][0]
    with pytest.raises(ValueError, match=r"references row 0: incident 'h1' of .* is not older than case 'c0'"):
        retrieval.check_references(itself.assign(incident_id="h1"), cases, history)


def test_bad_stores_and_vectors_are_named():
    cases, history = tables(["a b"], ["a x", "a y"])
    with pytest.raises(ValueError, match="store of earlier incidents is empty"):
        retrieval.retrieve(cases, history.head(0), 2)
    with pytest.raises(ValueError, match="k is a number of references, 0 or more; got -1"):
        retrieval.retrieve(cases, history, -1)
    with pytest.raises(ValueError, match="encoder='given' needs the column 'embedding' in history"):
        retrieval.retrieve(cases, history, 2, "given")
    history["embedding"] = [[1.0, 0.0], [0.5, float("nan")]]
    cases["embedding"] = [[1.0, 0.0]]
    with pytest.raises(ValueError, match="history row 1, column 'embedding': not a number at place 1"):
        retrieval.retrieve(cases, history, 2, "given")
    history["embedding"] = [[1.0, 0.0], [0.5, 0.5]]
    cases["embedding"] = [[1.0, 0.0, 0.0]]
    said = "cases row 0, column 'embedding': 2 numbers as in history row 0 are needed; got 3"
    with pytest.raises(ValueError, match=said):
        retrieval.retrieve(cases, history, 2, "given")


def test_given_vectors_and_words_weighted_by_rarity():
    cases, history = tables(["a b"], ["b q", "a q"])
    history["embedding"], cases["embedding"] = [[1.0, 0.0], [-1.0, 1.0]], [[0.0, 2.0]]
    found = retrieval.retrieve(cases, history, 2, "given")
    assert found["incident_id"].tolist() == ["h1", "h0"]
    np.testing.assert_allclose(found["similarity"], [1 / np.sqrt(2), 0])
    rare = retrieval.retrieve(*tables(["common rare"], ["common q", "common z", "rare v"]), 1, "tfidf")
    assert rare["incident_id"].tolist() == ["h2"]
