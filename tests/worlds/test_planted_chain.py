"""The planted truth is what it says: law, defects, KL, starts and preferences."""

import numpy as np
import pytest

from workbench.worlds.planted_chain import LENGTH, SYMBOLS, TOPICS, PlantedChain, text

WORLD = PlantedChain(
    n_demonstrations=100, pretrain_steps=10, sft_epochs=1, converged_epochs=2, data_steps=10, test_draws=50
)


def legal_walk(topic, rank=0):
    """Always the successor of the given rank: 0 is the most likely one."""
    walk, state = [], SYMBOLS
    for _ in range(LENGTH):
        state = int(np.argsort(-WORLD.transitions[topic, state])[rank])
        walk.append(state)
    return np.array(walk)


def test_every_state_has_four_successors_with_the_stated_law():
    table = WORLD.transitions
    assert table.shape == (TOPICS, SYMBOLS + 1, SYMBOLS)
    np.testing.assert_allclose(
        np.sort(table, -1)[..., -4:], np.broadcast_to([0.1, 0.2, 0.3, 0.4], (*table.shape[:2], 4))
    )
    np.testing.assert_allclose(table.sum(-1), 1)


def test_log_p_data_by_hand():
    """Ten times the most likely successor: 10 ln 0.4; one impossible step: minus infinity."""
    walk = legal_walk(2)
    assert WORLD.log_p_data(np.array([2]), walk[None])[0] == pytest.approx(10 * np.log(0.4))
    impossible = walk.copy()
    impossible[3] = int(np.flatnonzero(WORLD.transitions[2, walk[2]] == 0)[0])
    assert WORLD.log_p_data(np.array([2]), impossible[None])[0] == -np.inf


def test_walks_follow_the_law():
    topics, walks = WORLD.walks(20_000, np.random.default_rng(0))
    assert np.isfinite(WORLD.log_p_data(topics, walks)).all()
    first = walks[topics == 3, 0]
    np.testing.assert_allclose(
        np.bincount(first, minlength=SYMBOLS) / len(first), WORLD.transitions[3, SYMBOLS], atol=0.03
    )


def test_noise_replaces_its_share():
    _, clean = WORLD.walks(5_000, np.random.default_rng(1))
    _, noisy = WORLD.walks(5_000, np.random.default_rng(1), noise=0.35)
    assert np.mean(clean != noisy) == pytest.approx(0.35 * 15 / 16, abs=0.01)


@pytest.mark.parametrize("topic", range(TOPICS))
def test_a_clean_walk_has_no_defect(topic):
    assert WORLD.defects(topic, text(legal_walk(topic, rank=3))) == 0


def test_defects_by_hand():
    words = text(legal_walk(0)).split()
    assert WORLD.defects(0, "") == LENGTH  # nothing said: every symbol is missing
    assert WORLD.defects(0, " ".join(words[:7])) == 3  # three missing
    assert WORLD.defects(0, " ".join([*words, "s0", "s1"])) == 2  # two beyond the end
    # a foreign word; behind it any symbol may come
    assert WORLD.defects(0, " ".join([*words[:4], "t3", *words[5:]])) == 1
    assert WORLD.defects(0, " ".join(["<script>"] * 30)) == LENGTH


def test_demonstrations_are_clean_seeded_and_split():
    rows = WORLD.demonstrations("train", 1)
    assert len(rows) == 100
    assert all(WORLD.defects(int(row["prompt"][1:]), row["completion"]) == 0 for row in rows)
    assert rows == WORLD.demonstrations("train", 1)
    assert rows[:50] != WORLD.demonstrations("train", 2)[:50]
    assert rows[:50] != WORLD.demonstrations("test", 1)[:50]


def test_starts_are_cached_and_measured(runs_root):
    policy = WORLD.start(0)
    numbers = WORLD.evaluate(policy, 0)
    assert set(numbers) == {"quality", "defect_rate", "kl_nats"}
    assert numbers["kl_nats"] > 0
    (folder,) = (runs_root / ".cache").glob("planted-chain-sft-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert WORLD.evaluate(WORLD.start(0), 0) == numbers
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_preferences_prefer_fewer_defects(runs_root):
    rows = WORLD.preferences("train", 0)
    assert rows
    for row in rows:
        topic = int(row["prompt"][1:])
        assert WORLD.defects(topic, row["chosen"]) < WORLD.defects(topic, row["rejected"])


@pytest.mark.slow
def test_the_policy_at_the_data_is_there(runs_root):
    """C7 needs KL(p_data || p_theta) below 0.02 nats a response."""
    world = PlantedChain()
    assert world.evaluate(world.at_the_data(0), 0)["kl_nats"] < 0.02
