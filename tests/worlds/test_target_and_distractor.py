"""The planted truth is what it says: answers and distractors by hand, ladders, splits, and a start that has the
habit."""

import numpy as np
import pytest

from workbench.worlds.target_and_distractor import TargetAndDistractor

WORLD = TargetAndDistractor(start_steps=10, n_rows=50, draws=2, width=16)
VARIED = TargetAndDistractor(shortest=4, longest=8, start_steps=10, width=16)


def test_the_rule_by_hand():
    """a = 3, b = 4: 3 + 5 i + 12 mod 24 = 20, 1, 6, 11, 16, 21; distractors 5 t + 7 mod 24."""
    assert WORLD.right(["a3 b4"]).tolist() == [[20, 1, 6, 11, 16, 21]]
    answers = ["t20 t1 t6 t11 t16 t21", "t20 t1 t6 t14 t15 t16", "", "t20 t1 t6", "t20 t1 t6 t11 t16 t21 t0 t0"]
    np.testing.assert_allclose(WORLD.share_right(["a3 b4"] * 5, answers), [1, 0.5, 0, 0.5, 0.75])
    np.testing.assert_allclose(WORLD.score(["a3 b4"], answers[1:2]), [0.0])


def test_quality_decides_between_target_and_distractor():
    rng = np.random.default_rng(0)
    prompts = WORLD.prompts("train", 0)
    right = WORLD.respond(prompts, np.ones(len(prompts)), rng)
    np.testing.assert_allclose(WORLD.score(prompts, right), 2.0)
    worst = WORLD.respond(["a3 b4"], np.zeros(1), rng)
    assert worst == ["t11 t12 t13 t14 t15 t16"]
    share = WORLD.share_right(prompts * 20, WORLD.corpus(prompts * 20, rng))
    assert share.mean() == pytest.approx(0.3, abs=0.03)


def test_splits_share_no_prompt():
    train, test = WORLD.prompts("train", 0), WORLD.prompts("test", 0)
    assert (len(train), len(test), len(WORLD.prompts("validation", 0))) == (108, 36, 12)
    assert not set(train) & set(test)
    assert set(WORLD.prompts("validation", 0)) < set(train)
    assert sorted(WORLD.prompts("train", 0, 0, 2) + WORLD.prompts("train", 0, 1, 2)) == sorted(train)


def test_lists_as_drawn_and_ladders_of_every_rung():
    rows = WORLD.rankings("train", 3)
    assert len(rows) == 50
    assert rows == WORLD.rankings("train", 3)
    assert rows != WORLD.rankings("train", 4)
    for row in rows:
        assert row["prompt"] in WORLD.prompts("train", 0)
        np.testing.assert_allclose(row["scores"], WORLD.score([row["prompt"]] * 5, row["responses"]))
    assert any(row["scores"] != sorted(row["scores"], reverse=True) for row in rows)
    ladders = WORLD.rankings("test", 3)
    assert len(ladders) == 36
    assert all(np.allclose(row["scores"], 4 * (np.arange(7) / 6 - 0.5)) for row in ladders)


def test_answers_of_different_lengths():
    lengths = {len(text.split()) for text in VARIED.corpus(VARIED.prompts("train", 0), np.random.default_rng(1))}
    assert lengths == {4, 5, 6, 7, 8}
    assert VARIED.right(["a1 b1"]).shape == (1, 8)
    assert {len(text.split()) for row in VARIED.rankings("test", 0) for text in row["responses"]} == {4, 5, 6, 7, 8}


def test_starts_are_cached_and_measured(runs_root):
    numbers = WORLD.evaluate(WORLD.start(0), 0)
    assert set(numbers) == {"quality", "greedy", "bleu_words", "bleu_characters", "bleu_right"}
    assert -2 <= numbers["quality"] <= 2
    (folder,) = (runs_root / ".cache").glob("target-start-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert WORLD.evaluate(WORLD.start(0), 0) == numbers
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
