"""The arena: everyone pays the same, a planted order comes out, and verdicts follow the numbers."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from workbench.methods.experiment import run_arm, run_seed
from workbench.runs.run import Run
from workbench.studies import arena
from workbench.studies import arena_view as view

ARMS = [arm for arm in arena.COMPETITORS if arm != "mpo"]  # so few pairs make no reward model; MPO refuses then
PRICED_APART = ["sft", "spin", "dpo", "sppo", "dno", "step_dpo", "sphere", "dr_po"]  # one of each way to a common price
SMALL = {**arena.SMALL_PRICE, "responses": 240, "test_size": 24, "world": arena.SMALL_WORLD}


class Told:
    """An experiment of which only the results matter."""

    scale, seeds = "tiny", [0, 1, 2, 3, 4]

    def __init__(self, arms, run=None):
        self.config, self.run = arena.Config.at("tiny", arms=arms), run


def told(gains, rng):
    """Results in which each arm gains what it is told to, with a little noise."""

    def rows(gain):
        return [{"quality": 0.2}, {"quality": 0.2 + gain + 0.01 * rng.standard_normal()}]

    return [{"arms": {arm: rows(gain) for arm, gain in gains.items()}} for _ in Told.seeds]


def verdicts(gains):
    return arena.claims(Told(list(gains)), told(gains, np.random.default_rng(0))).verdicts()


def test_verdicts_follow_the_numbers():
    found = verdicts({"dpo": 0.2, "step_dpo": 0.3, "sppo": 0.2, "dpo_shuffled": 0.0, "orpo": 0.0})
    assert found["dpo"] == found["step_dpo"] == found["steps: step_dpo > dpo"] == "shown in small"
    assert found["orpo"] == found["rounds: sppo > dpo"] == "not shown"
    assert verdicts({"dpo": 0.2, "dpo_shuffled": 0.2}) == {"dpo": "not shown"}  # shuffled labels gain as much


@pytest.fixture
def tournament(tmp_path):
    """Samples of three competitors with planted scores: dpo above sppo above the start, every third problem a tie."""
    experiment, rng = Told(["dpo", "sppo"], Run(tmp_path)), np.random.default_rng(1)
    for seed in experiment.seeds:
        base = rng.random(90)
        for name, lead in (("dpo/start", -0.2), ("dpo", 0.2), ("sppo", 0.0)):
            scores = np.where(np.arange(90) % 3, base + lead + 0.3 * rng.standard_normal(90), 1.0)
            answers = pd.DataFrame({"prompt": "p", "answer": "<script>", "score": scores})
            experiment.run.child(f"seed-{seed}").child(name).table("answers", lambda answers=answers: answers)
    return experiment


def results_of(experiment):
    numbers = dict.fromkeys(arena.SHOWN, 0.5)
    return [{"arms": {arm: [numbers, numbers] for arm in experiment.config.arms}} for _ in experiment.seeds]


def test_the_planted_order_comes_out(tournament):
    table = arena.standings(tournament, results_of(tournament))
    assert table.competitor.tolist() == ["DPO", "SPPO", "the start"]
    assert abs(table.strength.sum()) < 1e-6
    assert table.lower[0] > table.upper[2]


def test_equal_samples_have_equal_strengths(tournament):
    strengths = arena.tournament(tournament, 0, ["sppo", "dpo", "dpo"])
    assert strengths[1] == pytest.approx(strengths[2])
    assert strengths[1] > strengths[0]


def test_views_hold_every_competitor(tournament):
    table = arena.standings(tournament, results_of(tournament))
    for shown in (view.ranking_figure(table), view.quality_figure(table), view.quality_figure(table, "cpu_seconds")):
        assert sum(len(trace.y) for trace in shown.figure().data) == len(table) == len(shown.frame())
    assert "DPO is strongest" in view.ranking_figure(table).figure().layout.title.text
    assert view.price_table(table)["generated tokens"].dtype == int
    with pytest.raises(ValueError, match="against must be one of"):
        view.quality_figure(table, "beauty")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 50}, "steps must be a multiple of 40"),
        ({"arms": ["gpt"]}, r"unknown arms \['gpt'\]; known: sft, spin"),
        ({"learning_rates": ["fast"]}, "learning_rates"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        arena.Config.at("tiny", **changes)


def test_needs_its_world_and_its_control():
    with pytest.raises(ValueError, match="leave both empty, and run single methods on your data"):
        arena.open_task(arena.Config.at("tiny"), model="x", dataset="y.jsonl")
    with pytest.raises(ValueError, match="need the control 'dpo_shuffled'"):
        verdicts({"dpo": 0.1})


@pytest.fixture(scope="module", params=[PRICED_APART, pytest.param(ARMS, marks=pytest.mark.exhaustive)], ids=len)
def played(request, tmp_path_factory):
    """Competitors once, small: one of each kind in `make test`, every one in `make test-all`."""
    config = arena.Config.at("tiny", **SMALL, arms=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        task, run = arena.open_task(config, device="cpu"), Run(tmp_path_factory.mktemp("arena"))
        yield task, config, run, run_seed(arena, task, config, 0, run)["arms"]


@pytest.mark.slow
def test_everyone_takes_the_same_steps_from_the_same_start_and_generates_about_the_same(played):
    """Samples differ in length, and who makes pairs behind the first error cannot know where it will be."""
    _, config, _, arms = played
    assert {arm: end["optimizer_steps"] for arm, (_, end) in arms.items()} == dict.fromkeys(config.arms, 40)
    assert len({begin["quality"] for begin, _ in arms.values()}) == 1
    assert all(begin["kl_nats"] == 0 != end["kl_nats"] for begin, end in arms.values())
    spent = {arm: end["generated_tokens"] for arm, (_, end) in arms.items()}
    assert spent.pop("sft") == 0
    assert spent.pop("spin") > 0  # limited by its steps at this size
    assert max(spent.values()) < 2 * min(spent.values())


@pytest.mark.slow
def test_an_attempt_that_was_killed_starts_over(played, tmp_path, monkeypatch):
    """Its meter must see the whole of it: a resumed half would look cheap."""
    task, config, _, arms = played
    run = Run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(arena, "last_weights", lambda folder: pytest.fail("killed"))
        draw = partial(arena.sample, task.start(0), ["1 2"], n=50, max_new_tokens=4)
        patch.setattr(arena.dpo, "train_arm", lambda *_: (draw(), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run_arm(arena, task, config, "dpo", 0, run)
    (tmp_path / "dpo" / "rate-0.0002" / "run").mkdir(parents=True, exist_ok=True)
    (tmp_path / "dpo" / "rate-0.0002" / "run" / "left.txt").write_text("half")
    again = run_arm(arena, task, config, "dpo", 0, run)
    same = {key: value for key, value in arms["dpo"][-1].items() if key != "cpu_seconds"}
    assert {key: again[-1][key] for key in same} == pytest.approx(same)
    assert not list(tmp_path.glob("**/left.txt"))
