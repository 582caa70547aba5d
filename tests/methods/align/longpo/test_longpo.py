"""LongPO: two conditionings of one answer, turns, filters, rounds, resuming, bad input, real text, sabotage."""

import json
import logging
import math
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, play, save_policy

from workbench import methods
from workbench.kernels import sample
from workbench.methods.align.longpo import method as longpo
from workbench.methods.align.longpo import pairs
from workbench.methods.align.longpo import rows as long_rows
from workbench.methods.align.longpo.experiment import ARMS, claims
from workbench.methods.align.longpo.pairs import Asking, make_pairs, unfit
from workbench.methods.align.longpo.rope import set_rope_theta
from workbench.methods.align.longpo.rows import answer_sums, build_rows, short_to_long_kl, start_losses
from workbench.methods.experiment import Results, run_seed
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.tasks.documents import prompt_ids
from workbench.training.checkpoints import load_weights

WORLD = {"steps": 15, "n_documents": 6, "n_test": 6, "lengths": (6, 12)}


def config(**changes):
    return longpo.Config.at("smoke", **{"arms": ["longpo"], "world": WORLD, **changes})


@pytest.fixture(scope="module")
def played(root):
    """One small run of some arms; drawn answers, because an untrained model's greedy ones are nearly all the same."""
    return play(longpo, config(arms=["longpo", "lam1", "dpo", "iterated"], temperature=1.0), 0, root)


@pytest.fixture
def seed_folder(played, tmp_path):
    """The folder of a seed that has the pairs of round one and no arms yet."""
    shutil.copytree(played[2].folder / "pairs", tmp_path / "pairs")
    return tmp_path


def counts_in(folder):
    return json.loads((folder / "train-counts.json").read_text())


def table_of(run):
    return pd.read_parquet(run.folder / "pairs" / "train-pairs.parquet")


# ------------------------------------------------------------------------------------------------ two conditionings
def by_hand(policy, prompt, answer):
    """log p of an answer behind a prompt, from one plain forward pass."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


def test_policy_reads_the_long_text_and_reference_the_short_one(played):
    """Turn by turn from plain forward passes; later turns of a side see the answers of their own side."""
    task, _, run, _ = played
    policy, table = task.start(0), table_of(run)
    rows = build_rows(policy, policy, table)
    for row, entry in zip(rows, table.itertuples(), strict=True):
        for k, answers in enumerate((entry.chosen_ids, entry.rejected_ids)):
            long, short, before = 0.0, 0.0, prompt_ids(policy, list(entry.chunks), entry.questions[0])
            for j, answer in enumerate(answers):
                answer = [int(token) for token in answer]
                if j:
                    before = [*before, *policy.encode_part(entry.questions[j])]
                long += by_hand(policy, before, answer)
                short += by_hand(policy, prompt_ids(policy, [entry.shorts[j]], entry.questions[j]), answer)
                before = [*before, *answer]
            assert answer_sums(policy, [row])[0, k] == pytest.approx(long, abs=1e-4)
            assert row.reference_logps[k] == pytest.approx(short, abs=1e-4)


def test_step_zero_is_not_log_two_and_is_what_the_log_probs_say(played):
    """To 1e-5; it is log 2 exactly where the reference reads the long text, as DPO's does."""
    _, settings, run, result = played
    rows = rows_of(played)
    for arm, lam in (("longpo", 0.01), ("lam1", 1.0), ("dpo", 1.0)):
        first = Run(run.folder / arm / "round-1").metrics()[0]
        order = np.random.default_rng([0, 0]).permutation(len(rows))[: settings.batch_size]
        saved = iter(json.loads((run.folder / arm / "start-0.json").read_text()))
        wanted = np.mean(np.array([next(saved) if row.is_pair else 0.0 for row in rows])[order])
        assert sum(row.is_pair for row in rows) >= 4
        assert first["preference_losses"] == pytest.approx(wanted, abs=1e-5)
        weight = lam * len(rows) / sum(row.is_pair for row in rows)
        assert first["loss"] == pytest.approx(first["nll"] * (arm != "dpo") + weight * wanted, abs=1e-5)
        start = result["arms"][arm][1]["start_loss"]
        assert (abs(start - math.log(2)) < 1e-5) == (arm == "dpo")
    assert result["arms"]["dpo"][1]["start_loss"] == pytest.approx(math.log(2), abs=1e-6)


def rows_of(played, **options):
    task, _, run, _ = played
    policy = task.start(0)
    return build_rows(policy, policy, table_of(run), **options)


def test_sabotage_reference_on_the_long_text(played, seed_folder, monkeypatch):
    """The running method with its reference behind the long text begins at log 2: claim C9 turns."""
    task, settings, *_ = played
    true = longpo.build_rows
    monkeypatch.setattr(longpo, "build_rows", lambda *a, **k: true(*a, **{**k, "reference_reads": "long"}))
    _, after = longpo.train_arm(task, settings, ARMS["longpo"], 0, Run(seed_folder / "longpo"))
    assert after["start_loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("mistake", ["turns averaged", "turns misaligned", "short texts exchanged"])
def test_sabotage_of_the_reference(played, monkeypatch, mistake):
    """The numbers from plain forward passes no longer hold."""
    build, logps = build_rows, long_rows.reference_logps
    if mistake == "turns averaged":
        monkeypatch.setattr(long_rows, "reference_logps", lambda policy, groups: logps(policy, groups) / 2)
    elif mistake == "turns misaligned":
        monkeypatch.setattr(long_rows, "reference_logps", lambda *a: np.roll(logps(*a), 1, axis=0))
    else:

        def exchanged(policy, reference, table):
            return build(policy, reference, table.assign(shorts=[list(shorts)[::-1] for shorts in table.shorts]))

        monkeypatch.setitem(globals(), "build_rows", exchanged)
    with pytest.raises(AssertionError):
        test_policy_reads_the_long_text_and_reference_the_short_one(played)


def test_nll_takes_the_scope_that_is_asked_for(played):
    """All: the mean over every token behind the first, document and questions included; answers: over answers alone."""
    task, *_ = played
    policy = task.start(0)
    for scope in ("all", "answers"):
        row = rows_of(played, scope=scope)[0]
        step = longpo.LongStep(config(nll_scope=scope), ARMS["longpo"], [row], "pairs")
        nll = step(policy, [row])[1]["nll"].item()
        ids = torch.tensor([[*row.group.prompt_ids, *row.group.responses_ids[0]]])
        inside = [scope == "all" or is_answer for is_answer in row.is_answer[0]]
        wanted = [False] * len(row.group.prompt_ids) + inside
        labels = torch.where(torch.tensor([wanted]), ids, -100)
        with torch.no_grad():
            assert nll == pytest.approx(policy.model(input_ids=ids, labels=labels).loss.item(), abs=1e-5)
        if scope == "all":
            assert len(row.group.prompt_ids) == 1
    same = [answer_sums(policy, rows_of(played, scope=scope)) for scope in ("all", "answers")]
    np.testing.assert_allclose(*same, atol=1e-4)  # what counts as an answer does not change


def test_padding_has_no_part(played):
    """Rows together in a batch lose what they lose alone."""
    task, settings, _, _ = played
    policy, rows = task.start(0), rows_of(played, scope="all")
    short = rows[0]._replace(
        group=rows[0].group._replace(responses_ids=[ids[:-3] for ids in rows[0].group.responses_ids]),
        is_answer=tuple(mask[:-3] for mask in rows[0].is_answer),
    )
    step = longpo.LongStep(settings, ARMS["lam1"], rows, "pairs")
    together = step(policy, [rows[1], short])[0]
    torch.testing.assert_close(
        together, torch.cat([step(policy, [row])[0] for row in (rows[1], short)]), rtol=1e-5, atol=1e-5
    )


def test_nll_of_the_rejected_text_would_be_seen(played):
    """Swapped roles exchange the preference term and leave the NLL; the arm on rejected answers does not."""
    task, settings, *_ = played
    policy, rows = task.start(0), rows_of(played)
    rows = [row for row in rows if row.is_pair][:3]
    logged = {
        name: longpo.LongStep(settings, ARMS[name], rows, ARMS[name].learns)(policy, rows)[1]
        for name in ("lam1", "swapped", "rejected")
    }
    torch.testing.assert_close(logged["lam1"]["margins"], -logged["swapped"]["margins"])
    torch.testing.assert_close(logged["lam1"]["nll"], logged["swapped"]["nll"])
    assert not torch.allclose(logged["lam1"]["nll"], logged["rejected"]["nll"])


def test_equal_rows_leave_the_preference_mean(played):
    task, settings, *_ = played
    policy, rows = task.start(0), rows_of(played)
    pair = next(row for row in rows if row.is_pair)
    equal = pair._replace(is_pair=False)
    step = longpo.LongStep(settings, ARMS["alone"], [pair, equal], "pairs")
    losses, logged = step(policy, [pair, equal])
    assert losses[1] == 0
    assert losses.mean().item() == pytest.approx(logged["preference_losses"][0].item(), abs=1e-6)


# -------------------------------------------------------------------------------------------------------- rope, KL
def test_policy_and_reference_have_their_own_rope(played, tmp_path):
    """The policy's base changes what it says; the reference is as it was. Mixed up, their numbers would be the same."""
    task, _, run, _ = played
    policy, reference, table = task.start(0), task.start(0), table_of(run)
    tokenizer = policy.tokenizer
    for p in (policy, reference):  # attention that looks at something
        with torch.no_grad():
            for weight in p.model.parameters():
                weight *= 3
    set_rope_theta(policy, 300.0)
    assert reference.model.config.rope_parameters["rope_theta"] == 10_000.0
    rows = build_rows(policy, reference, table)
    mixed = build_rows(policy, policy, table)
    assert not np.allclose([r.reference_logps for r in rows], [r.reference_logps for r in mixed], atol=1e-4)
    policy.save(tmp_path)  # the base stays with the policy
    assert Policy.load(tmp_path, device="cpu").model.config.rope_parameters["rope_theta"] == 300.0
    without = Policy(torch.nn.Linear(1, 1), tokenizer)
    without.model.config = type("C", (), {"get_text_config": lambda self: self})()
    with pytest.raises(ValueError, match="has no rotary positions whose base could be 300; set rope_theta=0"):
        set_rope_theta(without, 300.0)


def test_kl_by_hand_and_zero_where_both_read_the_same(played):
    task, _, run, _ = played
    policy, table = task.start(0), table_of(run).head(1)
    entry = next(table.itertuples())
    one = {name: [getattr(entry, name)[:1]] for name in ("questions", "shorts", "chosen_ids", "rejected_ids")}
    table = pd.DataFrame({"row": [0], "chunks": [entry.chunks], **one})
    answer = [int(token) for token in entry.chosen_ids[0]]
    prompts = [prompt_ids(policy, chunks, entry.questions[0]) for chunks in (list(entry.chunks), [entry.shorts[0]])]
    logps = []
    for prompt in prompts:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        logps.append(logits.double().log_softmax(-1))
    kl = (logps[0].exp() * (logps[0] - logps[1])).sum(-1).mean().item()
    assert short_to_long_kl(policy, policy, table) == pytest.approx(kl, rel=1e-4)
    table["shorts"] = [["".join(f"{chunk} " for chunk in entry.chunks).strip()]]
    assert short_to_long_kl(policy, policy, table) == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ questions, filters
def test_the_models_own_greedy_answers_are_the_pairs(played, tmp_path):
    task, *_ = played
    policy = task.start(0)
    table = made(task.longer(12).documents("train", 0)[:3], policy, tmp_path)
    for entry in table.itertuples():
        for j, question in enumerate(entry.questions):
            assert entry.shorts[j] in list(entry.chunks)
            for chunks, ids in (([entry.shorts[j]], entry.chosen_ids[j]), (list(entry.chunks), entry.rejected_ids[j])):
                drawn = sample(policy, [prompt_ids(policy, chunks, question)], max_new_tokens=3, temperature=0.0)
                assert drawn.tokens[0][0] == list(ids)


def test_bad_answers_are_named():
    assert unfit("v1 v2", "length") == "answers cut off at max_new_tokens"
    assert unfit(" ", "stop") == "empty answers"
    assert unfit("I cannot say.", "stop") == "refusals"
    assert unfit("over and over " * 6, "stop") == "repetitive answers"
    assert unfit("She had lost her ship.", "stop") == ""


ASKING = Asking("task", 4, 0.7, 0.9, 0.0, 1.0, 3, 0)


def made(rows, policy, folder, **changes):
    return make_pairs(rows, policy, ASKING._replace(**changes), Run(folder), "train", longest=9, seed=0)


def document(**changes):
    chunks = ["k1 v1 v2", "k2 v3 v4"]
    asked = {"questions": ["Q k1 A", "Q k2 A"], "answers": ["v1 v2", "v3 v4"], "chunk_of": [0, 1]}
    return {"chunks": chunks, **asked, **changes}


def test_given_answers_and_short_texts(played, tmp_path, caplog):
    task, *_ = played
    policy = task.start(0)
    rows = [document(short_prompts=["k1 v1 v2", "k9 v9 v9"], chosens=["v1 v2", "v3 v4"], rejecteds=["v3 v4", "v1 v1"])]
    with caplog.at_level(logging.WARNING):
        table = made(rows, policy, tmp_path)
    assert "row 0: 1 of 2 short texts are not in the document" in caplog.text
    assert list(table["chosen"][0]) == ["v1 v2", "v3 v4"]
    assert list(table["chosen_ids"][0][0]) == policy.encode_response("v1 v2")
    assert counts_in(tmp_path)["short texts that are not in their document"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chosens": ["a"], "rejecteds": ["b", "c"]},
            "row 0: a document needs as many of each; got 2 questions, 2 short_prompts, 1 chosens",
        ),
        ({"chosens": ["v1", "v2"], "rejecteds": []}, "2 chosens, 0 rejecteds; mend or remove the row"),
    ],
)
def test_lists_of_different_lengths_are_named(played, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        made([document(**changes)], played[0].start(0), tmp_path)


def test_documents_of_the_wrong_length_are_counted(played, tmp_path):
    task, *_ = played
    rows = [document(), document(chunks=["k1 v1 v2"] * 4), document(chunks=["k1 v1 v2"])]
    given = [{**row, "chunk_of": [0, 0], "chosens": ["v1", "v2"], "rejecteds": ["v2", "v1"]} for row in rows]
    table = made(given, task.start(0), tmp_path, min_length=4)
    assert table["row"].tolist() == [0]
    counts = counts_in(tmp_path)
    assert (counts["documents below min_length"], counts["documents above the target length"]) == (1, 1)


def test_self_asked_questions(played, tmp_path, monkeypatch):
    """The model writes the questions; a reply without exactly four is dropped and counted; a lead-in comes first."""
    tokenizer = bpe_tokenizer(["Write 4 questions about the ship."], vocab_size=300)
    policy = Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=2048, seed=0), tokenizer)
    replies = iter(["1: A?\n2: B?\n3: C?\n4: D?", "no questions", "Ada left.", "The text does not say."])
    seen = []

    def fake(policy, prompts, **how):
        seen.append((prompts, how))
        texts = [[next(replies)] for _ in prompts]
        return SimpleNamespace(
            texts=texts,
            tokens=[[policy.encode_response(t[0])] for t in texts],
            finish_reasons=[["stop"]] * len(prompts),
        )

    monkeypatch.setattr(pairs, "sample", fake)
    rows = [document(chunks=["Ada lost her ship. ", "It rained. "])]
    table = made(rows, policy, tmp_path, questions="model")
    (question,) = table["questions"][0]
    assert question.strip().endswith(("A?", "B?", "C?", "D?"))
    assert any(question.strip().startswith(lead) for lead in pairs.LEAD_INS)
    assert list(table["chosen"][0]) == ["Ada left."]
    assert seen[0][1]["temperature"] == 0.7
    assert seen[1][1]["temperature"] == 0.0
    assert counts_in(tmp_path)["replies without 4 questions"] == 1


def test_long_texts_beyond_the_window_are_counted(played, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Policy, "max_length", 12)
    monkeypatch.setattr(pairs, "unfit", lambda text, reason: "")
    with caplog.at_level(logging.WARNING):
        made([document()], played[0].start(0), tmp_path)
    assert "2 of 2 long texts do not fit into 12 tokens: the answers see their end" in caplog.text
    assert counts_in(tmp_path)["long texts cut to the window of the model that answers"] == 2


def test_nothing_left_says_why(played, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "unfit", lambda text, reason: "refusals")
    with pytest.raises(ValueError, match=r"no train document is left: .*'refusals': 2"):
        made([document()], played[0].start(0), tmp_path)
    assert pd.read_parquet(tmp_path / "train-dropped.parquet")["why"].tolist() == ["refusals"] * 2


def test_a_reference_with_a_window_that_is_too_short(played, monkeypatch):
    monkeypatch.setattr(Policy, "max_length", 5)
    said = r"row 0: a short text with its answer has \d+ tokens, the reference's window 5"
    with pytest.raises(ValueError, match=said):
        rows_of(played)


def test_answers_without_tokens_and_nan_are_named(played, monkeypatch):
    task, _, run, _ = played
    policy, table = task.start(0), table_of(run).head(1)
    monkeypatch.setattr(long_rows, "reference_logps", lambda policy, groups: np.full((len(groups), 2), np.nan))
    with pytest.raises(FloatingPointError, match="NaN or infinite log-probs to row 0"):
        build_rows(policy, policy, table)
    table["chosen_ids"] = [[[], [5]]]
    with pytest.raises(ValueError, match="row 0: an answer has no tokens"):
        build_rows(policy, policy, table)


# ----------------------------------------------------------------------------------------------------------- the run
def test_what_a_run_leaves(played):
    _, _, run, result = played
    before, after = result["arms"]["longpo"]
    assert {"retrieval_6", "retrieval_12", "second_task", "margin", "short_to_long_kl", "reward_accuracy"} <= {*before}
    assert after["short_to_long_kl"] != before["short_to_long_kl"]
    assert len(Run(run.folder / "longpo" / "round-1").metrics()) == 2
    assert {"chosen_ratio", "rejected_ratio"} <= set(pd.read_parquet(run.folder / "longpo" / "ratios-1.parquet"))
    assert result["counts"]["documents"] == 6


def test_the_second_round_is_longer_and_starts_from_the_first(played):
    """Its documents are longer; policy and reference are the model of round one."""
    task, settings, run, result = played
    assert len(result["arms"]["iterated"]) == 3
    second = pd.read_parquet(run.folder / "iterated" / "round-2" / "train-pairs.parquet")
    assert {sum(len(task.split(chunk)) for chunk in chunks) for chunks in second["chunks"]} == {18}
    assert {sum(len(task.split(chunk)) for chunk in chunks) for chunks in table_of(run)["chunks"]} == {12}
    first = task.start(0)
    load_weights(first.model, run.folder / "longpo" / "round-1" / "weights.safetensors")  # the same first round
    rows = build_rows(first, first, second, scope=settings.nll_scope)
    saved = json.loads((run.folder / "iterated" / "start-1.json").read_text())
    assert start_losses(first, rows, settings.beta) == pytest.approx(saved, abs=1e-5)
    assert (run.folder / "iterated" / "round-2" / "weights.safetensors").is_file()


def test_killed_in_the_second_round_it_goes_on_there(played, seed_folder, monkeypatch):
    task, settings, _, result = played
    calls, true = [], longpo.LongStep.__call__

    def dies(self, policy, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(self, policy, batch)

    monkeypatch.setattr(longpo.LongStep, "__call__", dies)
    train = partial(longpo.train_arm, task, settings, ARMS["iterated"], 0, Run(seed_folder / "iterated"))
    with pytest.raises(KeyboardInterrupt):
        train()
    found = train()
    assert len(calls) == 4 + 2  # both steps of round two, none of round one
    for ours, theirs in zip(found, result["arms"]["iterated"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"),
        ({"lengths": [40]}, r"lengths=\[40\]: the arms need 2 positive lengths, one for each round"),
        ({"nll_scope": "some"}, "nll_scope = 'some'"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        longpo.Config.at("tiny", **changes)


# --------------------------------------------------------------------------------------------------------- real text
def test_packed_problems_train_for_some_steps(shared, tmp_path, runs_root):
    lines = (shared / "data/gsm8k/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in sorted(lines, key=len)[:40]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {"rope_theta": 50_000.0, "lengths": [4, 6], "arms": ["longpo", "iterated"]}
    changes |= {"max_steps": 2, "temperature": 1.0}
    model = save_policy(tmp_path / "model", "How many eggs? 3 + 4 = 7.\n#### 7", max_length=4096)
    where = {"model": model, "dataset": str(tmp_path / "rows.jsonl")}
    experiment = methods.Experiment("longpo", scale="smoke", **where, seeds=[0, 1, 2], overrides=changes)
    true = pairs.unfit
    with pytest.MonkeyPatch.context() as patch:  # a random model hardly ever ends an answer
        patch.setattr(pairs, "unfit", lambda text, reason: true(text, "stop") and "")
        run = experiment.run.child("seed-0")
        results = Results([run_seed(longpo, experiment.task, experiment.config, 0, run)] * 3)
    before, after = results[0]["arms"]["longpo"]
    assert after["long_nll"] < before["long_nll"]
    assert after["start_loss"] != pytest.approx(math.log(2), abs=1e-5)
    assert len(results[0]["arms"]["iterated"]) == 3
    longer = pd.read_parquet(run.folder / "iterated" / "round-2" / "train-pairs.parquet")
    assert {len(chunks) for chunks in longer["chunks"]} == {6}
    assert set(claims(experiment, results).verdicts()) == {"C1", "C2", "C6"}


# ---------------------------------------------------------------------------------------------------------- verdicts
START = {"retrieval_6": 1.0, "retrieval_40": 0.5, "retrieval_60": 0.4, "second_task": 1.0, "margin": -48.0}
START |= {"reward_accuracy": 0.0, "short_to_long_kl": 2.8, "start_loss": 4.6}
BETTER = {"retrieval_40": 0.85, "retrieval_60": 0.75, "margin": -21.0, "short_to_long_kl": 0.4}
GOOD = {"longpo": [BETTER], "sft": [BETTER], "rejected": [{}], "lam1": [{**BETTER, "margin": -15.0}]}
GOOD |= {"swapped": [{**BETTER, "margin": -26.0}], "dpo": [{"retrieval_40": 0.2, "start_loss": math.log(2)}]}
GOOD |= {"alone": [{"retrieval_40": 0.2, "retrieval_6": 0.5}], "sft_fast": [{**BETTER, "second_task": 0.1}]}
GOOD |= {"iterated": [BETTER, {**BETTER, "retrieval_60": 0.9}], "iterated_off": [BETTER, BETTER]}


def told(**arms):
    """Made-up results of five seeds: what each arm has after every round, and a little noise."""
    rng = np.random.default_rng(0)

    def noisy(change):
        found = {key: value + rng.normal(0, 0.004) for key, value in {**START, **change}.items()}
        return found if change.get("start_loss") is None else {**found, "start_loss": change["start_loss"]}

    return Results(
        {"arms": {arm: [noisy({}), *map(noisy, rounds)] for arm, rounds in arms.items()}} for _ in Told.seeds
    )


def test_verdicts_of_a_method_that_works():
    found = claims(Told(), told(**GOOD)).verdicts()
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C1", "C2", "C6"}
    assert {id for id, verdict in found.items() if verdict == "not shown"} == set()


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"longpo": [{}]}, {"C1 gain", "C7 KL"}),
        ({"rejected": [BETTER]}, {"C1 gain", "C7 KL"}),  # its long-context answers would do
        ({"longpo": [{**BETTER, "second_task": 0.8}]}, {"C3 second"}),
        ({"longpo": [{**BETTER, "retrieval_6": 0.9}]}, {"C3 short"}),
        ({"sft": [{**BETTER, "second_task": 0.1}]}, {"C4"}),  # it forgets at any rate
        ({"iterated_off": GOOD["iterated"]}, {"C5"}),
        ({"dpo": [{"retrieval_40": 0.6, "start_loss": math.log(2)}]}, {"C7 dpo"}),
        ({"lam1": GOOD["swapped"]}, {"C8"}),  # roles swapped
        ({"longpo": [{**BETTER, "start_loss": math.log(2)}]}, {"C9"}),  # reference reads the long text
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    found = claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {found[id] for id in lost} == {"not shown"}


# -------------------------------------------------------------------------------------------------- what it must show
@pytest.mark.slow
@pytest.mark.exhaustive
def test_long_text_gets_better_and_lam_on_the_wrong_term_is_seen(tmp_path, runs_root, monkeypatch):
    """One seed, shortened. Sabotage of the running method: lam 0.01 on the NLL and 1 on the preference term."""
    world = {"steps": 350, "n_documents": 60, "n_test": 60, "lengths": (6, 24), "n_values": 8}
    changes = {"lengths": [24], "turns": 4, "max_steps": 50, "batch_size": 8, "nll_scope": "answers", "test_size": 10}
    settings = config(world=world, **changes)
    task = longpo.open_task(settings)
    before, after = run_seed(longpo, task, settings, 101, Run(tmp_path / "right"))["arms"]["longpo"]
    assert before["retrieval_6"] > 0.85
    assert after["retrieval_24"] > before["retrieval_24"] + 0.03
    assert after["retrieval_6"] > before["retrieval_6"] - 0.03
    assert after["short_to_long_kl"] < before["short_to_long_kl"]
    true = longpo.objectives.longpo
    monkeypatch.setattr(longpo.objectives, "longpo", lambda *a, **k: true(*a, **{**k, "lam": 1.0, "nll_weight": 0.01}))
    _, broken = run_seed(longpo, task, settings, 101, Run(tmp_path / "wrong"))["arms"]["longpo"]
    assert broken["short_to_long_kl"] > after["short_to_long_kl"]
