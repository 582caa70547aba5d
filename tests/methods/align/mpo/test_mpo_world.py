"""The planted truth is what it says: rewards by hand, and labels that are coin flips near ties only."""

import numpy as np
import pytest

from workbench.methods.align.mpo.world import HELD_OUT, WORDS, NoisyGap

WORLD = NoisyGap(n_pairs=300, sft_steps=10, test_draws=20, width=16)


def test_rewards_by_hand():
    answers = ["s1 s2 s3 s4 s5 s6", "s1 s1 s3 s4 s5 s6", "s1 s2 s3", "", "s7 s7 s7 s7 s7 s7"]
    raw = WORLD.raw(["s1 s2 s3"] * 5, answers)
    np.testing.assert_allclose(raw, [4, 4 / 3 - 1 / 6 + 2, 2, 0, 2 - 5 / 6])
    mean, deviation = WORLD.scale
    np.testing.assert_allclose(WORLD.score(["s1 s2 s3"], answers[:1]), (4 - mean) / deviation)


def test_rewards_have_unit_deviation_over_what_the_start_imitates():
    rows = WORLD.imitated(WORLD.prompts("train", 0) * 5, np.random.default_rng(5))
    rewards = WORLD.score([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert rewards.mean() == pytest.approx(0, abs=0.06)
    assert rewards.std() == pytest.approx(1, abs=0.05)


def test_prompts_are_split_and_parted():
    train, test = WORLD.prompts("train", 0), WORLD.prompts("test", 0)
    assert len(test) == HELD_OUT
    assert len(set(train) | set(test)) == 12 * 11 * 10
    assert all(len(set(prompt.split())) == 3 for prompt in train)
    assert not set(WORLD.prompts("train", 0, 0, 2)) & set(WORLD.prompts("train", 0, 1, 2))


def test_labels_are_noisy_near_ties_and_nearly_clean_far_out(runs_root):
    world = NoisyGap(n_pairs=3_000, sft_steps=10, test_draws=20, width=16)
    rows = world.preferences("train", 0)
    assert all(row["chosen"] != row["rejected"] and row["chosen"] and row["rejected"] for row in rows)
    prompts = [row["prompt"] for row in rows]
    gap = world.score(prompts, [r["chosen"] for r in rows]) - world.score(prompts, [r["rejected"] for r in rows])
    size = np.abs(gap)
    near, far = (gap[(size > 0) & (size < 0.3)] < 0).mean(), (gap[size > 1.5] < 0).mean()
    assert near > 0.3
    assert far < 0.08
    assert set(" ".join(prompts).split()) <= set(WORDS)
    assert world.preferences("train", 0) == rows
    assert world.preferences("test", 0) != rows
    numbers = world.evaluate(world.start(0), 0)
    assert set(numbers) == {"quality", "greedy", "win_rate"}
    assert 0.1 < numbers["win_rate"] < 0.9
