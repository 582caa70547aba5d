"""Real solutions of four models, marked right or wrong, as matches: ranked, they must come in order of accuracy."""

import numpy as np
import pytest

from workbench import data, ranking


@pytest.fixture(scope="module")
def rows(shared):
    return data.as_rankings(data.load(str(shared / "data" / "gsm8k" / "example_model_solutions.jsonl")))


def test_bradley_terry_orders_four_real_models_by_accuracy(rows):
    names, matches = data.ranking_matches(rows)
    accuracy = [np.mean([row["scores"][row["names"].index(name)] for row in rows]) for name in names]
    ratings = ranking.bradley_terry(matches, len(names))
    assert len(matches) == 6 * len(rows)
    assert [names[i] for i in np.argsort(ratings.scores)] == [names[i] for i in np.argsort(accuracy)]
    strongest, weakest = np.argmax(accuracy), np.argmin(accuracy)
    assert ratings.lower[strongest] > ratings.upper[weakest]


def test_the_weaker_model_of_the_same_size_loses_more_often(rows):
    """Fine-tuning with a verifier beats fine-tuning alone at both sizes: known truth, read off the matches alone."""
    names, matches = data.ranking_matches(rows)
    ratings = dict(zip(names, ranking.elo(matches, len(names), intervals="none").scores, strict=True))
    for size in ("6b", "175b"):
        assert ratings[f"{size}_verification"] > ratings[f"{size}_finetuning"]
