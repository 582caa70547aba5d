"""Steps: cutting gives the text back, the checker's decision by the official rule, and rows of step pairs made
sound."""

import pytest

from workbench.feedback.chat import Reply
from workbench.tasks.reasoning.solution_steps import (
    OPENING,
    as_step_pairs,
    ask_checker,
    cut_before,
    label_of,
    locate,
    parse_decision,
    split_labelled,
)

TEXT = "Let's think step by step.\nStep 1: 4*2 = 8.\nStep 2: 3+8 = 12.\nSo far so good.\nStep 3: The answer is 12."


@pytest.mark.parametrize(
    "text", [TEXT, "one\n\ntwo\n\nthree", "a\nb\nc", "", "Step 1:", "no break", "\n\nStep 1: a\nstep 2: b"]
)
def test_joined_steps_are_the_text(text):
    assert "".join(split_labelled(text)) == text


def test_labels_cut_and_lines_inside_a_step_do_not():
    steps = split_labelled(TEXT)
    assert len(steps) == 3
    assert steps[1] == "\nStep 2: 3+8 = 12.\nSo far so good."
    assert split_labelled("one\n\ntwo\nstill two") == ["one\n\n", "two\nstill two"]


def test_the_label_belongs_to_the_prefix():
    prefix, step = cut_before(split_labelled(TEXT), 1)
    assert prefix == "Let's think step by step.\nStep 1: 4*2 = 8.\nStep 2:"
    assert step == " 3+8 = 12.\nSo far so good."  # nothing of the steps behind it
    assert label_of(prefix) == 2
    assert cut_before(split_labelled(TEXT), 0) == (OPENING, " 4*2 = 8.")


@pytest.mark.parametrize(
    ("reply", "step", "reason"),
    [
        ("Final Decision: Step 1: correct; Step 2: incorrect", 1, ""),
        ("Final Decision: Step 1: correct; Step 2: neutral; Step 3: incorrect", 1, ""),  # neutral counts as the error
        ("final decision:\nSTEP 1: NEUTRAL", 0, ""),
        ("Final decision: Step 1: incorrect\nI was wrong.\nFinal Decision: Step 1: correct; Step 2: incorrect", 1, ""),
        ("**Final Decision:** Step 1: **correct**; Step 2: **incorrect**.", 1, ""),
        ("Step 1: incorrect", None, "no decision line"),
        ("Final Decision: all is well", None, "no step was judged"),
        ("Final Decision: Step 1: correct; Step 2: correct", None, "every step is called correct"),
        ("Final Decision: Step one: incorrect", None, "unreadable number"),
        ("Final Decision: Step 0: incorrect", None, "unreadable number"),
        ("", None, "no decision line"),
    ],
)
def test_decisions(reply, step, reason):
    assert parse_decision(reply) == (step, reason)


def test_a_step_beyond_the_solution_is_not_guessed():
    found, replies = ask_checker(
        lambda requests: [Reply("Final Decision: Step 9: incorrect")], [("p", "r", ["a", "b"])]
    )
    assert found == [(None, "step beyond the solution")]
    assert replies == ["Final Decision: Step 9: incorrect"]


def test_an_oracle_that_finds_nothing_says_so():
    class Oracle:
        def split(self, text):
            return [text]

        def first_wrong(self, prompt, steps):
            return None

    assert locate(Oracle(), [("p", "x")])[0] == [(None, "every step is called correct")]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- step pairs
def row(**changes):
    good = {
        "prompt": "Compute 3+4*2.",
        "initial_reason_steps": f"{OPENING} 4*2 = 8.\nStep 2:",
        "chosen": " 3+8 = 11.",
        "rejected": " 3+8 = 12.",
    }
    return {**good, **changes}


def test_a_good_row_stays_as_it_is():
    (kept,), counts = as_step_pairs([row()])
    assert kept["prefix"].endswith("Step 2:")
    assert (kept["chosen"], kept["rejected"]) == (" 3+8 = 11.", " 3+8 = 12.")
    assert not counts


@pytest.mark.parametrize(
    ("changes", "count", "side"),
    [
        ({"chosen": "Step 2: 3+8 = 11."}, "double label removed", " 3+8 = 11."),
        ({"chosen": " 3+8 = 11.\nStep 3: The answer is 11."}, "cut at the next label", " 3+8 = 11."),
        ({"initial_reason_steps": f"{OPENING} 4*2 = 8."}, "label added to the prefix", " 3+8 = 11."),
        ({"initial_reason_steps": ""}, "label added to the prefix", " 3+8 = 11."),
    ],
)
def test_what_can_be_mended_is_and_counted(changes, count, side):
    (kept,), counts = as_step_pairs([row(**changes)])
    assert counts == {count: 1}
    assert kept["chosen"] == side
    assert label_of(kept["prefix"]) == (1 if changes.get("initial_reason_steps") == "" else 2)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"chosen": "  "}, "empty step"), ({"chosen": "3+8 = 12. "}, "identical")]
)
def test_pairs_without_a_signal_are_dropped_and_counted(changes, reason):
    assert as_step_pairs([row(**changes), row()]) == ([as_step_pairs([row()])[0][0]], {reason: 1})


@pytest.mark.parametrize("column", ["prompt", "initial_reason_steps", "chosen", "rejected"])
def test_a_missing_column_is_named(column):
    bad = row()
    bad.pop(column)
    with pytest.raises(
        ValueError, match=rf"row 1, column '{column}': text is needed; got None. Step pairs need prompt, initial"
    ):
        as_step_pairs([row(), bad])
