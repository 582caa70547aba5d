"""Step-DPO: the three data stages, tokens without an end, resuming, bad input, real text, and what sabotage does."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import methods
from workbench.methods.align.step_dpo import method as step_dpo
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.tasks.reasoning import step_pairs
from workbench.worlds.sum_facts import SumVerifier

CHECK = SumVerifier()


def config(**changes):
    return step_dpo.Config.at("smoke", **{"arms": ["step_dpo"], **changes})


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One small run of three arms, its folder and its seed."""
    folder = tmp_path_factory.mktemp("step_dpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        settings = config(arms=["step_dpo", "dpo", "ood"])
        task = step_dpo.open_task(settings)
        run = Run(folder / "seed-0")
        return task, settings, run, step_dpo.run(task, settings, 0, run)


def table(run, name):
    return pd.read_parquet(run.folder / "pairs" / f"{name}.parquet")


# ------------------------------------------------------------------------------------------------------- data stages
def test_errors_are_wrong_and_located_at_their_first_wrong_step(played):
    _, _, run, _ = played
    errors, located = table(run, "train-1-errors"), table(run, "train-2-located")
    assert not any(CHECK.is_right(row.prompt, row.text) for row in errors.itertuples())
    assert errors.groupby("prompt").size().max() == 1  # max_errors
    for row in located.itertuples():
        before = CHECK.split(row.prefix)
        assert CHECK.first_wrong(row.prompt, before) is None
        assert CHECK.first_wrong(row.prompt, CHECK.split(row.prefix + row.rejected)) == len(before) == row.step
        assert row.text.startswith(row.prefix + row.rejected)


def test_pairs_are_one_step_behind_a_shared_prefix(played):
    _, settings, run, _ = played
    pairs = table(run, "train-pairs")
    assert 0 < pairs.groupby("prompt").ngroups <= settings.n_problems
    for row in pairs.itertuples():
        assert len(CHECK.split(row.chosen)) == len(CHECK.split(row.rejected)) == 1
        assert row.chosen.strip() != row.rejected.strip()
        assert row.full_rejected.startswith(row.prefix + row.rejected)
        assert CHECK.is_right(row.prompt, row.full_chosen)
        assert not CHECK.is_right(row.prompt, row.full_rejected)
    assert not pairs.duplicated(["prompt", "prefix", "chosen"]).any()


def test_whole_answers_are_independent_of_the_wrong_one(played):
    """They do not go on from the wrong answer's beginning more often than chance has it."""
    _, _, run, _ = played
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
    assert rectified(monkeypatch, check_steps=False) == [
        " 9 12 ;",
        " 5 8 ;",
        " 9 11 ;",
    ]  # a right end hides a wrong step
    assert rectified(monkeypatch, most=1) == [" 9 12 ;"]


def test_chosen_from_wrong_final_answers_would_be_seen(monkeypatch):
    """Sabotage: with every continuation taken for right, a wrong step becomes chosen."""
    monkeypatch.setattr(SumVerifier, "is_right", lambda self, prompt, text: True)
    monkeypatch.setattr(SumVerifier, "is_oracle", False)
    chosen = rectified(monkeypatch)
    assert any(CHECK.first_wrong("3 9 5", ["3 3 ;", step]) is not None for step in chosen)


def test_solutions_without_a_located_step_are_set_aside(caplog):
    task = type("Task", (), {"verifier": CHECK})()
    errors = pd.DataFrame({"prompt": ["3 9 5"] * 2, "text": ["3 3 ; 9 12 ;", "3 4 ;"], "ended": [False, True]})
    with caplog.at_level(logging.WARNING):
        located, lost = step_pairs.localise(task, errors)
    assert located["step"].tolist() == [0]
    assert lost["reason"].tolist() == ["every step is called correct, and cut off at max_new_tokens"]
    assert "1 of 2 wrong solutions have no located step" in caplog.text


# ------------------------------------------------------------------------------------------------------------ tokens
def test_a_step_has_no_end_token_and_a_whole_answer_has_one(played):
    task, settings, run, _ = played
    policy, rows = task.start(0), table(run, "train-pairs")
    end = policy.tokenizer.eos_token_id
    for group, row in zip(
        step_dpo.group_pairs(task, policy, rows, settings, step_dpo.ARMS["step_dpo"]), rows.itertuples(), strict=True
    ):
        assert all(end not in ids for ids in group.responses_ids)
        assert policy.decode(group.prompt_ids) == f"{row.prompt} {row.prefix}".strip()
        assert policy.decode(group.responses_ids[1]) == row.rejected.strip()  # nothing of the steps behind it
    for group in step_dpo.group_pairs(task, policy, rows, settings, step_dpo.ARMS["dpo"]):
        assert all(ids[-1] == end and ids.count(end) == 1 for ids in group.responses_ids)


def test_outside_steps_are_the_same_in_letters(played):
    task, settings, run, result = played
    policy, rows = task.start(0), table(run, "train-pairs")
    own = step_dpo.group_pairs(task, policy, rows, settings, step_dpo.ARMS["step_dpo"])
    outside = step_dpo.group_pairs(task, policy, rows, settings, step_dpo.ARMS["ood"])
    assert all(
        a.responses_ids[0] != b.responses_ids[0] and a.responses_ids[1] == b.responses_ids[1]
        for a, b in zip(own, outside, strict=True)
    )
    arms = result["arms"]
    assert arms["ood"][0]["chosen_logp"] < arms["step_dpo"][0]["chosen_logp"]


def test_pairs_that_lose_their_problem_are_left_out(played, caplog):
    task, _settings, run, _ = played
    rows = table(run, "train-pairs").head(3)
    rows["prefix"] = "3 3 ; 9 12 ; 3 3 ; 9 12 ;"
    short = config(max_length=10, max_prompt_length=8)
    with caplog.at_level(logging.WARNING):
        assert step_dpo.group_pairs(task, task.start(0), rows, short, step_dpo.ARMS["step_dpo"]) == []
    assert (
        "3 of 3 pairs lose the start of their problem at max_prompt_length=8; 3 that lose more than a fifth"
        in caplog.text
    )


# ----------------------------------------------------------------------------------------------------------- the run
def test_loss_starts_at_log_two_and_looks_are_kept(played):
    _, _, run, result = played
    assert Run(run.folder / "step_dpo" / "round-1").metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    before, after = result["arms"]["step_dpo"]
    assert before["margin"] == pytest.approx(0, abs=1e-6)
    assert after["held_out_loss"] != before["held_out_loss"]
    assert (run.folder / "step_dpo" / "round-1" / "weights.safetensors").is_file()
    assert list((run.folder / "step_dpo").glob("after-*.json"))
    assert result["counts"]["pairs"] == after["train_pairs"]


def test_a_second_call_computes_nothing(played, monkeypatch):
    task, settings, run, result = played
    monkeypatch.setattr(step_dpo, "play", lambda *a: pytest.fail("played again"))
    assert step_dpo.run(task, settings, 0, run) == result


def test_killed_in_a_later_stage_it_goes_on_there(played, tmp_path, monkeypatch):
    task, settings, _run, result = played
    stages, real = [], step_dpo.rectify
    monkeypatch.setattr(
        step_dpo, "collect_errors", lambda *a, f=step_dpo.collect_errors, **k: (stages.append(1), f(*a, **k))[1]
    )

    def dies(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_dpo, "rectify", dies)
    with pytest.raises(KeyboardInterrupt):
        step_dpo.run_arm(task, settings, "step_dpo", 0, Run(tmp_path))
    monkeypatch.setattr(step_dpo, "rectify", real)
    assert step_dpo.run_arm(task, settings, "step_dpo", 0, Run(tmp_path)) == result["arms"]["step_dpo"]
    assert stages == [1, 1]  # once for training and once for held-out problems, not once more after the kill


# ---------------------------------------------------------------------------------------------------------- sabotage
def trained(played, folder, rows=None):
    """Step-DPO for longer, on the pairs that are there or on `rows`: its numbers."""
    task, settings, run, _ = played
    settings = replace(settings, epochs=6, learning_rate=1e-3, batch_size=8)
    pairs = Run(folder / "pairs")
    for split in ("train", "test"):
        pairs.table(f"{split}-pairs", lambda split=split: (rows or {}).get(split, table(run, f"{split}-pairs")))
    return step_dpo.play(task, settings, step_dpo.ARMS["step_dpo"], 0, Run(folder / "arm"), pairs)[-1]


def test_sabotage_an_end_token_behind_a_step_is_seen(played, monkeypatch):
    """In the tokens: the small world's loss hardly shows it, because chosen and rejected would both end."""
    real, end = step_dpo.group_pairs, played[0].start(0).tokenizer.eos_token_id

    def ending(*arguments):
        return [g._replace(responses_ids=[[*ids, end] for ids in g.responses_ids]) for g in real(*arguments)]

    monkeypatch.setattr(step_dpo, "group_pairs", ending)
    with pytest.raises(AssertionError):
        test_a_step_has_no_end_token_and_a_whole_answer_has_one(played)


def test_sabotage_later_steps_in_the_rejected_one_inflate_the_margin(played, tmp_path):
    """The rejected step with all that followed it: more tokens to push down, most of them right in themselves."""
    after = trained(played, tmp_path / "right")
    task, settings, run, _ = played
    long = {split: table(run, f"{split}-pairs") for split in ("train", "test")}
    for rows in long.values():
        rows["rejected"] = [
            full.removeprefix(prefix) for full, prefix in zip(rows.full_rejected, rows.prefix, strict=True)
        ]
    broken = Run(tmp_path / "broken-pairs")
    broken.child("pairs").table("train-pairs", lambda: long["train"])
    with pytest.raises(AssertionError):
        test_pairs_are_one_step_behind_a_shared_prefix((task, settings, broken, None))
    inflated = trained(played, tmp_path / "broken", long)
    assert inflated["margin"] > 1.3 * after["margin"]


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"),
        ({"arms": ["spin"]}, r"unknown arms \['spin'\]; known: step_dpo"),
        ({"n_continuations": 0}, "n_continuations = 0"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        step_dpo.Config.at("tiny", **changes)


def test_nothing_to_train_on_says_what_happened(played, tmp_path):
    task, settings, *_ = played
    pairs = Run(tmp_path / "pairs")
    for split in ("train", "test"):
        pairs.table(f"{split}-pairs", lambda: table(played[2], "train-pairs").head(0))
    with pytest.raises(
        ValueError, match=r"no pair is left to train on or to test with; what happened to the problems: .*'pairs': 0"
    ):
        step_dpo.play(task, settings, step_dpo.ARMS["step_dpo"], 0, Run(tmp_path), pairs)


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    """A small random model in the hub's format that can write any text."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bpe_tokenizer(["Let's think step by step.\nStep 1: 3 + 4 = 7.\n#### 7"] * 3, vocab_size=300)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=1024, seed=0)
    Policy(model, tokenizer).save(folder)
    return folder


def real_pairs(shared, path, **broken):
    """Step pairs made of real solutions: the right second line against another number."""
    rows = []
    for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:60]:
        row = json.loads(line)
        steps = row["answer"].split("\n")
        if len(steps) > 2:
            rows.append(
                {
                    "prompt": row["question"],
                    "initial_reason_steps": f"Let's think step by step.\nStep 1: {steps[0]}\nStep 2:",
                    "chosen": f" {steps[1]}",
                    "rejected": f" {steps[1]} So it is 0.",
                    "answer": steps[-1],
                }
            )
    path.write_text("\n".join(json.dumps({**row, **broken}) for row in rows))
    return str(path)


def test_real_step_pairs_train_for_some_steps(shared, real_model, tmp_path, runs_root):
    dataset = real_pairs(shared, tmp_path / "pairs.jsonl")
    changes = {"max_length": 900, "max_prompt_length": 800, "n_problems": 16, "max_new_tokens": 4, "test_size": 4}
    experiment = methods.Experiment(
        "step_dpo", scale="smoke", model=str(real_model), dataset=dataset, seeds=[0, 1, 2], overrides=changes
    )
    results = [
        step_dpo.run(experiment.task, experiment.config, seed, experiment.run.child(f"seed-{seed}")) for seed in [0]
    ] * 3
    before, after = results[0]["arms"]["step_dpo"]
    assert len(Run(experiment.run.folder / "seed-0/step_dpo/round-1").metrics()) == 2
    assert after["held_out_loss"] < before["held_out_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert after["step_nll"] != before["step_nll"]
    found = step_dpo.claims(experiment, results).verdicts()
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
        step_dpo.run(task, settings, 0, run)
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
    with pytest.raises(ValueError, match="give both for real text, or neither"):
        step_dpo.open_task(config(), model="m")


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
class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


GOOD = {
    "step_dpo": (0.38, 0.65, 0.80, 0.13),
    "dpo": (0.25, 0.50, 0.68, 0.08),
    "shuffled": (0.17, 0.38, 0.5, 0.0),
    "dpo_shuffled": (0.17, 0.38, 0.5, 0.0),
    "ood": (0.25, 0.5, 0.8, 0.13),
    "ood_shuffled": (0.17, 0.38, 0.5, 0.0),
}


def told(**arms):
    """Made-up results of five seeds: accuracy, valid steps, held-out accuracy and margin of each arm after training."""
    rng = np.random.default_rng(1)

    def both(arm, numbers):
        keys = ("quality", "valid_steps", "reward_accuracy", "margin")
        after = {key: value + rng.normal(0, 0.01) for key, value in zip(keys, numbers, strict=True)}
        same = {"chosen_logp": -9.0 if "ood" in arm else -2.0, "train_pairs": 300}
        after |= {"validation": after["quality"], "quality_half": (after["quality"] + 0.17) / 2, **same}
        return [{"quality": 0.17 + rng.normal(0, 0.01), **same}, after]

    return [{"arms": {arm: both(arm, numbers) for arm, numbers in arms.items()}} for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    found = step_dpo.claims(Told(), told(**GOOD)).verdicts()
    shown = {"C1", "C2", "C2 same rate", "C2 steps", "C3 accuracy", "C3 margin", "C4", "C7"}
    assert {id for id, verdict in found.items() if verdict == "shown in small"} == shown
    assert found["C5"] == found["C6"] == "needs full scale"


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"step_dpo": GOOD["shuffled"]}, {"C1", "C2", "C3 accuracy", "C4", "C7"}),  # chosen taken from wrong answers
        (
            {"step_dpo": (0.02, 0.1, 0.8, 0.3)},
            {"C1", "C2", "C2 steps"},
        ),  # end token on steps: the model stops after one
        ({"step_dpo": (0.38, 0.45, 0.8, 0.9)}, {"C2 steps"}),  # rejected holds later steps: margin up, validity down
        ({"shuffled": GOOD["step_dpo"]}, {"C1", "C2"}),  # labels do not matter
        ({"ood": (0.1, 0.3, 0.8, 0.1)}, {"C4"}),  # outside corrections below the start
        ({"dpo": (0.1, 0.3, 0.6, 0.08)}, {"C2"}),  # DPO below the start
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    found = step_dpo.claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {found[id] for id in lost} == {"not shown"}
