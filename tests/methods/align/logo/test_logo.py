"""LOGO: positions reach the attention, M and the mask, the SFT term, resuming, bad input, real text, sabotage."""

import json
import logging
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, play, save_policy
from transformers import BloomConfig, BloomForCausalLM

from workbench import methods, objectives
from workbench.kernels import Group, score
from workbench.methods.align.logo import method as logo
from workbench.methods.align.logo import rows as logo_rows
from workbench.methods.align.logo.experiment import ARMS, claims
from workbench.methods.align.logo.rows import build_rows
from workbench.methods.experiment import Results, run_seed
from workbench.models import Policy, new_llama
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train

WORLD = {"steps": 15, "misaligned_steps": 3, "n_documents": 12, "n_test": 6, "lengths": (6,)}


def config(**changes):
    return logo.Config.at("smoke", **{"arms": ["logo"], "test_size": 6, "world": WORLD, **changes})


@pytest.fixture(scope="module")
def played(root):
    """One small run of some arms, its folder and its seed."""
    return play(logo, config(arms=["logo", "logo_real", "logo_unpassed", "sft", "b_copied"]), 0, root)


def rows_of(task, settings, run, arm="logo", **changes):
    table = pd.read_parquet(run.folder / "pairs" / "train-rows.parquet")
    return build_rows(task.start(0), table, settings, ARMS[arm], 0, **changes)


# --------------------------------------------------------------------------------------------------------- positions
def test_attention_sees_the_positions(played):
    """Scoring at synthetic positions is a plain forward pass with these position_ids, and differs from real ones."""
    task, settings, run, _ = played
    row = rows_of(task, settings, run)[0]
    tokenizer = task.start(0).tokenizer
    llama = Policy(new_llama(tokenizer, width=32, layers=2, heads=2, max_length=256, seed=1), tokenizer)
    with torch.no_grad():
        for weight in llama.model.parameters():
            weight *= 8  # at the size of its random weights attention hardly looks at anything
    for policy in (task.start(0), llama):
        got = score(policy, [row.group]).token_logps[0]
        real = score(policy, [row.group._replace(prompt_positions=None)]).token_logps[0]
        assert (got - real).abs().max() > 1e-3
        for k, response in enumerate(row.group.responses_ids):
            ids = torch.tensor([[*row.group.prompt_ids, *response]])
            p, places = len(row.group.prompt_ids), row.group.prompt_positions
            position_ids = torch.tensor([[*places, *range(places[-1] + 1, places[-1] + 1 + len(response))]])
            with torch.no_grad():
                logits = policy.model(
                    input_ids=ids, position_ids=position_ids, attention_mask=torch.ones_like(ids)
                ).logits
            by_hand = logits[0, p - 1 : -1].log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
            torch.testing.assert_close(got[k, : len(response)], by_hand, rtol=1e-4, atol=1e-3)


def test_rows_of_every_kind_of_position(played):
    task, settings, run, _ = played
    synthetic, real, unpassed = (rows_of(task, settings, run, arm) for arm in ("logo", "logo_real", "logo_unpassed"))
    assert len(synthetic) == len(unpassed) == 2 * len(real)  # two variants a row
    assert all(row.group.prompt_positions is None for row in [*real, *unpassed])
    for row in synthetic:
        places = row.group.prompt_positions
        assert len(places) == len(row.group.prompt_ids)
        assert places[-4:] == [106, 107, 108, 109]  # the question, at window - qa + 1
    assert len({tuple(row.group.prompt_positions) for row in synthetic}) > len(real)


def test_beacons_end_every_region(played):
    task, _, run, _ = played
    table = pd.read_parquet(run.folder / "pairs" / "train-rows.parquet")
    policy, changed = task.start(0), config(beacon="|")
    group = build_rows(policy, table, changed, ARMS["logo"], 0)[0].group
    beacon = policy.encode_part("|")[0]
    at = [p for token, p in zip(group.prompt_ids, group.prompt_positions, strict=True) if token == beacon]
    assert at == [1 + 17 * (i + 1) - 1 for i in range(6)]
    with pytest.raises(ValueError, match="beacon='k1 k2' is 2 tokens for this tokenizer; one is needed"):
        build_rows(policy, table, config(beacon="k1 k2"), ARMS["logo"], 0)


def test_sabotage_positions_not_passed_leave_the_method_as_the_control_arm(played, tmp_path, monkeypatch):
    """Sabotage: the running method with its positions lost is the arm `logo_unpassed`, number for number."""
    task, settings, run, result = played
    true = logo.score
    monkeypatch.setattr(
        logo, "score", lambda policy, groups: true(policy, [g._replace(prompt_positions=None) for g in groups])
    )
    shutil.copytree(run.folder / "pairs", tmp_path / "pairs")
    broken = logo.train_arm(task, settings, ARMS["logo"], 0, Run(tmp_path / "logo"))
    keys = ("margin", "recall_6")
    assert [broken[1][k] for k in keys] == pytest.approx(
        [result["arms"]["logo_unpassed"][1][k] for k in keys], abs=1e-5
    )
    assert broken[1]["margin"] != pytest.approx(result["arms"]["logo"][1]["margin"], abs=1e-4)


# ----------------------------------------------------------------------------------------------------------- the loss
def hand_made(policy, *texts):
    """A row whose answers are these texts."""
    group = Group(policy.encode_prompt("k1 v2 k3 v4 Q k1 k3 A"), [policy.encode_response(text) for text in texts])
    return logo_rows.LogoRow("by hand", group, 0)


def test_rows_with_different_m_share_a_batch(played):
    policy = played[0].start(0)
    rows = [
        hand_made(policy, "v2 v4", "v2 v9", "v1 v1"),
        hand_made(policy, "v2 v4", "v5 v5 v5"),
        hand_made(policy, "v2", "v7", "v8"),
    ]
    step = logo.LogoStep(config(), ARMS["logo"])
    together, _ = step(policy, rows)
    alone = [step(policy, [row])[0] for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_the_loss_by_hand(played):
    """Means over tokens and rejected answers, margin subtracted, cross-entropy shifted and without the prompt."""
    policy = played[0].start(0)
    row = hand_made(policy, "v2 v4", "v2 v9 v9", "v1")
    losses, logged = logo.LogoStep(config(), ARMS["logo"])(policy, [row])
    means = []
    for response in row.group.responses_ids:
        ids = torch.tensor([[*row.group.prompt_ids, *response]])
        labels = torch.tensor([[-100] * len(row.group.prompt_ids) + response])
        with torch.no_grad():
            means.append(-policy.model(input_ids=ids, labels=labels).loss.item())  # the library shifts
    x = means[0] - (means[1] + means[2]) / 2 - 0.1
    assert losses.item() == pytest.approx(math.log1p(math.exp(-2.5 * x)) - 0.1 * means[0], abs=1e-4)
    assert logged["margins"].item() == pytest.approx(2.5 * (means[0] - (means[1] + means[2]) / 2), abs=1e-4)


def test_a_common_beginning_can_be_left_out(played):
    task, settings, *_ = played
    table = one_row(chunks=["k1 v2", "k3 v4"], rejected=["v2 v9", "v2"])
    policy = task.start(0)
    (row,) = build_rows(policy, table, config(skip_common_prefix=True), ARMS["logo_real"], 0)
    assert row.shared == 1
    losses, _ = logo.LogoStep(settings, ARMS["b_no_sft"])(policy, [row])
    logps = score(policy, [row.group]).token_logps[0]
    x = logps[0, 1:3].mean() - (logps[1, 1:3].mean() + logps[2, 1]) / 2 - 0.1
    assert losses.item() == pytest.approx(-torch.nn.functional.logsigmoid(2.5 * x).item(), abs=1e-5)


def training_margins(policy, rows, step, n=6):
    """Margin of chosen over the mean of rejected answers, nats a token, before and after some updates."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), 5e-3)

    def margin():
        with torch.no_grad():
            means = score(policy, [row.group for row in rows]).means
        return float((means[:, 0] - means[:, 1:].mean(1)).mean())

    first = margin()
    for _ in range(n):
        optimizer.zero_grad()
        step(policy, rows)[0].mean().backward()
        optimizer.step()
    return first, margin()


@pytest.mark.parametrize("mistake", ["", "roles swapped", "sign of the loss"])
def test_updates_raise_the_margin_unless_roles_are_swapped(played, monkeypatch, mistake):
    """Sabotage of the running step: with chosen and rejected swapped the margin falls."""
    task, settings, run, _ = played
    policy, rows = task.start(0), rows_of(task, settings, run)[:8]
    if mistake == "roles swapped":
        rows = [row._replace(group=row.group._replace(responses_ids=row.group.responses_ids[::-1])) for row in rows]
        true_rows = rows_of(task, settings, run)[:8]
    true = objectives.logo
    if mistake == "sign of the loss":
        monkeypatch.setattr(objectives, "logo", lambda w, l, **o: true(-w, -l, **{**o, "chosen_token_nll": w * 0}))
    step = logo.LogoStep(settings, ARMS["b_no_sft"])
    if mistake == "roles swapped":
        before = training_margins(task.start(0), true_rows, step, n=0)[0]
        training_margins(policy, rows, step)
        after = training_margins(policy, true_rows, step, n=0)[0]
    else:
        before, after = training_margins(policy, rows, step)
    assert (after > before + 0.05) == (not mistake)


def test_sabotage_sums_instead_of_means(played, monkeypatch):
    """The mean of log-probs times the length is their sum: the loss by hand no longer holds."""

    def summed(policy, groups):
        scores = score(policy, groups)
        token_logps = scores.token_logps * scores.lengths[..., None]
        return SimpleNamespace(
            token_logps=token_logps, is_token=scores.is_token, lengths=scores.lengths, means=scores.sums
        )

    monkeypatch.setattr(logo, "score", summed)
    with pytest.raises(AssertionError):
        test_the_loss_by_hand(played)


# ----------------------------------------------------------------------------------------------------------- the run
def test_what_a_run_leaves(played):
    _, _, run, result = played
    assert result["counts"]["rows"] <= result["counts"]["documents"] == 12
    assert result["counts"]["positions a real token"] > 3
    assert (run.folder / "logo" / "round-1" / "weights.safetensors").is_file()
    assert len(Run(run.folder / "logo" / "round-1").metrics()) == 4
    assert set(pd.read_parquet(run.folder / "logo" / "needles-1.parquet")) == {"length", "depth", "right"}
    assert {"margin", "m1", "m2"} <= set(pd.read_parquet(run.folder / "logo" / "margins-1.parquet"))
    same = {arm: both[0]["quality"] for arm, both in result["arms"].items() if not arm.startswith("b_")}
    assert len(set(same.values())) == 1  # one start, measured once


def test_two_rejected_answers_in_form_alone(played):
    task, settings, run, _ = played
    one, copied = (rows_of(task, settings, run, arm) for arm in ("b_one", "b_copied"))
    assert all(len(row.group.responses_ids) == 2 for row in one)
    assert all(row.group.responses_ids[1] == row.group.responses_ids[2] for row in copied)


def test_shuffled_labels_draw_the_chosen_answer(played):
    task, settings, run, _ = played
    true, shuffled, swapped = (rows_of(task, settings, run, arm) for arm in ("logo", "shuffled", "swapped"))
    firsts = [a.group.responses_ids[0] == b.group.responses_ids[0] for a, b in zip(true, shuffled, strict=True)]
    assert 0 < np.mean(firsts) < 1
    for a, b in zip(true, swapped, strict=True):
        assert b.group.responses_ids[0] == a.group.responses_ids[-1]
        assert sorted(b.group.responses_ids) == sorted(a.group.responses_ids)


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"),
        ({"qa": 200}, "qa=200 positions leave no room for a document in a window of 112"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        logo.Config.at("tiny", **changes)


def one_row(**changes):
    row = {"row": 4, "chunks": ["k1 v2"] * 6, "question": "Q k1 k3 A", "chosen": "v2 v4", "rejected": ["v1"], **changes}
    return pd.DataFrame([row])


def test_answers_that_do_not_fit_are_cut_with_a_warning(played, caplog):
    task, settings, *_ = played
    policy = task.start(0)
    with caplog.at_level(logging.WARNING):
        rows = build_rows(policy, one_row(chosen="v2 v4 v4 v4 v4"), settings, ARMS["logo"], 0)
    assert "rows 4 have answers longer than the positions behind the question: these are cut" in caplog.text
    assert len(rows[0].group.responses_ids[0]) == 3
    assert policy.counts["responses_cut"] == 1
    with pytest.raises(ValueError, match=r"question and answer have 11 \+ 3 tokens but only 7 positions"):
        build_rows(policy, one_row(question="Q" + " k1" * 9 + " A"), settings, ARMS["logo"], 0)


def test_long_chunks_keep_their_share(played):
    task, *_ = played
    policy = task.start(0)
    group = build_rows(policy, one_row(chunks=["k1 v2 v2 v2"] * 6), config(max_length=24), ARMS["logo"], 0)[0].group
    assert len(group.prompt_ids) == 1 + 6 * 3 + 4
    assert policy.counts["chunks_cut"] == 6


def test_a_table_of_positions_that_ends_too_early():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    policy = SimpleNamespace(model=model, name="gpt2")
    with pytest.raises(ValueError, match=r"gpt2 has a table of 16 absolute positions .*fewer than the window of 112"):
        logo_rows.check_positions(policy, 112)


def test_a_model_without_position_ids_is_refused(played):
    """Bloom's attention knows distances only."""
    task, settings, run, _ = played
    model = BloomForCausalLM(BloomConfig(vocab_size=200, hidden_size=16, n_layer=1, n_head=2))
    row = rows_of(task, settings, run)[0]
    with pytest.raises(ValueError, match="takes no position_ids"):
        score(model, [row.group], route="padded")


def test_nan_names_the_rows(played):
    task, settings, run, _ = played

    policy, step = task.start(0), logo.LogoStep(settings, ARMS["logo"])
    with torch.no_grad():
        policy.model.lm_head.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"rows row \d+, variant \d"):
        train(policy, rows_of(task, settings, run)[:4], step, TrainConfig())


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("model"), "How many eggs? 3 + 4 = 7.\n#### 7", max_length=4096)


def test_packed_problems_train_for_some_steps(shared, real_model, runs_root):
    changes = {"lora_rank": 4, "max_new_tokens": 6, "arms": ["logo", "sft", "shuffled"], "window": 4096}
    changes |= {"chunks": 4, "pack": 5, "learning_rate": 1e-3}
    given = {"scale": "smoke", "model": str(real_model), "dataset": str(shared / "data/gsm8k/test.jsonl")}
    given |= {"seeds": [0, 1, 2], "overrides": changes}
    experiment = methods.Experiment("logo", **given)
    run = experiment.run.child("seed-0")
    results = Results([run_seed(logo, experiment.task, experiment.config, 0, run)] * 3)
    before, after = results[0]["arms"]["logo"]
    assert after["long_nll"] != before["long_nll"]
    assert len(Run(run.folder / "logo" / "round-1").metrics()) == 2
    assert 400 < results[0]["counts"]["real tokens"] < 1200
    assert results[0]["counts"]["last position"] > 3600
    found = claims(experiment, results).verdicts()
    assert set(found) == {"C1", "C2", "C3 baselines", "C4", "C8"}


def test_given_answers_are_kept(real_model, tmp_path):
    row = {"chunks": ["Mira hid the letter.", "It rained."], "question": "Who hid it?", "chosen": "Mira."}
    row |= {"rejected": ["The butler.", "Mira."]}
    (tmp_path / "rows.jsonl").write_text(
        "\n".join([json.dumps({**row, "question": f"{i}. Who hid it?"}) for i in range(4)])
    )
    settings = logo.Config.at("smoke", True, lora_rank=0, window=512, qa=64, test_size=2, arms=["logo"])
    task = logo.open_task(settings, model=str(real_model), dataset=str(tmp_path / "rows.jsonl"))
    result = run_seed(logo, task, settings, 0, Run(tmp_path / "run"))
    table = pd.read_parquet(tmp_path / "run" / "pairs" / "train-rows.parquet")
    assert table["chosen"].tolist() == ["Mira."] * 2
    assert [list(rejected) for rejected in table["rejected"]] == [["The butler."]] * 2
    assert result["counts"]["rejected answers equal to the chosen one"] == 2


def test_a_chosen_answer_needs_rejected_ones(real_model, tmp_path):
    rows = [{"chunks": ["a b", "c"], "question": f"{i}?", "chosen": "a", "rejected": []} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = logo.Config.at("smoke", True, lora_rank=0, window=512, qa=64, test_size=1)
    task = logo.open_task(settings, model=str(real_model), dataset=str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="row 0, column 'rejected': a list with at least one answer is needed"):
        run_seed(logo, task, settings, 0, Run(tmp_path / "run"))


def test_what_real_text_cannot_feed_is_refused():
    said = r"arms \['b_logo'\] start from a misaligned model, which only the embedded world has"
    with pytest.raises(ValueError, match=said):
        logo.open_task(logo.Config.at("smoke", True, arms=["b_logo"]), model="m", dataset="d")


# ---------------------------------------------------------------------------------------------------------- verdicts
CLEAN = {"retrieval_6": 1.0, "retrieval_12": 1.0, "retrieval_24": 0.8, "retrieval_44": 0.5}
CLEAN |= {"recall_6": 1.0, "recall_12": 1.0, "quality": 0.8}
MISALIGNED = {**CLEAN, "recall_6": 0.5, "recall_12": 0.4, "quality": 0.3}
LONG = {"retrieval_24": 0.87, "retrieval_44": 0.6}
TOLD = {"recall_6": 0.9, "recall_12": 0.85, "quality": 0.75}
FALLEN = {"retrieval_6": 0.4, "retrieval_12": 0.4, "recall_6": 0.2, "recall_12": 0.2, "quality": 0.15}
GOOD = {"logo": LONG, "logo_real": {}, "logo_unpassed": {}, "sft": LONG, "sft_real": {}, "sft_unpassed": {}}
GOOD |= {"swapped": FALLEN, "b_swapped": FALLEN, "b_shuffled": FALLEN, "b_logo": TOLD}
GOOD |= {"b_sft": {**TOLD, "quality": 0.7}}
GOOD |= {"b_one": {**TOLD, "quality": 0.7}, "b_copied": {**TOLD, "quality": 0.7}, "b_no_sft": {**TOLD, "quality": 0.72}}


def told(**arms):
    """Made-up results of five seeds: what each arm ends with, beside the start that it has, and a little noise."""
    rng = np.random.default_rng(0)

    def noisy(numbers):
        return {key: value + rng.normal(0, 0.005) for key, value in numbers.items()}

    def both(arm, change):
        start = MISALIGNED if arm.startswith("b_") else CLEAN
        return [noisy(start), noisy({**start, **change})]

    return Results({"arms": {arm: both(arm, change) for arm, change in arms.items()}} for _ in Told.seeds)


def test_verdicts_of_a_method_that_works():
    found = claims(Told(), told(**GOOD)).verdicts()
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C2", "C3 baselines", "C4", "C8"}
    assert {id for id, verdict in found.items() if verdict == "not shown"} == set()


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"logo": {}}, {"C3 logo 24", "C3 logo 44"}),  # positions not passed
        ({"logo_unpassed": LONG}, {"C3 logo 24"}),  # positions do not matter
        ({"b_logo": FALLEN}, {"C1", "C1 base 6", "C5", "C7"}),  # roles swapped
        ({"b_shuffled": TOLD}, {"C1 base 6", "C5"}),  # labels do not matter
        ({"b_one": TOLD}, {"C7"}),
        ({"b_no_sft": {**TOLD, "quality": 0.9}}, {"C7"}),  # the SFT term harms
        ({"logo": {**LONG, "retrieval_6": 0.9}}, {"C6"}),
        ({"b_logo": {**TOLD, "retrieval_6": 0.8}}, {"C5"}),  # retrieval fell
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    found = claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {found[id] for id in lost} == {"not shown"}


# -------------------------------------------------------------------------------------------------- what it must show
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_misaligned_start_learns_to_tell_what_it_finds(tmp_path, runs_root, monkeypatch):
    """One seed of Part B, shortened. Sabotage: roles swapped where rows are read, and recall falls."""
    world = {"steps": 300, "misaligned_steps": 60, "n_documents": 80, "n_test": 60, "lengths": (6,), "n_values": 8}
    settings = config(arms=["b_logo"], world=world, misaligned_steps=50)
    task = logo.open_task(settings)
    before, after = run_seed(logo, task, settings, 101, Run(tmp_path / "right"))["arms"]["b_logo"]
    assert before["retrieval_6"] > 0.7
    assert before["recall_6"] < 0.65
    assert after["recall_6"] > before["recall_6"] + 0.1
    assert after["retrieval_6"] > before["retrieval_6"] - 0.05
    true = logo.preferences

    def swapped(*arguments):
        table = true(*arguments)
        return table.assign(chosen=[r[-1] for r in table["rejected"]], rejected=[[c] for c in table["chosen"]])

    monkeypatch.setattr(logo, "preferences", swapped)
    _, broken = run_seed(logo, task, settings, 101, Run(tmp_path / "wrong"))["arms"]["b_logo"]
    assert broken["recall_6"] < before["recall_6"]
