"""The pruned search: two survivors a level, what it costs, resumable seeds, and what it says of bad candidates."""

import logging

import numpy as np
import pandas as pd
import pytest

from workbench.methods.align.sphere import search as module
from workbench.methods.align.sphere.search import Chain, Found, search, verdict
from workbench.tasks.reasoning.step_pairs import Drawing
from workbench.worlds.any_order_sum import AnyOrderSum

WORLD = AnyOrderSum(k_min=3, k_max=3, sft_steps=150, width=48, layers=1, n_problems=30, retry_share=0.15)
E, D = 3, 5


@pytest.fixture(scope="module")
def policy(starts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(starts("search")))
        yield WORLD.start(0)


def searched(policy, problems, scores=WORLD.verifier.scores, **options) -> Found:
    given = {"width": E, "depth": D, "stop": (";",), "judge": WORLD.verifier.is_right, **options}
    return search(Drawing(policy, 0.8, 1.0, 4, 0), problems, problems, scores, **given)


@pytest.fixture(scope="module")
def found(policy) -> Found:
    return searched(policy, WORLD.prompts("train", 0))


def test_two_chains_cost_at_most_2ed_and_not_all_nodes(found):
    """First level shared, then at most two chains with E candidates each: never the E^depth of a whole tree."""
    chains = found.chains
    assert (chains["samples"] <= 2 * E * chains["depth"] - E).all()
    assert chains["samples"].max() < E**D


def test_best_and_worst_are_picked_at_every_level(found):
    for (_, side, _), nodes in found.nodes.groupby(["number", "chain", "depth"]):
        assert nodes["picked"].sum() == 1
        chosen = nodes.loc[nodes["picked"], "reward"].iloc[0]
        if side == "max":
            assert chosen == nodes["reward"].max()
    first = found.nodes[found.nodes["depth"] == 0]
    for _, nodes in first.groupby("number"):  # at the first level both choose among the same candidates
        assert set(nodes.loc[nodes["chain"] == "max", "step"]) == set(nodes.loc[nodes["chain"] == "min", "step"])
    assert found.chains["prm_max"].map(np.mean).mean() > found.chains["prm_min"].map(np.mean).mean()


def test_steps_are_single_and_scored_with_all_before_them(found):
    for row in found.chains.to_dict("records"):
        for side in ("max", "min"):
            steps = row[f"sol_{side}"]
            assert WORLD.verifier.split("".join(steps)) == list(steps)
            assert list(row[f"prm_{side}"]) == pytest.approx(WORLD.verifier.scores(row["problem"], steps))
            right = WORLD.verifier.is_right(row["problem"], "".join(steps)) and not row[f"truncated_{side}"]
            assert row[f"correct_{side}"] == ("right" if right else "wrong")


def test_a_reward_model_that_sees_one_step_alone_would_be_seen():
    """Sabotage: scored without the earlier steps, what follows the first error is no longer low."""
    problem, steps = "3 9 5", ["3 4 ;", " 9 13 ;", " 5 2 ;"]
    whole = WORLD.verifier.scores(problem, steps)
    assert whole == sorted(whole, reverse=True)
    alone = [WORLD.verifier.scores(problem, [step])[0] for step in ["3 4 ;", " 9 9 ;", " 5 2 ;"]]
    assert alone != sorted(alone, reverse=True)


def test_a_problem_does_not_depend_on_its_neighbours(policy, found):
    problems = WORLD.prompts("train", 0)
    alone = searched(policy, problems[4:6], offset=4)
    assert alone.chains["sol_max"].map("".join).tolist() == found.chains["sol_max"].map("".join)[4:6].tolist()
    assert alone.chains["number"].tolist() == [4, 5]


def test_both_rewards_pick_the_same_steps(policy, found):
    other = searched(policy, WORLD.prompts("train", 0), reward="score")
    assert other.chains["sol_min"].map("".join).tolist() == found.chains["sol_min"].map("".join).tolist()
    assert other.nodes["reward"].tolist() != found.nodes["reward"].tolist()


def test_the_worst_step_must_be_plausible():
    chain = Chain("min", ["3 3 ;"])
    assert module._pick(chain, ["", " 3 3 ;", " 9 12 ;", " 5 8 ;"], [0.0, 0.1, 0.3, 0.2]) == 3
    assert module._pick(chain, ["", "  "], [0.2, 0.1]) == 1  # nothing plausible: the worst of what there is
    assert module._pick(Chain("max"), ["a", "b"], [0.1, 0.2]) == 1


def test_an_unusable_score_is_refused(policy):
    with pytest.raises(ValueError, match=r"problem '.*', step 0: a process reward in \[0, 1\] is needed; got nan"):
        searched(policy, ["3 9 5"], scores=lambda prompt, steps: [float("nan")] * len(steps))
    with pytest.raises(ValueError, match="2 process rewards for 1 steps"):
        searched(policy, ["3 9 5"], scores=lambda prompt, steps: [0.5] * (len(steps) + 1))


def test_collapsed_and_giant_steps_give_warnings(caplog):
    rows = pd.DataFrame({"depth": [1, 1, 3], "collapsed": [True, True, False]})
    with caplog.at_level(logging.WARNING):
        module._warn(rows, ("\n\n",))
    assert r"most solutions are one giant step; steps end at '\n\n'" in caplog.text
    assert "67 % of the chains collapsed" in caplog.text


def test_answers_that_cannot_be_compared_are_unsure():
    assert verdict(lambda p, t: None, "p", "t", True) == "unsure"
    assert verdict(lambda p, t: True, "p", "t", False) == "wrong"  # cut off
