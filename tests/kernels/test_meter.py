"""What was spent is what was asked for, counted by hand."""

import pytest

from workbench.kernels import Group, count_cost, sample, without_cost
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import supervised_step
from workbench.worlds.planted_chain import PlantedChain


@pytest.fixture(scope="module")
def policy():
    return PlantedChain()._new(0)


def test_generated_tokens_leave_prefixes_out(policy):
    begun = policy.encode_response("s1 s2 s3")[:-1]
    with count_cost() as spent:
        drawn = sample(policy, ["t0", "t1"], n=3, max_new_tokens=5, prefix=[begun, []])
    written = sum(len(tokens) for tokens in drawn.tokens[0]) - 9 + sum(len(tokens) for tokens in drawn.tokens[1])
    assert 0 < written == spent["generated_tokens"] <= 30


def test_training_counts_steps_and_tokens_and_meters_nest(policy):
    groups = [Group([1, 2], [[3, 4, 5]])] * 7
    with count_cost() as outer:
        with count_cost() as inner:
            train(policy, groups, supervised_step, TrainConfig(batch_size=3, epochs=2, learning_rate=1e-6))
        sample(policy, ["t0"], max_new_tokens=1)
    assert inner == {"optimizer_steps": 6, "trained_tokens": 2 * 7 * 5}
    assert outer == {**inner, "generated_tokens": 1}


def test_evaluations_are_left_out(policy):
    with count_cost() as spent:
        with without_cost():
            sample(policy, ["t0"], max_new_tokens=3)
        sample(policy, ["t0"], max_new_tokens=1)
    assert spent == {"generated_tokens": 1}


def test_nothing_is_counted_outside(policy):
    with count_cost() as spent:
        pass
    sample(policy, ["t0"], max_new_tokens=1)
    assert not spent
