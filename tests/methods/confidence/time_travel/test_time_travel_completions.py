"""Instances are cut as the paper says, instructions name what they should, judges' replies are read or counted."""

import math
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.feedback.chat import Reply
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.time_travel import completions as con


class Told:
    """A model that answers what it is told to, and remembers what it was asked."""

    def __init__(self, *texts, room=10**6):
        self.name, self.texts, self.asked, self.room = "told", list(texts), [], room

    def ask(self, requests):
        self.asked += requests
        return [Reply(self.texts[i % len(self.texts)]) for i in range(len(requests))]

    def fits(self, request):
        return len(request.messages[0]["content"]) + request.max_tokens <= self.room


def partition(texts, task="sum", **columns):
    n = len(texts)
    return pd.DataFrame(
        {"instance_id": [f"p/{i}" for i in range(n)], "dataset": "news", "split": "test", "text": texts, **columns}
    )


NUMBERS = " ".join(f"w{i}" for i in range(100))


# ---- cutting
def test_one_sentence_is_cut_between_words_and_several_between_sentences():
    first = con.split_instances(
        partition([NUMBERS, "One. Two. Three. Four. Five. Six. Seven. Eight. Nine. Ten."]), "sum"
    )
    words, sentences = first.instances.to_dict("records")
    assert 40 <= len(words["first_piece"].split()) <= 70
    assert f"{words['first_piece']} {words['second_piece']}" == NUMBERS
    assert sentences["first_piece"].endswith(".")
    assert 4 <= sentences["first_piece"].count(".") <= 7
    assert list(first.instances) == con.COLUMNS


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000), st.floats(0, 100), st.floats(0, 100))
def test_pieces_join_to_the_text_and_stay_inside_the_bounds(n, seed, a, b):
    low, high = sorted((a, b))
    text = " ".join(f"w{i}" for i in range(n))
    kept, rejected = con.split_instances(partition([text]), "sum", low, high, seed)
    if len(kept):
        first, second = kept.loc[0, "first_piece"], kept.loc[0, "second_piece"]
        assert f"{first} {second}" == text
        assert math.floor(low / 100 * n) <= len(first.split()) <= math.ceil(high / 100 * n)
    else:  # a cut at an end leaves a piece empty
        assert rejected["reason"].str.contains("empty").all()


def test_every_instance_has_a_cut_of_its_own_unless_the_released_code_is_followed():
    frame = partition([" ".join(f"{chr(97 + k)}{i}" for i in range(1000)) for k in range(20)])
    fresh = con.split_instances(frame, "sum").instances["first_piece"].str.split().str.len()
    constant = con.split_instances(frame, "sum", constant_fraction=True).instances["first_piece"].str.split().str.len()
    assert fresh.nunique() > 15
    assert (fresh / 1000).between(0.4, 0.7).all()
    assert set(constant) == {592}  # the fraction 0.5918 of seed 42
    again = con.split_instances(frame, "sum").instances["first_piece"].str.split().str.len()
    assert (fresh == again).all()


def test_two_sentences_are_always_cut_in_the_middle():
    frame = partition([f"First {i} is here. Second {i} is there." for i in range(30)])
    cut = con.split_instances(frame, "sum", seed=7).instances
    assert cut["second_piece"].tolist() == [f"Second {i} is there." for i in range(30)]


def test_pairs_are_their_sentences():
    frame = pd.DataFrame(
        {"instance_id": ["a"], "dataset": "d", "split": "s", "sentence1": ["It rains."], "sentence2": ["Wet."]}
        | {"label": ["1 (entailment)"]}
    )
    (row,) = con.split_instances(frame, "nli").instances.to_dict("records")
    assert (row["first_piece"], row["second_piece"], row["label"]) == ("It rains.", "Wet.", "1 (entailment)")


def test_abbreviations_and_initials_do_not_end_a_sentence():
    assert con.sentences('Dr. Ann B. Smith left. "Why?" Nobody knew! e.g. this.') == [
        "Dr. Ann B. Smith left.",
        '"Why?"',
        "Nobody knew!",
        "e.g. this.",
    ]
    assert con.sentences("3.14 is no end") == ["3.14 is no end"]


def test_unusable_instances_are_listed_with_the_reason():
    texts = ["a b c d", "", "word", "a b c d", "e f g h"]
    cut = con.split_instances(partition(texts), "sum", 50, 50)
    assert cut.instances["instance_id"].tolist() == ["p/0", "p/4"]
    assert dict(zip(cut.rejected["instance_id"], cut.rejected["reason"], strict=True)) == {
        "p/1": "empty text",
        "p/2": "empty first piece (one word?)",
        "p/3": "duplicate",
    }
    cut = con.check_instances(partition(["", ""]).assign(task="sum", first_piece="x", second_piece=["", None]))
    assert cut.rejected["reason"].tolist() == ["empty second piece (one word?)"] * 2


@pytest.mark.parametrize(
    ("change", "task", "options", "message"),
    [
        ({}, "cls", {}, "task 'cls': column 'label' is missing; found instance_id, dataset, split, text"),
        ({}, "nli", {}, "task 'nli': column 'sentence1', 'sentence2', 'label' is missing"),
        ({}, "sum", {"min_p": 80}, "0 <= min_p <= max_p <= 100; got 80 and 70"),
        ({}, "sum", {"max_p": 101}, "got 40 and 101"),
        ({"text": "body"}, "sum", {}, "column 'text' is missing; found instance_id, dataset, split, body"),
    ],
)
def test_bad_partitions(change, task, options, message):
    with pytest.raises(ValueError, match=message):
        con.split_instances(partition(["a b"]).rename(columns=change), task, **options)


def test_without_splitting_the_pieces_must_be_there():
    said = "splitting is off, so the pieces must be given: column 'first_piece', 'second_piece'"
    with pytest.raises(ValueError, match=said):
        con.check_instances(partition(["a b"]))


# ---- instructions
ROW = {"task": "cls", "dataset": "Field Notes {split}", "split": "test", "label": "1 (rain)"}
ROW |= {"first_piece": "It {rains}", "second_piece": "SECRET"}


@pytest.mark.parametrize("task", con.TASKS)
def test_only_the_guided_instruction_names_the_data_set_and_asks_for_the_exact_text(task):
    guided, general = (
        con.request({**ROW, "task": task}, instruction, 9).messages[0]["content"]
        for instruction in ("guided", "general")
    )
    assert "test split of the Field Notes {split} data set" in guided
    assert "exactly" in guided
    assert "exact" not in general
    assert "Field Notes" not in general
    for text in (guided, general):
        assert ("Label: 1 (rain)" in text) == (task in con.LABELLED)
        assert "It {rains}" in text
        assert "SECRET" not in text
        assert text.endswith("Sentence 2:" if task == "nli" else "Second piece:")
    assert ("one-sentence summary" in guided) == (task == "xsum")


def test_calls_are_greedy_and_short():
    request = con.request(ROW, "guided", 500)
    assert (request.temperature, request.max_tokens, len(request.messages)) == (0.0, 500, 1)


def instances(n=3, **columns):
    return pd.DataFrame(
        {"instance_id": [f"d/s/{i}" for i in range(n)], "dataset": "d", "split": "s", "task": "sum"}
        | {"label": "", "first_piece": [f"The ferry {i} left." for i in range(n)]}
        | {"second_piece": "It carried forty cars.", **columns}
    )


def test_completions_keep_reply_template_and_repetition(tmp_path):
    model = Told("The ferry 0 left. It carried forty cars.", '"It sank."')
    table = con.complete(instances(), model, "guided", 20, transcript=Transcript(tmp_path / "t.jsonl"), seed=4)
    assert table["text"].tolist() == ["It carried forty cars.", "It sank.", "The ferry 0 left. It carried forty cars."]
    assert table["repeated"].tolist() == [True, False, False]
    assert set(table["template"]) == {con.INSTRUCTIONS["guided", "sum"].version}
    assert list(table)[:5] == ["instance_id", "instruction", "text", "model", "seed"]
    con.complete(instances(), model, "guided", 20, transcript=Transcript(tmp_path / "t.jsonl"), seed=4)
    assert len(model.asked) == 3  # nothing twice


def test_what_does_not_fit_is_found_and_never_cut():
    frame = instances(2)
    frame.loc[1, "first_piece"] = "long " * 200
    assert con.fitting(frame, Told("", room=900), ["guided", "general"], 20).tolist() == [True, False]


# ---- judges
@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Yes (exact match)", "exact"),
        ("yes (near-exact match).", "near-exact"),
        ("No", "no"),
        ("no", "no"),
        ("Answer: No.", "no"),
        ("Not sure", "unparsed"),
        ("", "unparsed"),
        ("Yes", "unparsed"),
        ("No... on reflection Yes (near-exact match)", "near-exact"),
    ],
)
def test_replies_of_a_judge(reply, label):
    assert con.read_match(reply) == label


def judged(judge=None, **options):
    frame = instances(
        3, instruction="guided", text=["It carried forty cars.", "It carried forty cars. Then it sank.", ""]
    )
    return con.match_judge(frame, judge, **options)


def test_the_matcher_and_a_judge_fill_the_same_table(tmp_path):
    judge = Told("No", "I would rather not say.")
    table = judged(judge, transcript=Transcript(tmp_path / "t.jsonl"))
    assert judged()["label"].tolist() == ["exact", "near-exact", "no"]
    assert table["label"].tolist() == ["no", "unparsed", "no"]  # an empty completion is no match, whatever the reply
    assert list(judged()) == list(table)
    prompt = judge.asked[1].messages[0]["content"]
    assert prompt.endswith(
        "Reference: It carried forty cars.\nCandidate: It carried forty cars. Then it sank.\nAnswer:"
    )
    assert [prompt.count(f"Answer: Yes ({kind} match)") for kind in ("exact", "near-exact")] == [1, 3]
    assert judge.asked[0].max_tokens == 10
    with pytest.raises(ValueError, match="a judge that is asked needs a transcript"):
        judged(judge)


def test_the_worked_examples_obey_the_rule_of_the_matcher_where_it_can_see_it():
    from workbench.stats.text_overlap import match

    lines = con.JUDGE.text.splitlines()
    pairs = [(a[11:], b[11:]) for a, b in pairwise(lines) if a.startswith("Reference: ") and "{" not in a]
    assert [match(*pair) for pair in pairs] == ["exact", "near-exact", "no", "near-exact"]  # reordering needs a reader
