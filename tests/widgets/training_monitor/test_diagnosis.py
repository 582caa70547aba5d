"""Planted truths: displacement and length drift are found where they were put, and nowhere else."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.widgets.training_monitor import diagnosis
from workbench.widgets.training_monitor.diagnosis import HARM, LENGTH, bootstrap, mean, of_probe, of_rewards, slope


def planted(*, chosen=0.0, rejected=0.0, quality=None, longer=0.0, per_token=0.0, n=120, prompts=40, seed=0, noise=0.6):
    """Tables of a probe: mean change of chosen and rejected (nats), quality, own samples' length, reward per token."""
    rng = np.random.default_rng(seed)
    size = rng.integers(5, 60, (n, 2))
    texts = {"chosen": [f"yes {i} a" for i in range(n)], "rejected": [f"no, not at all {i}" for i in range(n)]}
    lengths = {"chosen_length": size[:, 0], "rejected_length": size[:, 1]}
    rows = pd.DataFrame({"row": range(n), "prompt": [f"p{i % prompts}" for i in range(n)], **texts, **lengths})
    start = rng.normal(-30, 5, (n, 2))
    end = start + np.array([chosen, rejected]) + per_token * (size - size.mean()) + rng.normal(0, noise, (n, 2))
    tables = [
        pd.DataFrame({"step": s, "row": range(n), "chosen_logp": x[:, 0], "rejected_logp": x[:, 1]})
        for s, x in ((0, start), (50, end))
    ]
    length, good = rng.integers(20, 40, prompts), rng.random(prompts)
    samples = []
    for step, more, better in ((0, 0, 0), (50, longer, quality or 0)):
        jitter = rng.integers(-2, 3, prompts) if step else 0
        wobble = rng.normal(0, 0.05, prompts) if step else 0
        told = {"quality": np.nan if quality is None else good + better + wobble, "length": length + more + jitter}
        same = {"step": step, "prompt": range(prompts), "k": 0, "text": "x", "ended": True, "logp": -20.0}
        samples.append(pd.DataFrame({**same, **told}))
    return rows, pd.concat(tables), pd.concat(samples)


def verdict(found, question):
    return next(v for v in found.verdicts if v.question == question).verdict


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chosen": 0.0, "rejected": -2.0}, diagnosis.NONE),
        ({"chosen": 1.0, "rejected": -2.0, "quality": -0.3}, diagnosis.NONE),
        ({"chosen": -1.0, "rejected": -3.0, "quality": 0.0}, diagnosis.BENIGN),
        ({"chosen": -1.0, "rejected": -3.0}, diagnosis.BENIGN),  # accuracy rose; no quality
        ({"chosen": -1.0, "rejected": -3.0, "quality": -0.3}, diagnosis.HARMFUL),
        ({"chosen": -2.0, "rejected": -2.0}, diagnosis.HARMFUL),  # both fell, nothing was learned
        ({"chosen": -3.0, "rejected": -1.0, "quality": 0.0}, diagnosis.HARMFUL),
        ({"chosen": -2.0, "rejected": -2.0, "quality": 0.3}, diagnosis.BENIGN),
        ({"chosen": -1.0, "rejected": 0.5}, diagnosis.NO_QUALITY),
        ({"chosen": -1.0, "rejected": 0.5, "quality": 0.0}, diagnosis.UNDECIDED),
        ({"chosen": -1.0, "rejected": -3.0, "prompts": 1}, diagnosis.TOO_FEW),
        ({"chosen": -1.0, "rejected": -3.0, "n": 1, "prompts": 1}, diagnosis.TOO_FEW),
    ],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_displacement_as_planted(changes, expected, seed):
    found = of_probe(*planted(seed=seed, **changes))
    assert verdict(found, HARM) == expected
    assert set(found.table.loc[found.table["question"] == HARM, "verdict"]) == {expected}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, diagnosis.STEADY),
        ({"longer": 8}, diagnosis.LONGER),
        ({"longer": -8}, diagnosis.SHORTER),
        ({"per_token": 0.05}, diagnosis.REWARDED),
        ({"per_token": 0.05, "longer": 8}, diagnosis.DRIFTS),
        ({"per_token": -0.05}, diagnosis.STEADY),
    ],
)
def test_length_drift_as_planted(changes, expected):
    found = of_probe(*planted(quality=0.0, **changes), beta=0.1)
    assert verdict(found, LENGTH) == expected
    row = found.table[found.table["measure"].str.startswith("implicit reward against length")].iloc[0]
    assert row["after"] == pytest.approx(100 * 0.1 * changes.get("per_token", 0), abs=0.06)
    own = found.table[found.table["measure"] == "own samples, length"].iloc[0]
    assert own["difference"] == pytest.approx(changes.get("longer", 0), abs=0.8)
    assert own["n"] == 40


def test_chosen_that_is_longer_and_better_is_no_slope():
    """Chosen 30 tokens longer and 3 nats up, rejected 3 down: length tells all between sides, nothing inside."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.integers(40, 50, 200), rng.integers(10, 20, 200)].astype(float)
    y = np.c_[3 + rng.normal(0, 1, 200), -3 + rng.normal(0, 1, 200)]
    found = slope(x, y, np.arange(200))
    assert found.lower < 0 < found.upper
    assert np.polyfit(x.ravel(), y.ravel(), 1)[0] > 0.1


def test_slope_is_least_squares_within_sides():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    design = np.c_[x.ravel(), np.tile([1, 0], 30), np.tile([0, 1], 30)]
    assert slope(x, y, np.arange(30)).value == pytest.approx(np.linalg.lstsq(design, y.ravel(), rcond=None)[0][0])


def test_shuffled_rows_show_nothing():
    """Negative control: start and end exchanged at random, prompt by prompt. 2.5 % may be claimed by chance."""
    claims = 0
    for seed in range(20):
        rows, scores, samples = planted(chosen=-1.0, rejected=-3.0, per_token=0.05, quality=-0.3, longer=8, seed=seed)
        swapped = set(np.flatnonzero(np.random.default_rng(seed).random(40) < 0.5))
        for table, prompt in ((scores, scores["row"] % 40), (samples, samples["prompt"])):
            swap = prompt.isin(swapped)
            table["step"] = np.where(swap, 50 - table["step"], table["step"])
        found = of_probe(rows, scores, samples)
        claims += verdict(found, HARM) != diagnosis.NONE
        claims += verdict(found, LENGTH) != diagnosis.STEADY
    assert claims <= 40 * 0.1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-50, 50), st.floats(0.1, 10))
def test_an_interval_moves_with_its_values(values, shift, scale):
    one = mean(values, range(len(values)))
    other = mean(np.array(values) * scale + shift, range(len(values)))
    assert one.lower - 1e-9 <= one.value <= one.upper + 1e-9
    assert (other.lower, other.upper) == pytest.approx((one.lower * scale + shift, one.upper * scale + shift), abs=1e-6)


def test_intervals_cover_with_many_and_with_few_prompts():
    """No change: a fall is claimed in about 2.5 % of trainings, also where each prompt has a level of its own."""
    for prompts, at_most in ((40, 0.07), (8, 0.07)):
        wrong = 0
        for seed in range(100):
            rng = np.random.default_rng([seed, prompts])
            who = np.arange(80) % prompts
            wrong += mean(rng.normal(size=prompts)[who] + rng.normal(size=80), who).fell
        assert wrong / 100 <= at_most, prompts
    naive = (
        sum(
            mean(np.random.default_rng([s, 8]).normal(size=8)[np.arange(80) % 8], np.arange(80)).fell
            for s in range(100)
        )
        / 100
    )
    assert naive > 0.2  # rows as if they were independent: the error that clustering prevents


def test_bootstrap_of_what_cannot_be_drawn():
    assert not bootstrap(np.empty((0, 1)), [], lambda s: s[:, 1] / s[:, 0]).is_known
    one = mean([1.0, 3.0], ["p", "p"])
    assert (one.value, one.n, one.prompts, one.is_known) == (2.0, 2, 1, False)
    assert mean([1.0, np.nan, 3.0], ["a", "b", "c"]).n == 2
    flat = slope(np.ones((5, 2)), np.random.default_rng(0).normal(size=(5, 2)), np.arange(5))
    assert not flat.is_known


def test_nan_rows_are_left_out_and_counted():
    rows, scores, samples = planted(chosen=-1.0, rejected=-3.0, quality=0.0)
    scores.loc[(scores["step"] == 50) & (scores["row"] < 3), "chosen_logp"] = np.nan
    found = of_probe(rows, scores, samples)
    assert found.table.iloc[0]["n"] == 117
    assert "3 of 120 held-out rows have a log-prob that is NaN and are left out" in found.notes
    assert verdict(found, HARM) == diagnosis.BENIGN


def test_rows_to_look_at():
    rows, scores, samples = planted(chosen=-1.0, rejected=-3.0)
    rows.loc[7, ["chosen", "rejected"]] = "the very same words", "the very same word"
    scores.loc[(scores["step"] == 50) & (scores["row"] == 11), "chosen_logp"] -= 50
    found = of_probe(rows, scores, samples)
    assert found.falls["row"][0] == 11
    assert found.falls["change"].is_monotonic_increasing
    assert (found.alike["row"][0], found.alike["similarity"][0]) == (7, pytest.approx(18 / 19))
    assert "1 of 120 held-out pairs are nearly the same text (edit similarity of 0.8 and more)" in found.notes


def test_accuracies_and_shares_by_hand():
    """Four rows, four prompts: chosen -1, -1, +1, -1; rejected -2, 0, 0, -1."""
    rows = planted(n=4, prompts=4)[0]
    start = pd.DataFrame({"step": 0, "row": range(4), "chosen_logp": -10.0, "rejected_logp": [-11.0, -9.0, -9.0, -9.0]})
    end = start.assign(step=1, chosen_logp=[-11.0, -11.0, -9.0, -11.0], rejected_logp=[-13.0, -9.0, -9.0, -10.0])
    table = of_probe(rows, pd.concat([start, end]), planted()[2].head(0)).table.set_index("measure")
    assert table.loc["chosen, log-prob a response", "difference"] == -0.5
    assert table.loc["rejected, log-prob a response", "difference"] == -0.75
    assert table.loc["rows whose chosen response fell", "after"] == 0.75
    assert table.loc["accuracy by likelihood", ["before", "after"]].tolist() == [0.25, 0.375]
    assert table.loc["accuracy by implicit reward (a tie counts half)", "after"] == (1 + 0 + 1 + 0.5) / 4


def test_held_out_rewards_of_a_finished_run():
    rng = np.random.default_rng(0)
    texts = {
        "prompt": [f"p{i}" for i in range(80)],
        "chosen": "a b c",
        "rejected": ["d " * (1 + i % 5) for i in range(80)],
    }
    rewards = {f"{side}_rewards": rng.normal(mean, 0.05, 80) for side, mean in (("chosen", -0.1), ("rejected", -0.3))}
    table = pd.DataFrame({**texts, **rewards})
    found = of_rewards(table, beta=0.1)
    assert verdict(found, HARM) == diagnosis.BENIGN
    assert found.table.iloc[0]["difference"] == pytest.approx(table["chosen_rewards"].mean() / 0.1)
    assert found.table.iloc[0]["unit"] == "nats"
    assert any("no probe watched" in note for note in found.notes)
    assert any("nothing was sampled" in note for note in found.notes)
    assert of_rewards(table).table.iloc[0]["unit"] == "reward"
    assert verdict(of_rewards(table, is_change=False), HARM) == diagnosis.NO_CHANGE
    with pytest.raises(ValueError, match="held-out rewards lack the columns chosen_rewards; needed are prompt, chosen"):
        of_rewards(table.drop(columns="chosen_rewards"))


def test_one_step_is_no_diagnosis():
    rows, scores, samples = planted()
    with pytest.raises(ValueError, match=r"a diagnosis needs a step behind the first one; measured are 0$"):
        of_probe(rows, scores[scores["step"] == 0], samples[samples["step"] == 0])
    with pytest.raises(ValueError, match="measured are 0, 50"):
        of_probe(rows, scores, samples, step=7)


def test_it_prints_in_a_terminal_and_every_verdict_has_its_remedies():
    text = repr(of_probe(*planted(chosen=-1.0, rejected=-3.0, quality=-0.3)))
    assert "displacement, harmful\n  because chosen changed by -" in text
    assert "arXiv 2410.08847" in text
    assert (
        max(map(len, (line for line in text.splitlines() if not line.startswith("  - ") and "because" not in line)))
        < 140
    )
    words = [value for name, value in vars(diagnosis).items() if name.isupper() and isinstance(value, str)]
    for told in diagnosis.REMEDIES:
        assert told in words
