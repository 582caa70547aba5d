"""Step-DPO: three data stages, tokens without an end, resuming, bad input, real text, views, and sabotage."""

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
from small import Told, play, save_policy

from workbench import methods
from workbench.methods.align.step_dpo import method as step_dpo
from workbench.methods.align.step_dpo.experiment import ARMS, claims
from workbench.methods.align.step_dpo.view import WrongStep, accuracy_figure, rates_figure
from workbench.methods.experiment import Results, run_arm, run_seed
from workbench.runs.run import Run
from workbench.tasks.reasoning import step_pairs
from workbench.worlds.sum_facts import SumVerifier

CHECK = SumVerifier()


def config(**changes):
    return step_dpo.Config.at("smoke", **{"arms": ["step_dpo"], **changes})


@pytest.fixture(scope="module")
def trained(root):
    """One small run of three arms, its folder and its seed."""
    return play(step_dpo, config(arms=["step_dpo", "dpo", "ood"]), 0, root)


def table(run, name):
    return pd.read_parquet(run.folder / "pairs" / f"{name}.parquet")


# ------------------------------------------------------------------------------------------------------- data stages
def test_errors_are_wrong_and_located_at_their_first_wrong_step(trained):
    _, _, run, _ = trained
    errors, located = table(run, "train-1-errors"), table(run, "train-2-located")
    assert not any(CHECK.is_right(row.prompt, row.text) for row in errors.itertuples())
    assert errors.groupby("prompt").size().max() == 1  # max_errors
    for row in located.itertuples():
        before = CHECK.split(row.prefix)
        assert CHECK.first_wrong(row.prompt, before) is None
        assert CHECK.first_wrong(row.prompt, CHECK.split(row.prefix + row.rejected)) == len(before) == row.step
        assert row.text.startswith(row.prefix + row.rejected)


def test_pairs_are_one_step_behind_a_shared_prefix(trained):
    _, settings, run, _ = trained
    pairs = table(run, "train-pairs")
    assert 0 < pairs.groupby("prompt").ngroups <= settings.n_problems
    for row in pairs.itertuples():
        assert len(CHECK.split(row.chosen)) == len(CHECK.split(row.rejected)) == 1
        assert row.chosen.strip() != row.rejected.strip()
        assert row.full_rejected.startswith(row.prefix + row.rejected)
        assert CHECK.is_right(row.prompt, row.full_chosen)
        assert not CHECK.is_right(row.prompt, row.full_rejected)
    assert not pairs.duplicated(["prompt", "prefix", "chosen"]).any()


def test_whole_answers_are_independent_of_the_wrong_one(trained):
    """They do not go on from the wrong answer's beginning more often than chance has it."""
    _, _, run, _ = trained
    rows = table(run, "train-pairs")
    rows = rows[rows["prefix"] != ""]
    assert np.mean([row.full_chosen.startswith(row.prefix) for row in rows.itertuples()]) < 0.5


def located_by_hand():
    return pd.DataFrame(
        [{"prompt": "3 9 5", "text": "3 3 ; 9 13 ; 5 2 ; A 2", "step": 1, "prefix": "3 3 ;", "rejected": " 9 13 ;"}]
    )


CONTINUATIONS = [
    "3 3 ; 9 12 ; 5 1 ; A 1",  # good
    "3 3 ; 9 12 ; 5 1 ; A 1",  # the same again
    "3 3 ; 5 8 ; 9 1 ; A 1",  # good
    "3 3 ; 9 13 ; 5 2 ; A 2",  # wrong answer
    "3 3 ; 9 11 ; 5 1 ; A 1",  # right answer, wrong step
    "9 9 ; 5 14 ; 3 1 ; A 1",  # does not begin as it should
]


def rectified(monkeypatch, **options):
    monkeypatch.setattr(step_pairs, "solutions", lambda *a, **k: [[(text, True) for text in CONTINUATIONS]])
    task = type("Task", (), {"verifier": CHECK})()
    how: step_pairs.Drawing = None  # type: ignore[assignment]
    return step_pairs.rectify(task, how, located_by_hand(), n=6, **options)["chosen"].tolist()


def test_corrections_end_right_are_right_and_are_kept_once(monkeypatch):
    assert rectified(monkeypatch) == [" 9 12 ;", " 5 8 ;"]
    hidden = " 9 11 ;"  # a wrong step that the right end hides
    assert rectified(monkeypatch, check_steps=False) == [" 9 12 ;", " 5 8 ;", hidden]
    assert rectified(monkeypatch, most=1) == [" 9 12 ;"]


def test_sabotage_chosen_steps_of_wrong_final_answers_are_seen(monkeypatch):
    monkeypatch.setattr(SumVerifier, "is_right", lambda self, prompt, text: True)
    monkeypatch.setattr(SumVerifier, "is_oracle", False)
    with pytest.raises(AssertionError):
        test_corrections_end_right_are_right_and_are_kept_once(monkeypatch)


def test_solutions_without_a_located_step_are_set_aside(caplog):
    task = type("Task", (), {"verifier": CHECK})()
    errors = pd.DataFrame({"prompt": ["3 9 5"] * 2, "text": ["3 3 ; 9 12 ;", "3 4 ;"], "ended": [False, True]})
    with caplog.at_level(logging.WARNING):
        located, lost = step_pairs.localise(task, errors)
    assert located["step"].tolist() == [0]
    assert lost["reason"].tolist() == ["every step is called correct, and cut off at max_new_tokens"]
    assert "1 of 2 wrong solutions have no located step" in caplog.text


# ------------------------------------------------------------------------------------------------------------ tokens
def test_a_step_has_no_end_token_and_a_whole_answer_has_one(trained):
    task, settings, run, _ = trained
    policy, rows = task.start(0), table(run, "train-pairs")
    end = policy.tokenizer.eos_token_id
    for group, row in zip(
        step_dpo.group_pairs(task, policy, rows, settings, ARMS["step_dpo"]), rows.itertuples(), strict=True
    ):
        assert all(end not in ids for ids in group.responses_ids)
        assert policy.decode(group.prompt_ids) == f"{row.prompt} {row.prefix}".strip()
        assert policy.decode(group.responses_ids[1]) == row.rejected.strip()  # nothing of the steps behind it
    for group in step_dpo.group_pairs(task, policy, rows, settings, ARMS["dpo"]):
        assert all(ids[-1] == end and ids.count(end) == 1 for ids in group.responses_ids)


def test_outside_steps_are_the_same_in_letters(trained):
    task, settings, run, result = trained
    policy, rows = task.start(0), table(run, "train-pairs")
    own = step_dpo.group_pairs(task, policy, rows, settings, ARMS["step_dpo"])
    outside = step_dpo.group_pairs(task, policy, rows, settings, ARMS["ood"])
    assert all(
        a.responses_ids[0] != b.responses_ids[0] and a.responses_ids[1] == b.responses_ids[1]
        for a, b in zip(own, outside, strict=True)
    )
    arms = result["arms"]
    assert arms["ood"][0]["chosen_logp"] < arms["step_dpo"][0]["chosen_logp"]


def test_pairs_that_lose_their_problem_are_left_out(trained, caplog):
    task, _settings, run, _ = trained
    rows = table(run, "train-pairs").head(3)
    rows["prefix"] = "3 3 ; 9 12 ; 3 3 ; 9 12 ;"
    short = config(max_length=10, max_prompt_length=8)
    with caplog.at_level(logging.WARNING):
        assert step_dpo.group_pairs(task, task.start(0), rows, short, ARMS["step_dpo"]) == []
    said = "3 of 3 pairs lose the start of their problem at max_prompt_length=8; 3 that lose more than a fifth"
    assert said in caplog.text


# ----------------------------------------------------------------------------------------------------------- the run
def test_loss_starts_at_log_two_and_looks_are_kept(trained):
    _, _, run, result = trained
    assert Run(run.folder / "step_dpo" / "round-1").metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    before, after = result["arms"]["step_dpo"]
    assert before["margin"] == pytest.approx(0, abs=1e-6)
    assert after["held_out_loss"] != before["held_out_loss"]
    assert (run.folder / "step_dpo" / "round-1" / "weights.safetensors").is_file()
    assert list((run.folder / "step_dpo").glob("after-*.json"))
    assert result["counts"]["pairs"] == after["train_pairs"]


def test_killed_in_a_later_stage_it_goes_on_there(trained, tmp_path, monkeypatch):
    task, settings, _run, result = trained
    stages, real = [], step_dpo.rectify
    monkeypatch.setattr(
        step_dpo, "collect_errors", lambda *a, f=step_dpo.collect_errors, **k: (stages.append(1), f(*a, **k))[1]
    )

    def dies(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_dpo, "rectify", dies)
    with pytest.raises(KeyboardInterrupt):
        run_arm(step_dpo, task, settings, "step_dpo", 0, Run(tmp_path))
    monkeypatch.setattr(step_dpo, "rectify", real)
    assert run_arm(step_dpo, task, settings, "step_dpo", 0, Run(tmp_path)) == result["arms"]["step_dpo"]
    assert stages == [1, 1]  # once for training and once for held-out problems, not once more after the kill


# ---------------------------------------------------------------------------------------------------------- sabotage
def test_sabotage_an_end_token_behind_a_step_is_seen(trained, monkeypatch):
    """In the tokens: the small world's loss hardly shows it, because chosen and rejected would both end."""
    real, end = step_dpo.group_pairs, trained[0].start(0).tokenizer.eos_token_id

    def ending(*arguments):
        return [g._replace(responses_ids=[[*ids, end] for ids in g.responses_ids]) for g in real(*arguments)]

    monkeypatch.setattr(step_dpo, "group_pairs", ending)
    with pytest.raises(AssertionError):
        test_a_step_has_no_end_token_and_a_whole_answer_has_one(trained)


def test_sabotage_later_steps_in_the_rejected_one_are_seen(trained, tmp_path):
    """The rejected step with all that followed it: more tokens to push down, most of them right in themselves."""
    task, settings, run, _ = trained
    rows = table(run, "train-pairs")
    rest = [full.removeprefix(prefix) for full, prefix in zip(rows.full_rejected, rows.prefix, strict=True)]
    broken = Run(tmp_path)
    broken.child("pairs").table("train-pairs", lambda: rows.assign(rejected=rest))
    with pytest.raises(AssertionError):
        test_pairs_are_one_step_behind_a_shared_prefix((task, settings, broken, None))


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"), ({"n_continuations": 0}, "n_continuations = 0")],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        step_dpo.Config.at("tiny", **changes)


def test_nothing_to_train_on_says_what_happened(trained, tmp_path):
    task, settings, run, _ = trained
    for split in ("train", "test"):
        Run(tmp_path / "pairs").table(f"{split}-pairs", lambda: table(run, "train-pairs").head(0))
    nothing = r"no pair is left to train on or to test with; what happened to the problems: .*'pairs': 0"
    with pytest.raises(ValueError, match=nothing):
        step_dpo.train_arm(task, settings, ARMS["step_dpo"], 0, Run(tmp_path / "arm"))


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    said = "Let's think step by step.\nStep 1: 3 + 4 = 7.\n#### 7"
    return save_policy(tmp_path_factory.mktemp("model"), said)


def real_pairs(shared, path, **broken):
    """Step pairs made of real solutions: the right second line against another number."""
    rows = []
    for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:60]:
        row = json.loads(line)
        steps = row["answer"].split("\n")
        if len(steps) > 2:
            begin = f"Let's think step by step.\nStep 1: {steps[0]}\nStep 2:"
            sides = {"chosen": f" {steps[1]}", "rejected": f" {steps[1]} So it is 0."}
            rows.append({"prompt": row["question"], "initial_reason_steps": begin, **sides, "answer": steps[-1]})
    path.write_text("\n".join(json.dumps({**row, **broken}) for row in rows))
    return str(path)


def test_real_step_pairs_train_for_some_steps(shared, real_model, tmp_path, runs_root):
    dataset = real_pairs(shared, tmp_path / "pairs.jsonl")
    changes = {"max_length": 900, "max_prompt_length": 800, "n_problems": 16, "max_new_tokens": 4, "test_size": 4}
    experiment = methods.Experiment(
        "step_dpo", scale="smoke", model=str(real_model), dataset=dataset, seeds=[0, 1, 2], overrides=changes
    )
    results = Results([run_seed(step_dpo, experiment.task, experiment.config, 0, experiment.run.child("seed-0"))] * 3)
    before, after = results[0]["arms"]["step_dpo"]
    assert len(Run(experiment.run.folder / "seed-0/step_dpo/round-1").metrics()) == 2
    assert after["held_out_loss"] < before["held_out_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert after["step_nll"] != before["step_nll"]
    found = claims(experiment, results).verdicts()
    assert {"C1", "C5", "C6", "C7"} <= set(found)


def test_a_checker_that_says_nothing_readable_leaves_everything_unlocalised(
    shared, real_model, tmp_path, runs_root, caplog
):
    """The whole pipeline on real problems with a random model as policy and as checker."""
    settings = step_dpo.Config.at("smoke", True, checker=str(real_model), n_problems=4, n_samples=1)
    rows = (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:12]
    (tmp_path / "problems.jsonl").write_text("\n".join(rows))
    task = step_dpo.open_task(settings, model=str(real_model), dataset=str(tmp_path / "problems.jsonl"))
    run = Run(tmp_path / "run")
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=r"no pair is left.*no decision line"):
        run_seed(step_dpo, task, settings, 0, run)
    lost = table(run, "train-2-unlocalised")
    assert len(lost) == 4
    assert lost["reason"].str.startswith("no decision line").all()
    assert lost["text"].str.startswith("Let's think step by step.\nStep 1:").all()
    assert "4 of 4 wrong solutions have no located step" in caplog.text


def test_real_data_that_cannot_feed_an_arm_is_refused(shared, real_model, tmp_path):
    pairs = real_pairs(shared, tmp_path / "pairs.jsonl")
    for arms, message in (
        (["dpo"], r"arms \['dpo'\] compare whole answers"),
        (["ood"], r"arms \['ood'\] need another writer"),
    ):
        settings = step_dpo.Config.at("smoke", True, arms=arms)
        with pytest.raises(ValueError, match=message):
            step_dpo.open_task(settings, model=str(real_model), dataset=pairs)


def test_a_pair_without_its_prefix_column_is_named(shared, real_model, tmp_path):
    dataset = real_pairs(shared, tmp_path / "pairs.jsonl", initial_reason_steps=None)
    task = step_dpo.open_task(step_dpo.Config.at("smoke", True), model=str(real_model), dataset=dataset)
    with pytest.raises(ValueError, match="column 'initial_reason_steps': text is needed; got None"):
        task.step_pairs("train", 0)


def test_problems_without_an_answer_are_refused(real_model, tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"question": "1+1?"}))
    with pytest.raises(ValueError, match="row 0: columns 'prompt' and 'answer' are needed"):
        step_dpo.open_task(
            step_dpo.Config.at("smoke", True, arms=["dpo"]), model=str(real_model), dataset=str(tmp_path / "bad.jsonl")
        )


# ------------------------------------------------------------------------------------------------------------ claims
GOOD = {"step_dpo": (0.38, 0.65, 0.80, 0.13), "dpo": (0.25, 0.50, 0.68, 0.08), "shuffled": (0.17, 0.38, 0.5, 0.0)}
GOOD |= {"dpo_shuffled": (0.17, 0.38, 0.5, 0.0), "ood": (0.25, 0.5, 0.8, 0.13)}
GOOD |= {"ood_shuffled": (0.17, 0.38, 0.5, 0.0)}


def told(**arms):
    """Made-up results of five seeds: accuracy, valid steps, held-out accuracy and margin of each arm after training."""
    rng = np.random.default_rng(1)

    def both(arm, numbers):
        keys = ("quality", "valid_steps", "reward_accuracy", "margin")
        after = {key: value + rng.normal(0, 0.01) for key, value in zip(keys, numbers, strict=True)}
        same = {"chosen_logp": -9.0 if "ood" in arm else -2.0, "train_pairs": 300}
        after |= {"validation": after["quality"], "quality_half": (after["quality"] + 0.17) / 2, **same}
        return [{"quality": 0.17 + rng.normal(0, 0.01), **same}, after]

    return Results({"arms": {arm: both(arm, numbers) for arm, numbers in arms.items()}} for _ in Told.seeds)


def test_verdicts_of_a_method_that_works():
    found = claims(Told(), told(**GOOD)).verdicts()
    shown = {"C1", "C2", "C2 same rate", "C2 steps", "C3 accuracy", "C3 margin", "C4", "C7"}
    assert {id for id, verdict in found.items() if verdict == "shown in small"} == shown
    assert found["C5"] == found["C6"] == "needs full scale"


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"step_dpo": GOOD["shuffled"]}, {"C1", "C2", "C3 accuracy", "C4", "C7"}),  # chosen taken from wrong answers
        ({"step_dpo": (0.02, 0.1, 0.8, 0.3)}, {"C1", "C2", "C2 steps"}),  # EOS token on steps: it stops after one
        ({"step_dpo": (0.38, 0.45, 0.8, 0.9)}, {"C2 steps"}),  # rejected holds later steps: margin up, validity down
        ({"shuffled": GOOD["step_dpo"]}, {"C1", "C2"}),  # labels do not matter
        ({"ood": (0.1, 0.3, 0.8, 0.1)}, {"C4"}),  # outside corrections below the start
        ({"dpo": (0.1, 0.3, 0.6, 0.08)}, {"C2"}),  # DPO below the start
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    verdicts = claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {verdicts[id] for id in lost} == {"not shown"}


# ------------------------------------------------------------------------------------------------------------- views
PAIRS = pd.DataFrame(
    {"prompt": ["<b>3</b> 9 5"] * 7, "prefix": ["", "3 3 ;"] + ["x"] * 5, "chosen": [" 9 12 ;"] * 7}
    | {"rejected": [" <script>alert(1)</script>"] * 7, "margin": [-0.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
)


def test_text_is_escaped_everywhere():
    view = WrongStep(PAIRS)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure().to_json()):
        assert "<script>" not in text.replace("\\u003c", "<")
        assert "<b>3</b>" not in text.replace("\\u003c", "<")
    assert "&lt;script&gt;" in view.html(0)


def test_static_face_shows_the_first_problems_and_says_where_it_is():
    bundle = WrongStep(PAIRS, shown=2)._repr_mimebundle_()
    assert bundle["text/html"].count("first wrong step") == 2
    assert "1 of 7, margin -0.500" in bundle["text/html"]
    assert "(nothing yet)" in bundle["text/html"]


def test_buttons_and_slider_move_the_view():
    view = WrongStep(PAIRS)
    bar, text = view.widget().children
    back, slider, forth = bar.children
    forth.click()
    assert (slider.value, text.value) == (1, view.html(1))
    back.click()
    back.click()  # stays at the first
    assert text.value == view.html(0)
    slider.value = 6
    assert text.value == view.html(6)


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no step pairs to show"):
        WrongStep(PAIRS.head(0))


def test_figures_state_their_finding():
    numbers = {"valid_steps": 0.5, "sampled": 0.3, "closes": 1.0}
    rows = [
        {"arm": arm, "seed": seed, "round": t, "quality": quality if t else 0.1, **numbers}
        for arm, quality in (("step_dpo", 0.4), ("dpo", 0.3), ("step_dpo_slow", 0.2))
        for seed in (0, 1)
        for t in (0, 1)
    ]
    evaluations = pd.DataFrame(rows)
    display = accuracy_figure(evaluations)
    said = "Step-DPO answers 40% right, from 10% at the start; DPO on whole answers 30%"
    assert display.figure().layout.title.text == said
    assert set(display.frame()["arm"]) == {"step_dpo", "dpo"}
    assert set(rates_figure(evaluations).frame()["rate"]) == {1.0, 1 / 3}
    assert rates_figure(evaluations[evaluations["arm"] == "dpo"]).startswith("This run sweeps no learning rate")
