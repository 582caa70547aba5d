"""The planted world says what its constants promise, and reads nothing but prompts."""

import numpy as np
import pytest

from workbench.feedback.chat import Request, user
from workbench.methods.confidence.pace_lm.world import CAUSES, SYMPTOMS, Incidents

WORLD = Incidents(garbled=0.0)


def say(prompt, n=1, model=None, temperature=0.7):
    model = model or WORLD.subject(0)
    return [reply.text for reply in model.ask([Request(user(prompt), temperature, 32, i) for i in range(n)])]


def prompt(causes, question, proposed="", analysis=""):
    references = "\n\n".join(f"Reference {i}\nSymptoms: s\nCause: {cause}" for i, cause in enumerate(causes, 1))
    shown = f"Proposed cause: {proposed}\n\n" if proposed else ""
    return f"Current incident\nSymptoms: x\n\n{references}\n\n{shown}{analysis}\n{question}"


AGREE, SPLIT = ["a"] * 4 + ["b"], ["a", "b", "c", "d", "e"]
SUFFICIENT, SCORE, CONFIDENCE = 'Reply "Sufficient: yes"', 'Reply "Score: "', 'Reply "Confidence: "'


def test_sizes_splits_and_what_an_incident_shows():
    cases, history = WORLD.tables(0)
    main = cases[cases["predictor"] == "main"]
    assert main["split"].value_counts().to_dict() == {"test": 400, "fresh": 400, "calibration": 200}
    assert len(history) == 250
    assert (len(CAUSES), len(SYMPTOMS)) == (80, 120)
    assert set(cases["predictor"]) == {"main", "weak", "strong"}
    assert cases["case_id"].is_unique
    shown = history["summary"].str.split(", ").map(len)
    assert shown.between(5, 10).all()
    assert shown.mean() == pytest.approx(5 + 5 * 115 / 120, abs=0.2)
    assert history["created"].max() < cases["created"].min()


def test_predictors_are_right_as_often_as_planted():
    right = {name: [] for name in ("main", "weak", "strong")}
    for seed in range(4):
        cases, _ = WORLD.tables(seed)
        for name in right:
            right[name].append(cases.loc[cases["predictor"] == name, "correct"].mean())
    assert np.mean(right["main"]) == pytest.approx(0.52, abs=0.03)
    assert np.mean(right["weak"]) == pytest.approx(0.35, abs=0.03)
    assert np.mean(right["strong"]) == pytest.approx(0.70, abs=0.03)


def test_labels_say_whether_the_proposed_cause_is_the_true_one():
    cases, _ = WORLD.tables(1)
    truth = WORLD.truth(1)
    named = cases["predicted_root_cause"] == cases["case_id"].map(truth)
    assert (named == (cases["correct"] == 1)).all()


def test_sufficiency_follows_agreement_and_the_analysis():
    share = {
        name: np.mean([t == "Sufficient: yes" for t in say(prompt(refs, SUFFICIENT), 400)])
        for name, refs in (("agree", AGREE), ("split", SPLIT))
    }
    assert share["agree"] == pytest.approx(0.895, abs=0.04)  # E sigma(9 * 0.25 + N(0, 0.5^2))
    assert share["split"] == pytest.approx(0.046, abs=0.03)
    leant = [
        prompt(["a"] * 3 + ["d", "e"], SUFFICIENT, analysis=f"Impression of the match: {x}") for x in ("-2.00", "+2.00")
    ]
    lean = [np.mean([t == "Sufficient: yes" for t in say(text, 300)]) for text in leant]
    assert lean[0] < 0.35 < 0.8 < lean[1]


def test_ratings_are_informative_where_references_agree_and_flatter_elsewhere():
    mean = {
        (len(set(refs)), cause): np.mean([int(t[-1]) for t in say(prompt(refs, SCORE, cause), 300)]) / 5
        for refs in (AGREE, SPLIT)
        for cause in ("a", "z")
    }
    assert mean[2, "a"] == pytest.approx(0.89, abs=0.04)
    assert mean[2, "z"] == pytest.approx(0.20, abs=0.04)
    assert mean[5, "z"] == pytest.approx(0.76, abs=0.04)


def test_a_proposal_in_the_first_question_sways_it():
    with_a, with_z = (
        np.mean([t == "Sufficient: yes" for t in say(prompt(SPLIT[:2] * 2, SUFFICIENT, p), 200)]) for p in ("a", "z")
    )
    assert with_a > with_z + 0.3


def test_stated_numbers_are_high():
    stated = [float(t.split()[-1]) for t in say(prompt([], CONFIDENCE, "a"), 300)]
    assert np.mean(stated) == pytest.approx(0.85, abs=0.01)
    assert np.std(stated) == pytest.approx(0.05, abs=0.01)


def test_three_percent_of_replies_are_broken():
    texts = say(prompt(AGREE, SCORE, "a"), 2000, Incidents().subject(0))
    broken = np.mean([not t.startswith("Score: ") for t in texts])
    assert broken == pytest.approx(0.03, abs=0.012)
