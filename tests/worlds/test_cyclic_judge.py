"""The planted truth is what it says: classes, judge, equilibrium, teacher, tables, leak."""

import numpy as np
import pytest

from workbench.stats import games
from workbench.training.reference import reference_logps
from workbench.worlds.cyclic_judge import OUTSIDE, PROMPTS, QUALITY, RESPONSES, CyclicJudge

WORLD = CyclicJudge(start_steps=10)


def prefer(prompt, a, b):
    return WORLD.prefer([prompt], [a], [b])[0]


def test_judge_by_hand():
    """Prompt p1: class = (sum + 1) mod 3. s0 s1 s2 is class 1, s0 s1 s3 class 2, s0 s1 s4 class 0; all of quality 1."""
    assert prefer("p1 p5", "s0 s1 s2", "s0 s1 s3") == pytest.approx(0.85)  # each class beats the next one
    assert prefer("p1 p5", "s0 s1 s3", "s0 s1 s4") == pytest.approx(0.85)
    assert prefer("p1 p5", "s0 s1 s4", "s0 s1 s2") == pytest.approx(0.85)  # a circle
    # both class 1, quality 1 and 1/3
    assert prefer("p1 p5", "s0 s1 s2", "s1 s1 s1") == pytest.approx(0.5 + 0.35 * 0 + 0.3 * 2 / 3)
    assert prefer("p1 p5", "s0 s1 s2", "s1 s1 s2") == pytest.approx(0.5 + 0.35 + 0.1)  # class 1 over 2 and more quality
    # class 0 over 1 and much more quality: clipped
    assert prefer("p1 p5", "s0 s1 s4", "s1 s1 s1") == pytest.approx(0.98)


def test_strings_outside_lose_to_all_and_tie_with_their_like():
    for outside in ("", "s0 s1", "s0 s1 s2 s3", "p1 s0 s1", "<script>alert(1)</script>"):
        assert prefer("p0 p0", "s0 s0 s0", outside) == 1
        assert prefer("p0 p0", outside, "s0 s0 s0") == 0
        assert prefer("p0 p0", outside, "nothing") == 0.5


def test_preferences_are_probabilities_that_add_to_one():
    table = WORLD.preference
    assert table.shape == (144, 217, 217)
    np.testing.assert_allclose(table[::13] + table[::13].transpose(0, 2, 1), 1)
    assert table.min() == 0
    assert set(np.unique(WORLD.classes)) == {0, 1, 2}
    assert np.all(np.bincount(WORLD.classes[5]) == 72)


def test_nash_and_teacher():
    assert games.exploitability(WORLD.nash, WORLD.preference).max() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(WORLD.nash.sum(1), 1)
    numbers = WORLD.measure(WORLD.gold)
    assert numbers["quality"] == pytest.approx(1)
    assert numbers["exploitability"] == pytest.approx(0.35)  # by the class that beats the teacher's
    drawn = WORLD.teacher(PROMPTS, 0)
    assert all(WORLD.gold[i, RESPONSES.index(text)] > 0 for i, text in enumerate(drawn))
    assert drawn == WORLD.teacher(PROMPTS, 0)
    assert drawn != WORLD.teacher(PROMPTS, 1)


def test_leak_is_exploitable():
    table = 0.5 * WORLD.nash
    table[:, OUTSIDE] += 0.5
    numbers = WORLD.measure(table)
    assert numbers["leak"] == pytest.approx(0.5)
    assert numbers["exploitability"] == pytest.approx(0.25)
    assert numbers["quality"] == pytest.approx(0.5)


def test_outside_judge_sees_no_classes():
    assert WORLD.win_rate(WORLD.nash, WORLD.gold, outside_judge=True) == pytest.approx(0.5)
    best = WORLD.preference[0, :OUTSIDE].argmax(0)
    assert not np.array_equal(WORLD.preference[0, best, 0], WORLD.outside_preference[0, best, 0])


def test_prompts_are_split_into_parts_without_overlap():
    parts = [WORLD.prompts("train", 3, part, 5) for part in range(5)]
    assert sorted(prompt for part in parts for prompt in part) == sorted(PROMPTS)
    held = CyclicJudge(test_share=0.25)
    assert len(held.prompts("test", 0)) == 36
    assert held.prompts("test", 0) == held.prompts("test", 1)
    assert set(held.prompts("train", 0)).isdisjoint(held.prompts("test", 0))


def test_table_holds_the_policy_itself(runs_root):
    """The shared-prefix shortcut against `score` on all 216 responses."""
    policy = WORLD.start(0)
    table = WORLD.table(policy)
    groups = [policy.group(PROMPTS[i], [policy.encode_response(text)[:3] for text in RESPONSES]) for i in (0, 77, 143)]
    np.testing.assert_allclose(table[[0, 77, 143], :OUTSIDE], np.exp(reference_logps(policy, groups)), atol=1e-7)
    np.testing.assert_allclose(table.sum(1), 1)
    assert WORLD.evaluate(policy, 0) == WORLD.measure(table)
    rates = WORLD.win_rates(table, [PROMPTS[7]] * 2, [RESPONSES[30], "foreign"])
    np.testing.assert_allclose(rates, games.against(table, WORLD.preference)[7, [30, OUTSIDE]])


def test_preference_rows_prefer_what_the_judge_prefers():
    rows = WORLD.preferences("train", 0)
    assert len(rows) > 400
    assert all(prefer(row["prompt"], row["chosen"], row["rejected"]) >= 0.5 for row in rows[:50])


@pytest.mark.slow
def test_the_start_is_skewed_legal_and_cached(runs_root):
    world = CyclicJudge(start_steps=300)
    numbers = world.evaluate(world.start(0), 0)
    law = world.measure(np.append(world._start_probabilities(), np.zeros((144, 1)), axis=1))
    assert numbers["leak"] < 0.01
    assert numbers["quality"] == pytest.approx(law["quality"], abs=0.05)
    assert 0.15 < numbers["exploitability"] < 0.36  # uniform: 0.1
    assert QUALITY.max() == 1
    (folder,) = (runs_root / ".cache").glob("cyclic-judge-start-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    world.start(0)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
