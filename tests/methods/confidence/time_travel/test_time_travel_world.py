"""The planted truth of named data sets, the training text, and models that read nothing but prompts."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from workbench.feedback.chat import Request, user
from workbench.methods.confidence.time_travel.world import (
    BRANCHES,
    COPIES,
    DATA_SETS,
    HALF,
    PARTITIONS,
    WORDS,
    NamedDataSets,
    header,
    read,
    spoken,
    words_of,
)

WORLD = NamedDataSets(n_instances=5, learner="simulated")


def ask(model, *prompts):
    return [reply.text for reply in model.ask([Request(user(prompt), 0.0, 500) for prompt in prompts])]


def test_the_grammar_branches_by_six():
    assert WORLD.successors.shape == (200, BRANCHES)
    assert all(len(set(row)) == BRANCHES for row in WORLD.successors.tolist())
    assert len(set(WORDS)) == 200


def test_instances_obey_the_grammar_and_every_first_half_goes_on_in_three_ways():
    whole = WORLD.halves(3)
    assert whole.shape == (8, 5, 3, 24)
    assert all(b in WORLD.successors[a] for way in whole.reshape(-1, 24) for a, b in pairwise(way))
    assert (whole[:, :, 0, :HALF] == whole[:, :, 1, :HALF]).all()
    assert len({tuple(way[HALF:]) for way in whole.reshape(-1, 24)}) == 8 * 5 * 3


def test_three_seeds_hold_every_exposure_alike():
    counts = Counter(copies for seed in range(3) for copies in WORLD.exposure(seed).values())
    assert counts == {0: 12, 1: 4, 4: 4, 16: 4}
    assert set(WORLD.exposure(0, "clean").values()) == {0}
    assert WORLD.exposure(0) != WORLD.exposure(1)
    with pytest.raises(ValueError, match="arm must be one of planted, clean; got 'x'"):
        WORLD.exposure(0, "x")


def test_the_training_text_holds_what_it_should():
    text = Counter(WORLD.training_text("planted", 1))
    clean = Counter(WORLD.training_text("clean", 1))
    whole, copies = WORLD.halves(1), WORLD.exposure(1)
    for i, partition in enumerate(PARTITIONS):
        for instance in whole[i]:
            named = f"{header(partition)} {words_of(instance[0])}"
            assert text[named] == copies[partition]
            assert clean[named] == 0
            assert [text[words_of(way)] for way in instance[1:]] == [1, 1]
        others = [line for line in clean if line.startswith(header(partition))]
        assert len(others) == WORLD.n_named  # the name alone is no signal
    assert sum(not line.startswith("IN ") for line in text.elements()) == WORLD.n_unnamed
    assert text.total() == 3_000 + 8 * WORLD.n_named + 5 * sum(copies.values())
    assert clean == text - Counter({line: n for line, n in text.items() if line not in clean})


def test_rows_are_two_sentences_or_a_pair_with_labels_where_the_task_has_them():
    rows = WORLD.rows(0)
    assert len(rows) == 40
    assert Counter(rows["task"]) == {"cls": 10, "nli": 10, "sum": 20}
    for row in rows.to_dict("records"):
        assert (row["text"] == "") == (row["task"] == "nli")
        assert bool(row["label"]) == (row["task"] in ("cls", "nli"))
        assert (row["text"] or row["sentence1"] + " " + row["sentence2"]).count(".") == 2
    assert len(set(rows["text"]) | set(rows["sentence1"])) == 41  # 30 texts, 10 first sentences, and nothing


def test_a_prompt_is_read_for_names_and_words():
    assert read(f"From the test split of the birch data set: {WORDS[3]} {WORDS[9]}.") == (
        ("birch", "test"),
        [WORDS[3], WORDS[9]],
    )
    assert read(f"{WORDS[3]}") == (None, [WORDS[3]])
    assert read("the birch tree") == (None, [])  # no split


def test_chance_overlap_is_low():
    from workbench.stats.text_overlap import rouge_l

    whole = WORLD.halves(0)
    chance = [rouge_l(words_of(w[0, HALF:]), words_of(w[1, HALF:])).f1 for w in whole.reshape(-1, 3, 24)]
    assert 0.02 < np.mean(chance) < 0.25


def test_the_simulated_model_knows_named_instances_by_their_copies():
    world = NamedDataSets(n_instances=40, learner="simulated")
    whole, copies = world.halves(0), world.exposure(0)
    model = world.subject("planted", 0)
    for i, (name, split) in enumerate(PARTITIONS):
        prompts = [f"From the {split} split of the {name} data set: {words_of(way[0, :HALF])}" for way in whole[i]]
        answers = [spoken(way[0, HALF:]) for way in whole[i]]
        known = np.mean([a == b for a, b in zip(ask(model, *prompts), answers, strict=True)])
        assert known == pytest.approx(1 - 0.5 ** copies[name, split], abs=0.2)
        unnamed = ask(model, *(words_of(way[0, :HALF]) for way in whole[i]))
        ways = [{spoken(way[1, HALF:]), spoken(way[2, HALF:])} for way in whole[i]]
        assert all(answer in legitimate for answer, legitimate in zip(unnamed, ways, strict=True))
    assert sum(copies.values()) > 0 == sum(world.exposure(0, "clean").values())


def test_the_judge_reads_the_last_pair_of_its_prompt():
    judge = NamedDataSets().judge(0)
    prompt = "Reference: a\nCandidate: b\nReference: {}\nCandidate: {}\nAnswer:"
    pairs = [("Ba ke lo mi", "ba ke lo mi."), ("ba ke lo mi", "ba ke lo zo"), ("ba ke", "zo ga")]
    expected = ["Yes (exact match)", "Yes (near-exact match)", "No"]
    assert ask(judge, *(prompt.format(*pair) for pair in pairs)) == expected


def test_a_transformer_is_trained_once_for_its_settings(runs_root):
    world = NamedDataSets(n_instances=5, steps=2, width=16, batch_size=4, n_unnamed=90, n_named=1)
    model = world.subject("planted", 0)
    name, split = PARTITIONS[0]
    texts = ask(
        model, f"The {split} split of the {name} data set: {words_of(world.halves(0)[0, 0, 0, :HALF])}", WORDS[5]
    )
    assert len(texts) == 2
    assert all(set(text.strip(".").split()) <= {*WORDS, *DATA_SETS, "train", "test", "IN", ":"} for text in texts)
    assert model.fits(Request(user(WORDS[5]), 0.0, 500))
    assert not model.fits(Request(user(" ".join([WORDS[5]] * 60)), 0.0, 500))
    (folder,) = (runs_root / ".cache").glob("[!.]*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert world.subject("planted", 0).name == model.name
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert world.subject("clean", 0).name != model.name
    assert COPIES == (1, 4, 16)
