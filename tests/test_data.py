"""Loading, column names, and what bad input gets: every message names the row, the column and the way out."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import data

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import pandas as pd
    from datasets import Dataset

    lines = "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame(ROWS).to_parquet(tmp_path / "x.parquet")
    pd.DataFrame(ROWS).to_csv(tmp_path / "x.csv", index=False)
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    pd.DataFrame(ROWS).to_parquet(tmp_path / "folder" / "train.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.parquet", "x.csv", "saved", "folder"):
        assert data.load(str(tmp_path / name)) == ROWS, name


@pytest.mark.parametrize(
    ("name", "message"),
    [("/nowhere/x.jsonl", "no file or folder"), ("no-such-owner/no-such-set", "cannot load a data set from")],
)
def test_unknown_source(name, message, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=message):
        data.load(name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", }\n',
            r"x\.jsonl, line 2: broken JSON .* mend or remove the line",
        ),
        ("x.txt", "a", r"unknown kind of file; known: \.jsonl"),
        ("x.jsonl", "\n", "holds no rows"),
    ],
)
def test_a_broken_line_an_unknown_kind_and_an_empty_file_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / name))


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
RATED = {"prompt": "q", "completion": "a", "score": 1.0}
RANKED = {"prompt": "q", "responses": ["a"], "scores": [1.0]}
MISSING = "row 1: column 'rejected' is missing; preference rows need prompt, chosen, rejected; found prompt, chosen"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("preference", {"prompt": "q", "chosen": "a"}, MISSING),
        ("preference", {**PAIR, "prompt": "  "}, "row 1, column 'prompt': it is empty"),
        ("preference", {**PAIR, "chosen": ""}, "row 1, column 'chosen': it is empty; only generated"),
        ("preference", {**PAIR, "rejected": 3}, "row 1, column 'rejected': text is needed; got int"),
        (
            "preference",
            {**PAIR, "p_chosen": 1.2},
            r"row 1, column 'p_chosen': a probability in \[0, 1\] is needed; got 1.2",
        ),
        ("rating", {**RATED, "score": float("nan")}, "row 1, column 'score': finite numbers are needed; got nan"),
        ("ranking", {**RANKED, "scores": [float("inf")]}, "row 1, column 'scores': finite"),
        ("ranking", {**RANKED, "scores": [1, 2]}, "row 1: 1 responses but 2 scores"),
    ],
)
def test_bad_rows(kind, row, message):
    good = {"preference": PAIR, "rating": RATED, "ranking": RANKED}[kind]
    with pytest.raises(ValueError, match=message):
        data.check([good, row], kind)


def test_empty_rejected_and_identical_pairs_are_legal():
    rows = data.check([{**PAIR, "rejected": ""}, {**PAIR, "rejected": "good"}], "preference")
    assert data.identical_share(rows) == 0.5


def test_spin_columns_and_chats():
    real = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "human"}]
    generated = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
    (row,) = data.as_preferences([{"real": real, "generated": generated}])
    assert (row["prompt"], row["chosen"], row["rejected"]) == (real[:1], "human", "")
    (row,) = data.as_demonstrations([{"messages": [*real, {"role": "user", "content": "more"}]}])
    assert (row["prompt"], row["completion"]) == (real[:1], "human")
    with pytest.raises(ValueError, match="row 0, column 'messages': a chat must begin with a user turn"):
        data.as_demonstrations([{"messages": real[1:]}])


def test_judged_pairs_follow_the_judge():
    judged = {"prompt": "q", "response_a": "A", "response_b": "B"}
    rows = data.as_preferences([{**judged, "p_b_preferred": p} for p in (0.9, 0.2, 0.5)])
    assert [(r["chosen"], r["rejected"], r["p_chosen"]) for r in rows] == [("B", "A", 0.9), ("A", "B", 0.8)]
    with pytest.raises(ValueError, match="row 0, column 'p_b_preferred'"):
        data.as_preferences([{**judged, "p_b_preferred": float("nan")}])


@given(st.lists(st.text(min_size=1, max_size=3), min_size=3, max_size=30), st.data())
def test_split_never_shares_a_prompt_and_ignores_order(prompts, draw):
    rows = [{"prompt": p, "n": i} for i, p in enumerate(prompts)]
    size = draw.draw(st.integers(1, len(rows) - 1))
    train, test = data.held_out(rows, test_size=size)
    assert {r["prompt"] for r in train}.isdisjoint(r["prompt"] for r in test)
    assert sorted(r["n"] for r in train + test) == list(range(len(rows)))
    assert len(test) >= size
    again = data.held_out(rows[::-1], test_size=size)[1]
    assert {r["n"] for r in again} == {r["n"] for r in test}


def test_real_preferences_and_demonstrations(shared):
    pairs = data.as_preferences(data.load(str(shared / "data/alpaca_eval/pairs.jsonl.gz")))
    assert 4_000 < len(pairs) <= 4_830
    assert all(0.5 < row["p_chosen"] <= 1 for row in pairs)
    problems = data.as_demonstrations(data.load(str(shared / "data/gsm8k/train.jsonl")))
    assert len(problems) == 7_473
    assert problems[0]["completion"].endswith("#### 72")


def test_real_rankings_have_the_known_order(shared):
    """Matches of right against wrong solutions order four models by their accuracy; Elo knows the weaker of a size."""
    import numpy as np

    from workbench.ranking import bradley_terry, elo

    rows = data.as_rankings(data.load(str(shared / "data/gsm8k/example_model_solutions.jsonl")))
    assert len(rows) == 1_319
    names, matches = data.ranking_matches(rows)
    accuracy = np.array([np.mean([row["scores"][row["names"].index(name)] for row in rows]) for name in names])
    ratings = bradley_terry(np.array(matches), len(names))
    assert np.argsort(ratings.scores).tolist() == np.argsort(accuracy).tolist()
    assert ratings.lower[np.argmax(accuracy)] > ratings.upper[np.argmin(accuracy)]
    assert len(matches) == 6 * 1_319
    by_elo = dict(zip(names, elo(matches, len(names), intervals="none").scores, strict=True))
    assert all(by_elo[f"{size}_verification"] > by_elo[f"{size}_finetuning"] for size in ("6b", "175b"))
