"""Documents: importance on made-up chunks with known overlaps, contexts, tokens with known borders, real rows."""

import json

import numpy as np
import pytest

from workbench.methods.align.logo.chunks import Writing, keep_sound, preferences
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.tasks import documents
from workbench.tasks.documents import (
    TextDocuments,
    ablated,
    content_words,
    keep_best,
    next_question,
    overlaps,
    prompt_ids,
    prompt_parts,
)

CHUNKS = [
    "Mira hid the old letter in the kitchen.\n\n",  # letter, hid, mira
    "The weather was fine and the butler slept.\n\n",  # nothing
    "Letters were found by Mira's brother.\n\n",  # letter, mira
]


@pytest.fixture(scope="module")
def policy():
    tokenizer = bpe_tokenizer(CHUNKS * 3, vocab_size=320)
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=512, seed=0), tokenizer)


def test_overlaps_by_hand():
    assert content_words("The letters were hidden in 1912!") == {"letter", "hidden", "1912"}
    assert overlaps(CHUNKS, "Who hid the letter?", "Mira hid it.") == [3, 0, 2]
    assert overlaps(CHUNKS, "Who hid the letter?", "Mira hid it.", extract=lambda text: set(text)) != [3, 0, 2]


def test_best_chunks_and_the_minimum():
    assert keep_best([3, 0, 2], 2, minimum=2) == [0, 2]
    assert keep_best([3, 0, 2], 3, minimum=1) is None  # the weakest kept one decides
    with pytest.raises(ValueError, match="4 chunks are wanted but the document has 3"):
        keep_best([3, 0, 2], 4, minimum=0)


def test_contexts_are_in_document_order():
    assert ablated(list("abcdef"), [5, 0, 3, 1, 4, 2]) == [list("abcdef"), ["a", "d", "f"], ["b", "c", "e"]]


def test_parts_join_to_the_prompt_that_sampling_uses(policy):
    """Borders of chunks are borders of tokens, and the template is the tokenizer's own."""
    before, parts, ask = prompt_parts(policy, CHUNKS, "Who hid it?")
    assert len(parts) == 3
    assert [policy.decode(part) for part in parts] == CHUNKS
    ids = prompt_ids(policy, CHUNKS, "Who hid it?")
    assert ids == [*before, *parts[0], *parts[1], *parts[2], *ask]
    whole = policy.encode_prompt("".join(CHUNKS) + "Who hid it?")
    text = policy.tokenizer.decode
    assert text(ids) == text(whole)


def test_a_conversation_reads_as_the_template_has_it(policy):
    """Turn by turn: prompt, answer with one end token, next question; the same text as the template gives."""
    ids = [*prompt_ids(policy, CHUNKS, "Q1?"), *policy.encode_response("A1."), *next_question(policy, "Q2?")]
    chat = [
        {"role": "user", "content": "".join(CHUNKS) + "Q1?"},
        {"role": "assistant", "content": "A1."},
        {"role": "user", "content": "Q2?"},
    ]
    assert policy.tokenizer.decode(ids) == policy.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )


def test_a_tokenizer_without_a_template(policy):
    import copy

    bare = Policy(policy.model, copy.deepcopy(policy.tokenizer))
    bare.tokenizer.chat_template = None
    before, _, ask = prompt_parts(bare, CHUNKS, "Q1?")
    assert before == [bare.tokenizer.bos_token_id]
    assert ask == bare.encode_part("Q1?")
    assert bare.decode(next_question(bare, "Q2?")) == "\nQ2?"


def test_empty_parts_are_named(policy):
    with pytest.raises(ValueError, match="chunk 1 is empty"):
        prompt_parts(policy, ["a", " "], "Q?")
    with pytest.raises(ValueError, match="the question is empty"):
        prompt_parts(policy, ["a"], "")


# ------------------------------------------------------------------------------------------------------------ evidence
def test_equal_and_empty_answers_are_dropped_and_counted():
    lost = []
    rows = [
        {"row": 0, "question": "a", "chosen": "x", "rejected": ["x ", "y"]},
        {"row": 1, "question": "b", "chosen": "x", "rejected": ["x", "x"]},
        {"row": 2, "question": "c", "chosen": " ", "rejected": ["y"]},
    ]
    kept, counts = keep_sound(rows, lost)
    assert [(row["row"], row["rejected"]) for row in kept] == [(0, ["y"])]
    assert counts["rejected answers equal to the chosen one"] == 3
    assert [row["why"] for row in lost] == ["every rejected answer equals the chosen one", "empty chosen answer"]


class Few:
    """Two documents: one whose chunks say something about the question, one that has nothing to do with it."""

    def documents(self, split, seed):
        about = {"questions": ["Who hid the letter?"], "answers": ["Mira hid it."]}
        return [{"chunks": [CHUNKS[0], CHUNKS[2]] * 3, **about}, {"chunks": [CHUNKS[1]] * 6, **about}]


HOW = Writing(temperature=0.7, top_p=0.95, max_new_tokens=3, stop="\n", chunks=6, min_overlap=2)


def test_rows_below_the_minimum_are_listed(policy, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from workbench.methods.align.logo import chunks

    asked = []
    monkeypatch.setattr(
        chunks,
        "sample",
        lambda policy, prompts, **how: (
            asked.extend(prompts) or SimpleNamespace(texts=[["Mira"], ["butler"], ["burned"]][: len(prompts)])
        ),
    )
    table = preferences(Few(), policy, HOW, "train", 0, Run(tmp_path))
    assert table["row"].tolist() == [0]
    assert table["chosen"].tolist() == ["Mira"]
    assert list(table["rejected"][0]) == ["butler", "burned"]
    texts = [policy.decode(ids) for ids in asked]
    assert [text.count("hid the old") for text in texts] == [3, 3, 0]  # all, the better half, the worse half
    assert [text.count("Letters were") for text in texts] == [3, 0, 3]
    import pandas as pd

    dropped = pd.read_parquet(tmp_path / "train-dropped.parquet")
    assert dropped["why"].tolist() == ["overlap below 2"]
    with pytest.raises(ValueError, match=r"no test row is left: .*'overlap below 9': 2"):
        preferences(Few(), policy, HOW._replace(min_overlap=9), "test", 0, Run(tmp_path))


# ----------------------------------------------------------------------------------------------------------- real rows
def test_packed_problems(shared):
    task = TextDocuments(str(shared / "data/gsm8k/test.jsonl"), "none", test_size=3, train_size=5, pack=4, turns=2)
    train, test = task.documents("train", 0), task.documents("test", 0)
    assert (len(train), len(test)) == (5, 3)
    for row in [*train, *test]:
        assert len(row["chunks"]) == 4
        for question, answer, place in zip(row["questions"], row["answers"], row["chunk_of"], strict=True):
            assert row["chunks"][place] == f"{question}\n{answer}\n\n"
        assert np.all(np.diff(row["chunk_of"]) > 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chunks": [], "question": "q", "answer": "a"}, "row 1: column 'chunks' must be a list of texts"),
        (
            {"chunks": ["a", " "], "question": "q", "answer": "a"},
            "row 1, column 'chunks', number 1: a text is needed; got ' '",
        ),
        ({"chunks": ["a"], "question": "q"}, "row 1: column 'answers' must be a list of texts"),
        ({"chunks": ["a"], "questions": ["q", "r"], "answers": ["a"]}, "row 1: 2 questions but 1 answers"),
        ({"chunks": ["a"], "question": "q", "chosen": " "}, "row 1, column 'answers', number 0: a text is needed"),
    ],
)
def test_bad_documents_are_named(tmp_path, row, message):
    rows = [{"chunks": ["a", "b"], "question": "q", "answer": "a"}, row]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        TextDocuments(str(tmp_path / "rows.jsonl"), "none", test_size=1).documents("train", 0)


def test_paragraphs_are_packed_and_a_long_one_stays_alone():
    text = "one two\n\nthree\n \nfour five six seven\n\neight\n\n\n"
    packed = documents.pack_paragraphs(text, 3, lambda part: len(part.split()))
    assert packed == ["one two\n\nthree\n\n", "four five six seven\n\n", "eight\n\n"]


def test_bare_documents(policy, tmp_path):
    """A data set of long texts without questions: chunks from paragraphs, likelihood of the last one."""
    policy.save(tmp_path / "model")
    rows = [{"text": "\n\n".join(f"{i}. {chunk.strip()}" for chunk in CHUNKS)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = TextDocuments(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "model"), test_size=1, chunk_tokens=30, device="cpu"
    )
    row = task.documents("train", 0)[0]
    assert len(row["chunks"]) > 1
    assert row["questions"] == []
    found = task.evaluate(policy, 0)
    assert found["quality"] == -found["long_nll"]
    assert found["long_nll"] > 0
    with pytest.raises(ValueError, match="row 0 has no question; LOGO needs one"):
        preferences(task, policy, HOW, "train", 0, Run(tmp_path))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": " "}))
    with pytest.raises(ValueError, match="row 0, column 'text': a text is needed; got ' '"):
        TextDocuments(str(tmp_path / "bad.jsonl"), str(tmp_path / "model"), test_size=1).documents("train", 0)


def test_too_few_problems_for_a_document(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    with pytest.raises(ValueError, match="gives 0 documents, of which test_size=1 are held out"):
        TextDocuments(str(tmp_path / "rows.jsonl"), "none", test_size=1).documents("train", 0)


def test_the_chunk_of_a_question_is_found(tmp_path):
    row = {"chunks": CHUNKS, "question": "Who hid the letter?", "answer": "Mira hid it."}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    (found,) = TextDocuments(str(tmp_path / "rows.jsonl"), "none", test_size=1).documents("train", 0)
    assert found["chunk_of"] == [0]
    assert {"the", "of"} <= documents.STOP_WORDS
