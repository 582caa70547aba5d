"""Ranked lists: sorted, freed of duplicates, counted; bad input named; official rows, pairs, real lists read."""

import logging

import pytest

from workbench import data
from workbench.methods.align.pro import lists
from workbench.methods.align.pro.lists import as_lists, cleaned


def row(responses, scores, **more):
    return {"prompt": "Which river is longest?", "responses": responses, "scores": scores, **more}


def test_lists_are_sorted_with_their_sources_and_counted():
    (found,), counts = as_lists([row(["b", "a", "c"], [0.0, 2.0, -1.0], source=["x", "y", "z"])])
    assert (found["responses"], found["scores"], found["source"]) == (
        ["a", "b", "c"],
        [2.0, 0.0, -1.0],
        ["y", "x", "z"],
    )
    assert counts == {"sorted": 1}
    assert as_lists([row(["a", "b"], [1.0, 0.0])])[1] == {}


def test_the_first_n_are_taken_before_sorting():
    (found,), _ = as_lists([row(["b", "a", "c"], [0.0, 2.0, 9.0])], n=2)
    assert found["responses"] == ["a", "b"]


def test_duplicates_keep_their_highest_score_and_a_single_one_is_skipped():
    found, counts = as_lists([row(["a", "b", "a"], [0.0, 1.0, 2.0]), row(["a", "a"], [1.0, 0.0])])
    assert [(r["responses"], r["scores"]) for r in found] == [(["a", "b"], [2.0, 1.0])]
    assert counts["duplicates dropped"] == 2
    assert counts["one response left (skipped)"] == 1


def test_equal_scores_and_wide_gaps_warn_once(caplog, monkeypatch):
    monkeypatch.setattr(lists, "_warned", False)
    with caplog.at_level(logging.WARNING):
        found, counts = as_lists([row(["a", "b"], [1.0, 1.0])] * 2 + [row(["a", "b"], [30.0, 1.0])])
    assert len(found) == 3
    assert (counts["all scores equal"], counts["gap above 20"]) == (2, 1)
    assert len(caplog.records) == 2
    assert "2 of 3 lists have equal scores throughout" in caplog.text
    assert "standardise the scores" in caplog.text
    as_lists([row(["a", "b"], [1.0, 1.0])])
    assert len(caplog.records) == 2  # the next arm reads the same lists


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row(["a"], [1.0])], {}, "row 0, column 'responses': a ranking needs at least 2 responses, this one has 1"),
        ([row(["a", "b"], [1.0])], {}, "row 0: 2 responses but 1 scores"),
        ([row(["a", "b"], [1.0, float("nan")])], {}, "row 0, column 'scores': finite numbers are needed; got nan"),
        ([row(["a", "b"], [1.0, float("inf")])], {}, "finite numbers are needed; got inf"),
        ([row(["a", " "], [1.0, 0.0])], {}, "row 0, column 'responses': response 1 is empty"),
        ([row(["a", "b"], [0.0, 1.0])], {"strict": True}, "row 0, column 'scores': .* not in falling order"),
        (
            [{"prefix": [["Which?"]], "suffix": ["a", "b"], "reward": [1.0, 0.0]}],
            {},
            "row 0, column 'prefix': every turn",
        ),
    ],
)
def test_bad_input_is_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        as_lists(rows, **options)


def test_official_rows():
    turns = ["<|prompter|>Which river is longest?", "<|assistant|>"]
    official = {"prefix": [turns, turns], "suffix": ["By most measures the Nile.", "No idea."], "reward": [1.7, -0.9]}
    official |= {"sft_index": 0}
    (found,), counts = as_lists([official])
    assert found["prompt"] == [{"role": "user", "content": "Which river is longest?"}]
    assert (found["responses"], found["scores"]) == (official["suffix"], official["reward"])
    assert not counts


def test_dialogues_of_different_lengths_are_left_out(caplog):
    def chat(*texts):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    rows = [
        {"chosen": chat("q", "good"), "rejected": chat("q", "bad")},
        {"chosen": chat("q", "a", "r", "b"), "rejected": chat("q", "c")},
    ]
    found, _ = as_lists(rows)
    assert [r["responses"] for r in found] == [["good", "bad"]]
    assert found[0]["prompt"] == chat("q")
    assert "1 pairs have dialogues of different lengths" in caplog.text


def test_generations_end_at_the_next_speaker():
    assert cleaned(" The Nile.\n\nHuman: And then?") == "The Nile."
    assert cleaned("<|prompter|>x") == ""
    assert cleaned("A human: no.") == "A human: no."


def test_real_solutions_and_real_pairs(shared):
    solutions, counts = as_lists(data.load(str(shared / "data/gsm8k/example_model_solutions.jsonl")))
    assert all(2 <= len(r["responses"]) <= 4 and r["scores"] == sorted(r["scores"], reverse=True) for r in solutions)
    assert counts["all scores equal"] > 0
    assert {"6b_finetuning", "175b_verification"} <= set(solutions[0]["source"])
    pairs, _ = as_lists(data.load(str(shared / "data/alpaca_eval/pairs.jsonl.gz"))[:50])
    assert {len(r["responses"]) for r in pairs} == {2}
