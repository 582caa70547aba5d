"""The planted world says what its constants promise, and reads nothing but prompts."""

import math

import numpy as np
import pandas as pd
import pytest

from workbench.feedback import replies
from workbench.feedback.chat import Request, user
from workbench.methods.confidence.relative_confidence.sensitivity import ELO_K, NOISES, OPPONENTS, TIES, sensitivity
from workbench.methods.confidence.relative_confidence.world import STATED_NUMBERS, KnownQuestions


def world(n=2000, garbled=0.0):
    return KnownQuestions(n_questions=n, garbled=garbled)


def say(model, *prompts, temperature=0.0, sample=0):
    return [reply.text for reply in model.ask([Request(user(p), temperature, 64, sample) for p in prompts])]


def both(i, j):
    return f"Question 1: cover of item {i}?\nQuestion 2: cover of item {j}?"


def test_about_62_percent_are_right_and_the_regimes_share_their_answers():
    task = world()
    rows = task.questions(0)
    asked = [row["question"] for row in rows]
    answers = {arm: [replies.choice(text, 4) for text in say(task.subject(arm, 0), *asked)] for arm in task.arms}
    assert answers["R"] == answers["S"] == answers["Z"]
    right = np.mean([answer == row["gold"] for answer, row in zip(answers["R"], rows, strict=True)])
    assert right == pytest.approx(0.638, abs=0.03)  # E sigma(N(0.8, 1.6^2))
    assert all(len(set(row["choices"])) == 4 for row in rows)


def test_stated_numbers_are_coarse_and_too_high():
    task = world()
    texts = say(task.subject("R", 0), *[row["question"] for row in task.questions(0)])
    stated = [replies.confidence(text) for text in texts]
    assert set(stated) <= set(STATED_NUMBERS)
    assert np.mean(stated) > 0.85


def test_the_judge_follows_the_sensed_difference_and_leans_to_the_first():
    """P(first) = sigma((s_1 - s_2 + 0.3) / 0.7): a logistic fit gives slope 1 / 0.7 and intercept 0.43."""
    from scipy.optimize import minimize

    task = world()
    model, sensed = task.subject("R", 0), list(task.sensed("R", 0).values())
    pairs = [(i, (7 * i + 1) % 2000) for i in range(2000)]
    won = np.array([text == "More confident: 1" for text in say(model, *[both(i, j) for i, j in pairs])], dtype=float)
    gap = np.array([sensed[i] - sensed[j] for i, j in pairs])

    def loss(x):
        z = x[0] * gap + x[1]
        return np.mean(np.logaddexp(0, z) - won * z)

    slope, lean = minimize(loss, [1.0, 0.0]).x
    assert slope == pytest.approx(1 / 0.7, abs=0.15)
    assert lean == pytest.approx(0.3 / 0.7, abs=0.15)


def test_samples_agree_as_often_as_planted():
    task = world(200)
    model = task.subject("S", 0)
    (answer,) = {replies.choice(text, 4) for text in say(model, "of item 3?")}
    texts = [say(model, "of item 3?", temperature=0.7, sample=t)[0] for t in range(2000)]
    share = np.mean([replies.choice(text, 4) == answer for text in texts])
    assert share == pytest.approx(task._senses("S", 0)[1][3], abs=0.04)
    assert {replies.choice(text, 4) for text in texts} == {0, 1, 2, 3}


@pytest.mark.parametrize(("arm", "sense", "agreement"), [("R", 0.8, 0.65), ("S", 0.5, 0.85), ("Z", 0.0, 0.0)])
def test_the_regimes_differ_in_which_sense_knows_the_ability(arm, sense, agreement):
    """Correlations 1.6 / sqrt(1.6^2 + sig^2): 0.85 and 0.54; agreement goes through a sigmoid and loses a little."""
    task = world()
    ability, (sensed, share) = task._truth(0)["ability"], task._senses(arm, 0)
    assert np.corrcoef(ability, sensed)[0, 1] == pytest.approx(sense, abs=0.1)
    assert np.corrcoef(ability, share)[0, 1] == pytest.approx(agreement, abs=0.1)


def test_only_the_prompt_counts_and_its_order_matters():
    task = world(50)
    model = task.subject("R", 0)
    order = sorted(task.sensed("R", 0).values())
    best, worst = (list(task.sensed("R", 0).values()).index(s) for s in (order[-1], order[0]))
    assert say(model, both(best, worst), both(worst, best)) == ["More confident: 1", "More confident: 2"]
    assert say(model, "Explain.\n" + both(best, worst))[0].endswith("\nMore confident: 1")


@pytest.mark.parametrize("prompt", ["no question here", "of item 1? of item 2? of item 3?"])
def test_a_prompt_with_another_number_of_questions_is_refused(prompt):
    with pytest.raises(ValueError, match=r"one or two questions in its prompt; got [03]"):
        say(world(9).subject("R", 0), prompt)


def test_two_percent_of_replies_cannot_be_read_as_meant():
    model = world(2000, garbled=0.02).subject("R", 0)
    texts = say(model, *[f"of item {i}?" for i in range(2000)])
    unread = np.mean([replies.choice(text, 4) is None or math.isnan(replies.confidence(text)) for text in texts])
    assert unread == pytest.approx(0.02, abs=0.01)


def test_unknown_regime():
    with pytest.raises(ValueError, match="regime must be one of R, S, Z; got 'Q'"):
        world(9).subject("Q", 0)


def test_every_setting_is_there_and_the_planted_directions_hold():
    table = pd.DataFrame(row for seed in range(6) for row in sensitivity(KnownQuestions(), seed))
    mean = table.groupby(["varied", "value", "scorer"])["auc"].mean()
    for varied, values in (("opponents", OPPONENTS), ("judge noise", NOISES), ("share of ties", TIES)):
        assert sorted(mean[varied].index.get_level_values(0).unique()) == sorted(values)
    assert mean["opponents", 15, "bt"] > mean["opponents", 2, "bt"]
    assert mean["judge noise", 0.35, "bt"] > mean["judge noise", 2.8, "bt"]
    assert mean["share of ties", 0.0, "bt"] > mean["share of ties", 0.6, "bt"]
    assert mean["Elo K", 32, "elo"] > mean["Elo K", 400, "elo"]
    assert set(mean["Elo K"].index.get_level_values(0)) == set(ELO_K)
    assert sensitivity(KnownQuestions(), 3) == sensitivity(KnownQuestions(), 3)
