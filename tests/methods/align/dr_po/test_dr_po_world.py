"""The planted truth is what it says: chains, rewards, references, pairs, and a start whose steps are right so often."""

import numpy as np
import pytest

from workbench.kernels import score
from workbench.methods.align.dr_po.world import HELD_OUT, SYMBOLS, LateRewardChain, symbols, text

WORLD = LateRewardChain(sft_steps=5, n_pairs=40, test_draws=20, length=6, width=16)


def test_the_rule_by_hand():
    """a = 3, 5, 1: y0 = 3; y1 = 3+5+3 = 11; y2 = 11+1 = 0; y3 = 0+3+0 = 3; y4 = 3+5 = 8; y5 = 8+1+8 = 5 (mod 12)."""
    assert WORLD.chains(np.array([[3, 5, 1]])).tolist() == [[3, 11, 0, 3, 8, 5]]
    assert text(np.array([3, 11])) == "s3 s11"


def test_nothing_is_earned_before_all_is_right():
    right = "s3 s11 s0 s3 s8 s5"
    answers = [right, right[:-1] + "6", right + " s1", "s3 s11 s0 s3 s8", "", "s3 s0 s0 s3 s8 s5"]
    prompts = ["s3 s5 s1"] * len(answers)
    assert WORLD.score(prompts, answers).tolist() == [1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(WORLD.leading_run(prompts, answers), [1, 5 / 6, 1, 5 / 6, 0, 1 / 6])


def test_noisy_chains_go_on_from_their_own_symbols():
    prompts = np.random.default_rng(0).integers(SYMBOLS, size=(4_000, 3))
    walks = WORLD.chains(prompts, np.random.default_rng(1), noise=0.3)
    assert np.all(walks[:, 0] == prompts[:, 0])
    follows = (walks[:, 1] + prompts[:, 2]) % SYMBOLS == walks[:, 2]
    assert follows.mean() == pytest.approx(0.7 + 0.3 / SYMBOLS, abs=0.03)


def test_prompts_are_split_and_parted():
    train, test = WORLD.prompts("train", 0), WORLD.prompts("test", 0)
    assert len(test) == HELD_OUT
    assert len(set(train) | set(test)) == SYMBOLS**3
    parts = [set(WORLD.prompts("train", 0, part, 3)) for part in range(3)]
    assert not parts[0] & parts[1]
    assert set.union(*parts) == set(train)
    assert train != WORLD.prompts("train", 1)


def test_references_are_right_and_patchy_ones_in_the_outer_thirds_only():
    rows, patchy = WORLD.demonstrations("train", 2), WORLD.patchy_demonstrations("train", 2)
    prompts = [row["prompt"] for row in rows]
    assert WORLD.score(prompts, [row["completion"] for row in rows]).min() == 1
    assert [row["prompt"] for row in patchy] == prompts
    right, changed = (np.array([row["completion"].split() for row in one]) for one in (rows, patchy))
    same = right == changed
    assert same[:, [0, 1, 4, 5]].all()
    assert same[:, 2:4].mean() == pytest.approx(1 / SYMBOLS, abs=0.03)


def test_pairs_prefer_the_longer_run():
    for split, n in (("train", 40), ("test", 300)):
        rows = WORLD.preferences(split, 0)
        assert len(rows) <= n
        prompts = [row["prompt"] for row in rows]
        runs = [WORLD.leading_run(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected")]
        assert np.all(runs[0] > runs[1])
        assert set(prompts) <= set(WORLD.prompts(split, 0))


def test_a_foreign_prompt_is_refused():
    with pytest.raises(ValueError, match=r"three of s0\.\.s11; got 's1 x'"):
        symbols(["s1 x"])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_step_of_the_start_is_right_as_often_as_planted(runs_root):
    world = LateRewardChain(test_draws=300)
    policy = world.start(7)
    groups = [policy.group(row["prompt"], [row["completion"]]) for row in world.demonstrations("test", 7)[:100]]
    right = score(policy, groups).token_logps[:, 0, 1:-1].exp().mean()
    assert float(right) == pytest.approx(1 - world.noise + world.noise / SYMBOLS, abs=0.03)
    numbers = world.evaluate(policy, 7)
    assert numbers["quality"] < 0.02
    assert 0.1 < numbers["leading_run"] < 0.3
