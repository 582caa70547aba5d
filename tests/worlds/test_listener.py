"""The listener: phrases without a word that gives them away, hearing by hand, pairs of unequal quality, and a deaf
start."""

from collections import Counter

import numpy as np
import pytest

from workbench.worlds.target_and_distractor import Listener

WORLD = Listener(start_steps=4, width=16, draws=2, n_pairs=50)


def test_no_word_gives_the_polarity_away():
    said = WORLD.follow_ups["listener"]
    counts = [Counter(" ".join(said[p]).split()) for p in ("positive", "negative")]
    assert counts[0] == counts[1]
    assert len(counts[0]) == 12
    assert not set(said["positive"]) & set(said["negative"])
    assert all(len(phrase.split()) == 3 for phrases in said.values() for phrase in phrases)


def test_the_rule_by_hand():
    """a = 2, b = 5: 6 + 25 + 3 i mod 16 = 2, 5, 8, 11."""
    assert WORLD.right(["a2 b5"]).tolist() == [[2, 5, 8, 11]]
    assert WORLD.share_right(["a2 b5"], ["t2 t5 t0 t0"])[0] == 0.5
    assert len(WORLD.prompts("train", 0)) == 6 * len(WORLD.prompts("test", 0)) == 216


def test_what_is_heard_follows_the_share_of_right_symbols():
    """k = 12 at share 1: sigma(7.2) = 0.9993; at 0: sigma(-4.8) = 0.008."""
    rng, said = np.random.default_rng(0), WORLD.follow_ups["listener"]
    for response, expected in (("t2 t5 t8 t11", 0.999), ("t1 t1 t1 t1", 0.008)):
        heard = WORLD.hear(["a2 b5"] * 2_000, [response] * 2_000, 12.0, rng)
        assert np.mean([phrase in said["positive"] for phrase in heard]) == pytest.approx(expected, abs=0.01)


def test_shuffled_feedback_is_independent_of_the_response():
    rng = np.random.default_rng(1)
    said = WORLD.follow_ups["listener"]["positive"]
    for shuffled, low, high in ((False, 0.6, 1.0), (True, -0.1, 0.1)):
        rows = WORLD.dialogues(2_000, 12.0, rng, shuffled=shuffled)
        share = WORLD.share_right([r["prompt"] for r in rows], [r["response"] for r in rows])
        assert low < np.corrcoef(share, [r["feedback"] in said for r in rows])[0, 1] < high
    assert len(Listener(feedback_steps=2).feedback(0)) == 128


def test_pairs_are_of_unequal_quality():
    rows = WORLD.preferences("test", 3)
    assert len(rows) == 50
    assert rows == WORLD.preferences("test", 3)
    prompts = [row["prompt"] for row in rows]
    assert (
        WORLD.score(prompts, [r["chosen"] for r in rows]) > WORLD.score(prompts, [r["rejected"] for r in rows])
    ).all()


def test_both_starts_differ_and_are_cached(runs_root):
    start, deaf = WORLD.start(0), WORLD.deaf(0)
    assert any((a != b).any() for a, b in zip(start.model.parameters(), deaf.model.parameters(), strict=True))
    assert set(WORLD.evaluate(start, 0)) == {"quality", "greedy"}
    assert len(list((runs_root / ".cache").glob("target-*"))) == 2
    texts = WORLD._texts(start, 0)
    said = start.tokenizer.decode(texts[0].responses_ids[0])
    assert said.count("</s>") == 2
    assert "user" in said
