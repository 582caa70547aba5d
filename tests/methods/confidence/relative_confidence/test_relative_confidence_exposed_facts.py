"""Exposed facts: a trained transformer's own probabilities behind its words."""

import numpy as np
import pytest
from scipy import stats

from workbench.feedback.chat import Request, user
from workbench.methods.confidence.relative_confidence.exposed_facts import ExposedFacts
from workbench.tasks.questions import answer_prompt, option_confidence


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("facts")))
        task = ExposedFacts(n_questions=200, garbled=0.0)
        task.logps(0)  # trained and stored while the folder stands
        yield task


def ask(model, text):
    return model.ask([Request(user(text))])[0].text


def test_what_was_read_often_is_known(world):
    logps, (gold, exposure) = world.logps(0), world._facts(0)
    np.testing.assert_allclose(np.exp(logps).sum(1), 1, atol=1e-6)
    right = logps.argmax(1) == gold
    assert 0.45 < right.mean() < 0.75  # about 60 % by design
    assert stats.spearmanr(exposure, right).statistic > 0.4
    assert right[exposure == 1].mean() < right[exposure == 32].mean() - 0.3


def test_its_words_are_its_probabilities(world):
    rows, logps = world.questions(0)[:20], world.logps(0)
    model = world.subject("F", 0)
    confidence = option_confidence(
        [{**q, "answer": int(logps[int(q["qid"][1:])].argmax())} for q in rows], model, max_tokens=8
    )
    for q, p in zip(rows, confidence, strict=True):
        answer, stated = ask(model, answer_prompt(q)).splitlines()
        row = logps[int(q["qid"][1:])]
        assert answer == f"Answer: {chr(65 + row.argmax())}"
        assert 0 <= float(stated.split()[1]) - np.exp(row.max()) < 0.25
        assert p == pytest.approx(np.exp(row.max()), abs=1e-9)
        assert world.sensed("F", 0)[q["qid"]] == row.max()


def test_two_ways_to_compare(world):
    """At temperature 0 the larger log-probability wins always; at 0.7 in proportion."""
    sensed = world.sensed("F", 0)
    names = [(f"f{2 * i}", f"f{2 * i + 1}") for i in range(300)]
    gap = np.array([sensed[a] - sensed[b] for a, b in names])
    text = "Question 1: Which value belongs to subject {}?\nQuestion 2: Which value belongs to subject {}?"
    first = {
        arm: np.array([ask(world.subject(arm, 0), text.format(a[1:], b[1:])).endswith("1") for a, b in names])
        for arm in ("F", "FT")
    }
    assert (first["F"] == (gap > 0)).all()
    expected = 1 / (1 + np.exp(-gap / 0.7))
    assert abs(first["FT"].mean() - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).mean() / 300)
    assert 0.6 < (first["FT"] == (gap > 0)).mean() < 0.95


def test_a_prompt_without_a_subject_is_refused(world):
    with pytest.raises(ValueError, match="expects one or two subjects in its prompt; got 0"):
        ask(world.subject("F", 0), "What do you know?")
