"""Views of self-play: tables behind the figures, cycles by hand, text escaped, tasks that measure less."""

import types

import numpy as np
import pandas as pd
import pytest

from workbench.methods.align import self_play_views
from workbench.methods.align.sppo.experiment import ARMS
from workbench.runs.run import Run
from workbench.stats import games as arithmetic

WINS = pd.DataFrame([[0.5, 0.8, 0.3], [0.2, 0.5, 0.7], [0.7, 0.3, 0.5]], index=["a", "b", "c"], columns=["a", "b", "c"])


def experiment(tmp_path, task=None):
    method, config = types.SimpleNamespace(name="sppo"), types.SimpleNamespace(rounds=2, ARMS=ARMS)
    return types.SimpleNamespace(method=method, run=Run(tmp_path), seeds=[0], config=config, task=task)


def results(**columns):
    """Two arms, two seeds, rounds 0 to 2."""
    rows = []
    for arm, shift in (("sppo", 0.0), ("dpo_1", 0.1)):
        for seed in (0, 1):
            for t in range(3):
                up, down = (0.4 - shift, -0.6 - shift) if t else (np.nan, np.nan)
                row = {"arm": arm, "seed": seed, "round": t, "winner_moved": up, "loser_moved": down}
                row |= {"exploitability": 0.3 - 0.1 * t + shift, "average_exploitability": 0.3 - 0.05 * t + shift}
                row |= {"win_against_start": 0.5 + 0.1 * t, "outside_win_against_start": 0.5 + 0.05 * t}
                rows.append(row | {"quality": 0.5 + (0.2, 0.3, 0.1)[t], **columns})
    return pd.DataFrame(rows)


def test_exploitability_has_a_panel_for_last_and_for_average(tmp_path):
    shown = self_play_views.exploitability_figure(experiment(tmp_path), results())
    table = shown.frame().set_index(["panel", "arm", "round"])["mean"]
    assert table["exploitability", "sppo", 2] == pytest.approx(0.1)
    assert table["average_exploitability", "dpo_1", 2] == pytest.approx(0.3)
    assert "0.200 on average over its rounds, 0.100 in the last" in shown.figure().layout.title.text


def test_movement_shows_both_sides(tmp_path):
    shown = self_play_views.movement_figure(experiment(tmp_path), results(), ["sppo", "dpo_1"])
    means = shown.frame().groupby(["panel", "arm"])["mean"].mean()
    assert means["winner_moved", "sppo"] == pytest.approx(0.4)
    assert means["loser_moved", "dpo_1"] == pytest.approx(-0.7)
    assert set(shown.frame()["round"]) == {1, 2}
    assert "winners by +0.40 and losers by -0.60" in shown.figure().layout.title.text


def test_rounds_figure_says_what_the_own_arm_did(tmp_path):
    shown = self_play_views.rounds_figure(experiment(tmp_path), results(), "win_against_start", ["sppo"])
    assert set(shown.frame().arm) == {"sppo"}
    assert shown.figure().layout.title.text == "SPPO: wins against the start 0.500 in round 0, 0.700 in round 2"


def test_what_a_task_does_not_measure_is_a_line_of_text(tmp_path):
    short = results().drop(columns=["average_exploitability", "win_against_start", "outside_win_against_start"])
    text = experiment(tmp_path, task=object())
    assert "does not measure exploitability" in self_play_views.exploitability_figure(text, short)
    assert "does not measure leak" in self_play_views.rounds_figure(text, short, "leak")
    assert "exact win rates between policies" in self_play_views.matchup_figure(text, "sppo")
    assert list(self_play_views.judges_table(short, ["sppo"]).columns) == []


def test_best_round_is_the_one_with_the_highest_quality_after_training():
    assert self_play_views.best_rounds(results()).loc["sppo"].tolist() == [1, 1]


def test_judges_stand_side_by_side():
    table = self_play_views.judges_table(results(), ["sppo", "dpo_1"])
    assert table.loc["sppo"].tolist() == [0.7, 0.6]


def test_cycles_by_hand():
    assert self_play_views.cycles(WINS) == [("a", "b", "c")]
    assert self_play_views.cycles(WINS, margin=0.25) == []
    assert self_play_views.cycles(WINS.T) == [("a", "c", "b")]
    transitive = pd.DataFrame(
        [[0.5, 0.8, 0.9], [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]], index=list("abc"), columns=list("abc")
    )
    assert self_play_views.cycles(transitive) == []


class Rock:
    """Rock, paper, scissors as an enumerated task with one prompt."""

    preference = 0.5 + 0.35 * np.array([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]]])
    gold = np.array([[0.0, 0.0, 1.0]])

    def table(self, policy): ...

    def measure(self, table): ...

    def win_rates(self, table, prompts, responses): ...

    def win_rate(self, table, opponent, *, outside_judge=False):
        return float(arithmetic.win_rate(table, opponent, self.preference).mean())


def test_matchups_read_the_stored_policies_and_find_the_circle(tmp_path):
    run = Run(tmp_path).child("seed-0").child("sppo")
    for t, policy in enumerate(np.eye(3)):
        run.child(f"round-{t}").table("policy", lambda p=policy: pd.DataFrame([p]).rename(columns=str))
    setting = experiment(tmp_path, task=Rock())
    wins = self_play_views.matchups(setting, "sppo")
    assert wins.loc["round 1", "start"] == pytest.approx(0.85)
    assert wins.loc["start", "round 2"] == pytest.approx(0.85)
    shown = self_play_views.matchup_figure(setting, "sppo")
    assert "1 cycles of three" not in shown.figure().layout.title.text  # the teacher is round 2 again: two of them
    assert shown.figure().layout.title.text.startswith("2 cycles of three")
    assert list(shown.frame().policy) == ["start", "round 1", "round 2", "teacher"]


def test_names_are_escaped():
    wins = WINS.set_axis(["<script>", "b", "c"], axis=0).set_axis(["<script>", "b", "c"], axis=1)
    drawn = self_play_views.wins_figure(wins).figure().to_json()
    assert "<script>" not in drawn.replace("\\u003c", "<")


def test_pairs_are_those_of_the_round(tmp_path):
    moved = pd.DataFrame(
        {"prompt": ["p"] * 2, "chosen": ["a", "b"], "rejected": ["c", "d"], "chosen_rewards": [1.0, -1.0]}
        | {"rejected_rewards": [0.0, 0.5]}
    )
    Run(tmp_path).child("seed-0").child("sppo").child("round-1").table("moved", lambda: moved)
    assert self_play_views.pairs(experiment(tmp_path), "sppo").margin.tolist() == [-1.5, 1.0]
