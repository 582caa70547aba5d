"""The planted truth of the sums: facts, checks by hand, difficulty, and every protocol of tasks."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from workbench.worlds import any_order_sum, sum_facts
from workbench.worlds.any_order_sum import AnyOrderSum
from workbench.worlds.sum_facts import M, SumVerifier, band, chains, in_letters, misconceptions, touched, written

CHECK = SumVerifier()
SMALL = AnyOrderSum(
    k_min=3, k_max=3, sft_steps=200, width=48, layers=1, small_steps=10, small_width=32, n_problems=40, n_test=20
)


def test_a_quarter_of_the_facts_has_a_misconception_and_it_is_wrong():
    table = misconceptions()
    v, n = np.nonzero(table >= 0)
    assert len(v) == 64
    assert (table[v, n] != (v + n) % M).all()


def test_solutions_show_misconceptions_six_times_in_ten():
    orders, results = chains(np.random.default_rng(0).integers(M, size=(4_000, 7)), np.random.default_rng(1))
    before = np.concatenate([np.zeros((4_000, 1), int), results[:, :-1]], 1)
    believed = misconceptions()[before, orders]
    tempted = believed >= 0
    assert np.mean(results[tempted] == believed[tempted]) == pytest.approx(0.6, abs=0.02)
    assert (results == (before + orders) % M)[~tempted].all()


def test_solutions_without_slips_are_right_in_many_orders():
    orders, results = chains(np.tile([1, 2, 3, 4, 5, 6, 7], (200, 1)), np.random.default_rng(0), slip=0.0)
    assert len({tuple(order) for order in orders}) > 150
    for order, result in zip(orders, results, strict=True):
        text = written(order, result)
        assert CHECK.is_right("1 2 3 4 5 6 7", text)
        assert CHECK.first_wrong("1 2 3 4 5 6 7", CHECK.split(text)) is None
        assert CHECK.valid_share("1 2 3 4 5 6 7", text) == 1.0
        assert CHECK.closes("1 2 3 4 5 6 7", text)


@pytest.mark.parametrize(
    ("text", "wrong", "right", "share", "closes", "n_wrong"),
    [
        ("3 3 ; 9 12 ; 5 1 ; A 1", None, True, 1.0, True, 0),
        ("9 9 ; 5 14 ; 3 1 ; A 1", None, True, 1.0, True, 0),  # another order
        ("3 3 ; j m ; 5 1 ; A b", None, True, 1.0, True, 0),  # both alphabets are read: j is 9, m is 12, b is 1
        ("3 4 ; 9 13 ; 5 2 ; A 2", 0, False, 0.0, True, 1),  # consistent behind its one error
        ("3 4 ; 9 12 ; 5 1 ; A 1", 0, True, 0.0, True, 2),  # two errors that cancel: a right answer hides wrong steps
        ("3 3 ; 3 6 ; 5 11 ; A 11", 1, False, 1 / 3, True, 2),  # a number that is used up; one is left at the end
        ("3 3 ; A 3", 1, False, 1 / 3, False, 1),  # too early
        ("3 3 ; 9 12 ; 5 1 ; A 1 ; 3 3", 3, False, 1.0, False, 2),
        ("3 3 ; 9 12 ;", None, False, 2 / 3, False, 0),  # cut off
        ("", None, False, 0.0, False, 0),
        ("RETRY <b> ;", 0, False, 0.0, False, 1),
    ],
)
def test_checks_by_hand(text, wrong, right, share, closes, n_wrong):
    problem = "3 9 5"
    steps = CHECK.split(text)
    assert "".join(steps) == text
    assert CHECK.first_wrong(problem, steps) == wrong
    assert CHECK.is_right(problem, text) == right
    assert CHECK.valid_share(problem, text) == pytest.approx(share)
    assert CHECK.closes(problem, text) == closes
    assert CHECK.n_wrong(problem, steps) == n_wrong
    scores = CHECK.scores(problem, steps)
    assert all(later <= earlier for earlier, later in pairwise(scores))
    assert sum(score > 0.5 for score in scores) == (len(steps) if wrong is None else wrong)


def test_letters_are_the_same_steps():
    assert in_letters("3 3 ; 12 15 ; A 15") == "d d ; m p ; A p"
    assert CHECK.is_right("3 12", in_letters("3 3 ; 12 15 ; A 15"))


def test_touched_counts_misconceptions_over_all_orders():
    numbers = np.array([[3, 9, 5, 5]])
    means = []
    for order in permutations(numbers[0]):
        value, count = 0, 0
        for n in order:
            count += misconceptions()[value, n] >= 0
            value = (value + n) % M
        means.append(count)
    assert touched(numbers)[0] == pytest.approx(np.mean(means))
    assert band("3 9 5 5") == ("easy" if np.mean(means) < 1.5 else "middle" if np.mean(means) < 2.5 else "hard")


def test_problems_are_seeded_split_balanced_and_parted():
    world = AnyOrderSum(k_min=5, balanced=True, n_problems=60, n_test=30)
    rows = world.problems("train", 3)
    assert [row["prompt"] for row in rows] == world.prompts("train", 3)
    assert world.prompts("train", 3) != world.prompts("train", 4)
    assert world.prompts("test", 3) == world.prompts("test", 4)
    counts = {name: sum(band(row["prompt"]) == name for row in rows) for name in ("easy", "middle", "hard")}
    assert counts == {"easy": 20, "middle": 20, "hard": 20}
    parts = [world.prompts("train", 3, part, 3) for part in range(3)]
    assert sorted(prompt for part in parts for prompt in part) == sorted(world.prompts("train", 3))
    assert all(int(row["answer"]) == sum(map(int, row["prompt"].split())) % M for row in rows)


def test_demonstrations_are_right_and_preferences_prefer_the_better(runs_root):
    for row in SMALL.demonstrations("train", 0):
        assert CHECK.is_right(row["prompt"], row["completion"])
        assert CHECK.first_wrong(row["prompt"], CHECK.split(row["completion"])) is None
    rows = SMALL.preferences("train", 0)
    assert rows
    for row in rows:
        chosen, rejected = SMALL.score([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert chosen > rejected
    p = SMALL.prefer(["3 9 5"] * 2, ["3 3 ; 9 12 ; 5 1 ; A 1", ""], ["", "3 3 ;"])
    assert p[0] > 0.99
    assert p[1] < 0.5


def test_lessons_hold_letters_and_corrections(runs_root):
    policy = SMALL.start(0)
    world = AnyOrderSum(k_min=3, k_max=3, retry_share=0.15)
    lessons = world.lessons(policy, 6_400, np.random.default_rng(0))
    texts = [(policy.decode(g.prompt_ids), policy.decode(g.responses_ids[0])) for g in lessons]
    letters = np.mean([any(word in sum_facts.LETTERS for word in text.split()) for _, text in texts])
    assert letters == pytest.approx(0.01, abs=0.005)
    again = [(prompt, text) for prompt, text in texts if prompt.endswith(any_order_sum.RETRY)]
    assert 0.02 < len(again) / len(texts) < 0.15  # a correction needs a wrong solution
    for prompt, text in again:
        words = prompt.split()
        problem, wrong = " ".join(words[:3]), " ".join(words[3:-1])
        assert CHECK.is_right(problem, text)
        assert not CHECK.is_right(problem, wrong)
        assert world.correction(problem, wrong) == prompt
    assert all(lesson.responses_ids[0][-1] == policy.tokenizer.eos_token_id for lesson in lessons)


def test_starts_are_cached_and_measured(runs_root):
    policy = SMALL.start(0)
    numbers = SMALL.evaluate(policy, 0)
    assert set(numbers) == {"quality", "validation", "valid_steps", "closes", "sampled"}
    (folder,) = (runs_root / ".cache").glob("any-order-sum-start-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert SMALL.evaluate(SMALL.start(0), 0) == numbers
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert SMALL.small(0).model.num_parameters() != policy.model.num_parameters()
