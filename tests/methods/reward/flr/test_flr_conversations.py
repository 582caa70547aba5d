"""Conversations as lists of utterances: aligned files and dialogues with feedback, and what is wrong with them."""

import json

import pytest

from workbench.methods.reward.flr.conversations import as_feedback, as_turns, read_accept_reject


def files(folder, accept, reject):
    (folder / "set_accept.json").write_text(json.dumps(accept))
    (folder / "set_reject.json").write_text(json.dumps(reject))
    return folder / "set_accept.json"


def test_aligned_files(tmp_path):
    (row,) = read_accept_reject(files(tmp_path, [["q", "a", "r", "good"]], [["q", "a", "r", "bad"]]))
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert (row["chosen"], row["rejected"]) == ("good", "bad")


@pytest.mark.parametrize(
    ("accept", "reject", "message"),
    [
        ([["q", "a"]] * 2, [["q", "b"]], "set_accept.json has 2 conversations and set_reject.json 1"),
        ([["q", "a"]], [["p", "b"]], "row 0: the two files have different prompts"),
        ([["q", "a", "b"]], [["q", "a", "b"]], "set_accept.json, row 0: .* the number of utterances is even; got 3"),
        ([["q", ""]], [["q", "b"]], "set_accept.json, row 0: utterance 1 is empty"),
    ],
)
def test_bad_files(tmp_path, accept, reject, message):
    with pytest.raises(ValueError, match=message):
        read_accept_reject(files(tmp_path, accept, reject))


def test_feedback_rows():
    assert as_feedback([{"prompt": "q", "completion": "a", "feedback": "Good."}]) == [
        {"prompt": "q", "response": "a", "feedback": "Good."}
    ]
    with pytest.raises(ValueError, match="row 0, column 'feedback': it is missing or empty"):
        as_feedback([{"prompt": "q", "response": "a"}])
    assert as_turns(["q", "a"], "row 0")[1] == "a"
