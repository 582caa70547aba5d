"""The split: parts by hand, checks that refuse a meaningless one, margins that no pair's own label has touched."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from workbench.methods.align.mpo import margins
from workbench.methods.align.mpo.margins import check_reward_model, out_of_fold_margins, split_pairs, split_table
from workbench.training.loop import TrainConfig

MARGIN = np.array([2.0, -0.1, 0.3, -3.0, 1.0, 0.0])


def test_parts_by_hand():
    split = split_pairs(MARGIN, gamma=0.5)
    assert split.part.tolist() == ["easy", "hard", "hard", "conflict", "easy", "hard"]
    assert split.pairs("all").all()
    assert split.pairs("easy").tolist() == [True, False, False, False, True, False]
    assert split.prompts("hard").tolist() == [False, True, True, True, False, True]  # conflict joins by its prompt
    assert not (split.pairs("easy") & split.prompts("hard")).any()
    assert split_pairs(MARGIN, gamma=0.5, conflict="abs").part[3] == "easy"


def test_the_median_leaves_half_on_either_side_and_a_random_split_has_the_same_sizes():
    split = split_pairs(np.random.default_rng(0).normal(size=1_001))
    assert np.mean(split.part == "hard") == pytest.approx(0.5, abs=0.01)
    assert split.gamma == pytest.approx(np.median(np.abs(split.margin)))
    one, other = split_pairs(MARGIN, gamma=0.5), split_pairs(MARGIN, gamma=0.5, shuffle=3)
    assert sorted(one.part) == sorted(other.part)
    assert one.part.tolist() != other.part.tolist()


@pytest.mark.parametrize(
    ("margin", "options", "message"),
    [
        (np.array([1.0, np.nan]), {}, r"margins of pairs \[1\] are NaN"),
        (np.array([1.0, 2.0]), {"gamma": 0.5}, "gamma=0.5 leaves no hard pair among 2"),
        (np.array([1.0, -2.0]), {"gamma": 5.0}, "gamma=5 leaves no easy pair among 2"),
    ],
)
def test_bad_splits(margin, options, message):
    with pytest.raises(ValueError, match=message):
        split_pairs(margin, **options)


def test_a_tiny_part_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        split_pairs(np.array([9.0, *[0.1] * 99]), gamma=1.0)
    assert "leaves only 1.0 % of the pairs easy" in caplog.text


def model(*scores):
    """A reward model of which only the scores matter."""
    return SimpleNamespace(score=lambda prompts, responses: np.array(scores))


def test_a_reward_model_that_says_nothing_is_refused(caplog):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    with pytest.raises(ValueError, match="reward model did not learn: the rewards of 2 responses are all 0"):
        check_reward_model(model(0.0, 0.0), 0.9, rows, strict=True)
    with pytest.raises(ValueError, match=r"accuracy on held-out pairs is 0.45, below a coin's"):
        check_reward_model(model(0.0, 1.0), 0.45, rows, strict=True)
    check_reward_model(model(0.0, 1.0), 0.45, rows, strict=False)  # labels shuffled on purpose
    with caplog.at_level(logging.WARNING):
        check_reward_model(model(0.0, 1.0), 0.55, rows, strict=True)
    assert "the split is not meaningful" in caplog.text


def test_each_pair_is_scored_by_a_model_that_never_saw_it(runs_root, monkeypatch):
    seen = []

    def record(start, rows, *arguments, **options):
        mine = {row["prompt"] for row in rows}
        seen.append(mine)
        # 1 where the pair was trained on
        return SimpleNamespace(score=lambda prompts, _: np.array([float(prompt in mine) for prompt in prompts])), 0.0

    monkeypatch.setattr(margins, "train_reward_model", record)
    monkeypatch.setattr(margins, "model_key", lambda start: "start")
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(10)]
    found = out_of_fold_margins(None, rows, TrainConfig(), folds=5, seed=0, max_length=0)
    assert len(seen) == 5
    assert all(len(prompts) == 8 for prompts in seen)
    assert found.tolist() == [0.0] * 10


def test_table_tells_wrong_labels_where_the_truth_is_known():
    rows = [{"prompt": "p", "chosen": "bb", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": "bb"}]
    split = split_pairs(np.array([1.0, 0.1]), gamma=0.5)
    table = split_table(rows, split, lambda prompts, texts: np.array([len(text) for text in texts]))
    assert table.true_gap.tolist() == [1, -1]
    assert "true_gap" not in split_table(rows, split)
