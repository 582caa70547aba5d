"""Two-step asking: what each prompt shows, what fits, how replies are read and unread ones handled."""

import math

import pandas as pd
import pytest

from workbench.feedback.chat import Reply
from workbench.feedback.templates import Template
from workbench.methods.confidence.pace_lm import prompts
from workbench.methods.confidence.pace_lm.analyses import COLUMNS, case_scores, check_read, sample_scores
from workbench.methods.confidence.pace_lm.prompts import Phase

CASES = pd.DataFrame(
    {"case_id": ["c0", "c1"], "title": "", "summary": ['s {analysis} "0"', "s1"], "predicted_root_cause": ["p0", "p1"]}
)
REFS = pd.DataFrame(
    {"case_id": ["c0"] * 3, "rank": [3, 1, 2], "title": "", "summary": ["x3" * 20, "x1", "x2"]}
    | {"root_cause": ["r3", "r1", "r2"]}
)
PHASE = Phase(
    "rce",
    Template("a", "{incident}|{references}|{prediction}|think"),
    Template("b", "{incident}|{references}|{prediction}|{analysis}|rate"),
    lambda text: float(text) if text else math.nan,
)


class Scripted:
    """Says how often it was asked for an analysis, and 0.5 or nothing for a rating."""

    name = "scripted"

    def __init__(self, limit=10**6, empty=()):
        self.asked, self.limit, self.empty = [], limit, empty

    def ask(self, requests):
        self.asked += requests
        return [
            Reply("thoughts" if r.messages[0]["content"].endswith("think") else "" if i in self.empty else "0.5")
            for i, r in enumerate(requests)
        ]

    def fits(self, request):
        return len(request.messages[0]["content"]) + request.max_tokens <= self.limit


def test_every_analysis_gets_its_answers_and_braces_in_text_are_data():
    model = Scripted()
    samples = sample_scores(CASES, REFS, model, PHASE, 3, 2)
    assert len(samples) == 2 * 3 * 2
    assert list(samples) == COLUMNS
    analyses, answers = model.asked[:6], model.asked[6:]
    first = answers[0].messages[0]["content"]
    assert 's {analysis} "0"' in first
    assert "|thoughts|rate" in first
    assert first.index("Cause: r1") < first.index("Cause: r2") < first.index("Cause: r3")
    assert "(there are none)|p1" in answers[-1].messages[0]["content"]
    assert [r.sample for r in analyses[:3]] == [0, 1, 2]
    assert len({(r.messages[0]["content"], r.sample) for r in answers}) == 12  # none is another one's cached reply
    assert [r.sample for r in answers[:6]] == [0, 1, 2, 3, 4, 5]  # the three analyses are the same text
    assert samples["version"].nunique() == 1


def test_the_lowest_ranked_references_go_first_and_the_number_used_is_kept():
    roomy = sample_scores(CASES, REFS, Scripted(), PHASE, 1, 1)
    narrow = sample_scores(CASES, REFS, Scripted(450), PHASE, 1, 1)
    assert roomy["k_used"].tolist() == [3, 0]
    assert narrow["k_used"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="case 'c0' does not fit into the context of scripted even without references"):
        sample_scores(CASES, REFS, Scripted(100), PHASE, 1, 1)


def test_unread_answers_are_left_out_and_too_many_leave_the_score_missing():
    samples = sample_scores(CASES, REFS, Scripted(empty=(0, 10, 11, 12)), PHASE, 5, 2)
    assert samples["parse_status"].tolist().count("unparsed") == 4
    scores = case_scores(samples, "rce", 0.2)
    assert scores["c0"] == 0.5  # one of ten unread: the mean of the other nine, not nine tenths of it
    assert math.isnan(scores["c1"])  # three of ten
    assert case_scores(samples, "rce", 0.3)["c1"] == 0.5
    check_read(samples, 0.2, "x")
    said = r"4 of 20 replies of phase 'rce' could not be read, more than max_unparsed = 0\.05"
    with pytest.raises(ValueError, match=said):
        check_read(samples, 0.05, "x")


def test_a_template_without_a_slot_cannot_show_it():
    model = Scripted()
    blind = PHASE._replace(
        analysis=Template("a", "{incident}|think"), answer=Template("b", "{incident}|{analysis}|rate")
    )
    sample_scores(CASES, REFS, model, blind, 1, 1)
    assert not any(word in r.messages[0]["content"] for r in model.asked for word in ("p0", "p1"))


# ---- prompts and their readers
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Sufficient: yes", 1),
        ("**Sufficient:** No.", 0),
        ("Sufficient: yes\nno, wait\nsufficient: no", 0),
        ("Yes.", 1),
        ("no", 0),
        ("Yes, they do.", 1),
        ("Sufficient: no\nSufficient: unclear", 0),
    ],
)
def test_sufficient(text, value):
    assert prompts.read_sufficient(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sufficient:",
        "Suffici",
        "No idea",
        "Sufficient: yes or no",
        "Sufficient: yes|no",
        "It could be either, yes or no.",
    ],
)
def test_an_unread_sufficiency_is_no_no(text):
    assert math.isnan(prompts.read_sufficient(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Score: 4", 0.8),
        ("**Score:** 0", 0.0),
        ("score = 5.", 1.0),
        ("Score: 1\nOn reflection:\nScore: 3", 0.6),
        ("Score: 4/5", 0.8),
    ],
)
def test_score(text, value):
    assert prompts.read_score(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Score:",
        "Scor",
        "Score: 6",
        "Score: -1",
        "Score: 55",
        "Score: 3.5",
        "Score: 0-5",
        "Score: 3 to 4",
        "4",
        "Score: 2\nScore: 7",
    ],
)
def test_an_unread_score_is_never_zero(text):
    assert math.isnan(prompts.read_score(text))


def test_the_first_phase_has_no_slot_for_the_prediction_and_every_version_differs():
    for template in (prompts.COE_ANALYSIS, prompts.COE_ANSWER):
        assert "prediction" not in template.slots
    for template in (prompts.RCE_ANALYSIS, prompts.RCE_RATING, prompts.DIRECT, prompts.DIRECT_REFERENCES):
        assert "prediction" in template.slots
    assert "references" not in prompts.DIRECT.slots
    names = ("COE_ANALYSIS", "COE_ANSWER", "RCE_ANALYSIS", "RCE_RATING", "DIRECT", "DIRECT_REFERENCES")
    assert len({getattr(prompts, name).version for name in names}) == 6
    assert "Score:" not in prompts.RCE_ANALYSIS.text
    assert all(f"\n{level}: " in prompts.RCE_RATING.text for level in range(6))
