"""The planted truth is what it says: answers and distractors by hand, ladders, splits, and a start that has the habit;
and the listener: phrases without a word that gives them away, pairs of unequal quality, and a deaf start."""

from collections import Counter

import numpy as np
import pytest

from workbench.worlds.target_and_distractor import Listener, TargetAndDistractor

WORLD = TargetAndDistractor(start_steps=10, n_rows=50, draws=2, width=16)
HEARD = Listener(start_steps=4, width=16, draws=2, n_pairs=50)
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


# ---------------------------------------------------------------------------------------------------------- listener
def test_no_word_gives_the_polarity_away():
    said = HEARD.follow_ups["listener"]
    counts = [Counter(" ".join(said[p]).split()) for p in ("positive", "negative")]
    assert counts[0] == counts[1]
    assert len(counts[0]) == 12
    assert not set(said["positive"]) & set(said["negative"])
    assert all(len(phrase.split()) == 3 for phrases in said.values() for phrase in phrases)


def test_the_rule_of_the_listener_by_hand():
    """a = 2, b = 5: 6 + 25 + 3 i mod 16 = 2, 5, 8, 11."""
    assert HEARD.right(["a2 b5"]).tolist() == [[2, 5, 8, 11]]
    assert HEARD.share_right(["a2 b5"], ["t2 t5 t0 t0"])[0] == 0.5
    assert len(HEARD.prompts("train", 0)) == 6 * len(HEARD.prompts("test", 0)) == 216


def test_what_is_heard_follows_the_share_of_right_symbols():
    """k = 12 at share 1: sigma(7.2) = 0.9993; at 0: sigma(-4.8) = 0.008."""
    rng, said = np.random.default_rng(0), HEARD.follow_ups["listener"]
    for response, expected in (("t2 t5 t8 t11", 0.999), ("t1 t1 t1 t1", 0.008)):
        heard = HEARD.hear(["a2 b5"] * 2_000, [response] * 2_000, 12.0, rng)
        assert np.mean([phrase in said["positive"] for phrase in heard]) == pytest.approx(expected, abs=0.01)


def test_shuffled_feedback_is_independent_of_the_response():
    rng = np.random.default_rng(1)
    said = HEARD.follow_ups["listener"]["positive"]
    for shuffled, low, high in ((False, 0.6, 1.0), (True, -0.1, 0.1)):
        rows = HEARD.dialogues(2_000, 12.0, rng, shuffled=shuffled)
        share = HEARD.share_right([r["prompt"] for r in rows], [r["response"] for r in rows])
        assert low < np.corrcoef(share, [r["feedback"] in said for r in rows])[0, 1] < high
    assert len(Listener(feedback_steps=2).feedback(0)) == 128


def test_pairs_are_of_unequal_quality():
    rows = HEARD.preferences("test", 3)
    assert len(rows) == 50
    assert rows == HEARD.preferences("test", 3)
    prompts = [row["prompt"] for row in rows]
    better, worse = (HEARD.score(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    assert (better > worse).all()


def test_both_starts_differ_and_are_cached(runs_root):
    start, deaf = HEARD.start(0), HEARD.deaf(0)
    assert any((a != b).any() for a, b in zip(start.model.parameters(), deaf.model.parameters(), strict=True))
    assert set(HEARD.evaluate(start, 0)) == {"quality", "greedy"}
    assert len(list((runs_root / ".cache").glob("target-*"))) == 2
    texts = HEARD._texts(start, 0)
    said = start.tokenizer.decode(texts[0].responses_ids[0])
    assert said.count("</s>") == 2
    assert "user" in said
