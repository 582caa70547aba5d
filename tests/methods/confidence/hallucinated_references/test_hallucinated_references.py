"""Hallucinated references: what must hold in the planted world, what must fail when the method is broken, bad input."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small import save_policy

from workbench.claims import DIFFERS, FOLLOWS
from workbench.feedback.chat import Reply, Request
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.hallucinated_references import method as hr
from workbench.methods.confidence.hallucinated_references import names as name_lists
from workbench.methods.confidence.hallucinated_references import scores as reference_scores
from workbench.methods.confidence.hallucinated_references import sessions
from workbench.methods.confidence.hallucinated_references import view as look
from workbench.methods.confidence.hallucinated_references.experiment import claims
from workbench.methods.confidence.hallucinated_references.references import Part, ReferenceFile, references
from workbench.methods.confidence.hallucinated_references.world import Citations
from workbench.runs.run import Run
from workbench.stats import selective

SMALL = {"n_topics": 6, "book_seeds": [], "bootstrap": 20, "curve_bootstrap": 20}
SMALL |= {"overlaps": ["jaccard", "judge", "containment"]}
TABLES = ["agreements", "references", "samples", "scores"]


def run_seeds(folder, config, seeds, task=None, scale="tiny"):
    """All seeds in this process, and what `claims` needs of an experiment."""
    task = task or hr.open_task(config)
    results = [hr.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    experiment = SimpleNamespace(task=task, config=config, seeds=seeds, scale=scale, run=Run(folder))
    return experiment, json.loads(json.dumps(results))


def area(results, name="IQ", arm="simulated"):
    return np.array([result["arms"][arm]["auroc"][name][0] for result in results])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"overlaps": []}, "overlaps needs at least one of"),
        ({"direct": ["DQ1", "DQ4"]}, "direct needs at least one of DQ1, DQ2, DQ3, each once; got"),
    ],
)
def test_lists_of_questions_and_overlaps(overrides, message):
    with pytest.raises(ValueError, match=message):
        hr.Config.at("tiny", **overrides)


def test_defaults_are_the_papers():
    config = hr.Config.at("full")
    assert (config.n_titles, config.indirect, config.direct_samples, config.temperature) == (5, 3, 10, 1.0)
    assert (config.overlaps[0], config.judge_tokens, config.direct_tokens) == ("judge", 50, 15)
    assert name_lists.LIST_CHARACTERS == 100


# ---- prompts
class Recording:
    """A model that remembers what it was asked; it says what `answer` makes of the last message."""

    name = "recording"

    def __init__(self, answer=lambda text: "Yes."):
        self.requests, self.answer = [], answer

    def fits(self, request):
        return len(request.messages[-1]["content"]) < 2_000

    def ask(self, requests):
        self.requests += requests
        return [Reply(self.answer(request.messages[-1]["content"])) for request in requests]


TITLE = 'On "quotes", {braces}\nand \\lines'
REFS = references(
    [
        {"ref_id": "a", "topic": "T", "gen_title": TITLE, "list_text": "1. X\n2. {title}", "position": 3}
        | {"grounded": 1},
        {"ref_id": "b", "topic": "T", "gen_title": "Plain", "list_text": "1. Plain", "position": 1, "grounded": 0},
    ]
)


def test_a_title_in_a_slot_is_one_line_with_its_quotes_escaped():
    model = Recording()
    table = hr.sample_direct(REFS, model, "DQ1", 2, hr.Config())
    assert 'the reference "On \\"quotes\\", {braces} and \\\\lines" exist' in model.requests[0].messages[-1]["content"]
    assert model.requests[0].messages[0] == {"role": "system", "content": "You are a helpful assistant"}
    assert table["template"].unique().tolist() == [sessions.EXISTS.version]
    hr.sample_direct(REFS, model, "DQ1", 1, hr.Config(system=""))
    assert [m["role"] for m in model.requests[-1].messages] == ["user"]


def test_every_sample_is_a_session_of_its_own():
    """Each request holds one question, knows of no other answer, and has a number of its own."""
    model = Recording(lambda text: "AUTHORS: Ana Rossi")
    table = hr.sample_indirect(REFS, model, 3, hr.Config())
    assert [(r.sample, r.temperature, len(r.messages)) for r in model.requests] == [(0, 1, 2), (1, 1, 2), (2, 1, 2)] * 2
    assert list(table) == ["ref_id", "query", "sample_index", "text", "logp", "template", "value"]
    assert len({request.key("m") for request in model.requests}) == 6


def test_the_second_direct_question_is_a_dialogue_and_the_third_shows_the_list_and_the_stored_number():
    model = Recording()
    hr.sample_direct(REFS, model, "DQ2", 1, hr.Config())
    assert [m["role"] for m in model.requests[0].messages] == ["system", "user", "assistant", "user"]
    assert "quotes" in model.requests[0].messages[2]["content"]
    assert "quotes" not in model.requests[0].messages[3]["content"]
    hr.sample_direct(REFS, model, "DQ3", 1, hr.Config())
    text = model.requests[2].messages[-1]["content"]
    assert "1. X\n2. {title}\n" in text
    assert "number 3 exist" in text


def test_a_prompt_that_does_not_fit_names_its_reference():
    long = REFS.assign(list_text="x" * 3_000)
    with pytest.raises(ValueError, match="the prompt for 'a' is too long for the context of recording; leave it out"):
        hr.sample_direct(long, Recording(), "DQ3", 1, hr.Config())


# ---- reading lists
def test_lists_keep_what_parses_and_say_what_does_not():
    lists = {"A": "1. One\n2. Two", "B": "NOTHING", "C": "\n".join(f"{i}. C{i}" for i in range(1, 8)), "D": "1. one."}
    model = Recording(lambda text: lists[text.split('"')[1]])
    config = hr.Config(**SMALL)
    refs = hr.generate_claims(list(lists), model, 5, config)
    assert refs.groupby("topic").size().to_dict() == {"A": 2, "C": 7, "D": 1}
    assert refs["duplicate_of"].tolist()[-1] == "t0-1"
    samples = hr.sample_indirect(refs, model := Recording(lambda text: "Ana Rossi"), 3, config)
    part = Part(model, list(lists), None, {})
    agreements = hr.agree(part, model, samples, hr.Config(overlaps=["jaccard"]))
    found = reference_scores.counts(refs, samples, agreements, topics=part.topics, n_titles=5)
    assert found["topics_without_titles"] == ["B"]
    assert (found["lists_of_another_length"], found["duplicates"]) == (3, 1)
    with pytest.raises(ValueError, match="no title could be read in the lists for 4 topics"):
        hr.generate_claims(list(lists), Recording(lambda text: "I cannot."), 5, config)


# ---- scores
def tables(replies):
    """Samples and agreements of references whose author replies are given."""
    refs = references([{"ref_id": r, "topic": r, "gen_title": r, "position": 1, "list_text": ""} for r in replies])
    said = iter([text for each in replies.values() for text in each])
    samples = hr.sample_indirect(refs, model := Recording(lambda text: next(said)), 3, hr.Config())
    part = Part(model, [], refs, {}, judges=False)
    return (
        refs,
        samples,
        hr.agree(part, model, samples, hr.Config()),
        hr.agree(part, model, samples, hr.Config(rules="official")),
    )


def test_a_worked_example_and_missing_replies():
    refs, samples, strict, official = tables(
        {
            "paper": ["A. Rossi, B. Lund", "A. Rossi", "C. Ito"],
            "refused": ["A. Rossi", "", "A. Rossi"],
            "silent": ["A. Rossi", "", "sorry"],
        }
    )
    jaccard = [t[t["method"] == "jaccard"] for t in (strict, official)]
    found, zeros = (reference_scores.consistency(t, samples) for t in jaccard)
    assert found["IQ"].to_dict() == pytest.approx({"paper": 0.5 / 3, "refused": 1.0, "silent": math.nan}, nan_ok=True)
    assert zeros["IQ"].to_dict() == pytest.approx({"paper": 0.5 / 3, "refused": 1 / 3, "silent": math.nan}, nan_ok=True)
    assert found["IQ_se"]["paper"] == pytest.approx(np.std([0.5, 0, 0], ddof=1) / math.sqrt(3))
    assert jaccard[0]["pair"].tolist()[:3] == [[0, 1], [0, 2], [1, 2]]
    scores = reference_scores.score(refs, samples, strict)
    assert scores["IQ_containment"][0] == 0.25
    assert "DQ" not in scores


def test_ensembles_are_plain_means_and_missing_where_a_member_is():
    table = reference_scores.combined(
        pd.DataFrame({"IQ": [0.2, math.nan], "DQ1": [1.0, 1.0], "DQ2": [0.5, 0.5], "DQ3": [0.0, 0.3]})
    )
    assert table["DQ"].tolist() == pytest.approx([0.5, 0.6])
    assert table["IQ_DQ"].tolist() == pytest.approx([0.35, math.nan], nan_ok=True)
    assert table["IQ_DQ1"][0] == 0.6


MEASURE = {"seed": 0, "bootstrap": 20, "curve_bootstrap": 20}


def test_measurements_leave_out_and_count_what_is_missing():
    table = pd.DataFrame(
        {"ref_id": list("abcdef"), "topic": list("aabbcc"), "grounded": [1, 0, 1, 0, None, 1]}
        | {"IQ": [0.9, 0.1, 0.8, 0.2, 0.5, None], "duplicate_of": ["", "", "", "", "", "a"]}
    )
    found = reference_scores.measure(table, **MEASURE)
    assert (found["n"], found["n_labelled"], found["n_measured"], found["missing"]) == (6, 5, 4, {"IQ": 1})
    assert found["auroc"]["IQ"][0] == 1.0
    assert found["kept"]["IQ"][2] == [0.5, 2, 0.5, 0]
    assert reference_scores.measure(table, **MEASURE, deduplicate=True)["n"] == 5
    assert reference_scores.measure(table.assign(grounded=math.nan), **MEASURE)["n_measured"] == 0
    with pytest.warns(UserWarning, match="all 5 labelled references are real: AUROC is undefined"):
        one = reference_scores.measure(table.assign(grounded=1.0), **MEASURE)
    assert math.isnan(one["auroc"]["IQ"][0])
    assert one["rate"][0] == 0.0


# ---- the run
@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, *run_seeds(folder, hr.Config(**SMALL), [0, 1])


def test_scoring_again_needs_the_transcript_alone(small, tmp_path, monkeypatch):
    (tmp_path / "seed-0").mkdir()
    shutil.copy(small[0] / "seed-0" / "transcript.jsonl", tmp_path / "seed-0" / "transcript.jsonl")
    monkeypatch.setattr(Transcript, "_append", lambda *a: pytest.fail("asked again"))
    assert run_seeds(tmp_path, hr.Config(**SMALL), [0])[1] == small[2][:1]


def test_tables_of_the_run_folder(small):
    folder = small[0] / "seed-0" / "simulated"
    assert sorted(path.stem for path in folder.iterdir()) == TABLES
    refs, samples, agreements, scores = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("references", "samples", "agreements", "scores")
    )
    assert list(refs) == ["ref_id", "topic", "gen_title", "list_text", "position", "model", "grounded", "duplicate_of"]
    assert {"ref_id", "query", "sample_index", "text", "value", "template", "seed"} <= set(samples)
    assert samples.groupby("query").size().to_dict() == {
        "IQ": 3 * len(refs),
        **{f"DQ{k}": 10 * len(refs) for k in (1, 2, 3)},
    }
    assert list(agreements) == ["ref_id", "pair", "method", "overlap", "raw_text"]
    assert len(agreements) == 3 * 3 * len(refs)
    assert {"ref_id", "IQ", "DQ1", "DQ2", "DQ3", "DQ", "IQ_DQ", "IQ_DQ1", "IQ_judge"} <= set(scores)
    part = small[2][0]["arms"]["simulated"]
    assert part["n"] == len(refs)
    assert part["unread_authors"] == samples[samples["query"] == "IQ"]["value"].isna().sum()


# ---- views: the tables behind the figures, escaped text, and faces without a kernel
BAD = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, golden_path):
    task = hr.open_task(hr.Config(), dataset=str(golden_path("real_hallucinated_references.json")))
    return run_seeds(tmp_path_factory.mktemp("recorded"), hr.Config(bootstrap=400, curve_bootstrap=20), [0], task)


def test_every_score_has_a_dot_and_the_title_names_the_best(small):
    display = look.ensembles(small[2])
    table = display.frame()
    assert set(table["arm"]) == set(small[2][0]["arms"]["simulated"]["auroc"])
    areas = [result["arms"]["simulated"]["auroc"]["IQ"][0] for result in small[2]]
    assert table.loc[table["arm"] == "IQ", "mean"].item() == pytest.approx(np.mean(areas))
    assert "Best score: " in display.figure().layout.title.text


def test_curves_end_where_everything_is_kept(small):
    rate = np.mean([r["arms"]["simulated"]["rate"][0] for r in small[2]])
    table = look.fdr_curves(small[2]).frame()
    np.testing.assert_allclose(table[table["kept"] == 1.0]["mean"], rate)
    roc = look.roc_curves(small[2]).frame()
    assert (roc[roc["false"] == 1.0]["mean"] == 1.0).all()


def test_tables(small):
    _, experiment, results = small
    assert look.means(results)["score"].tolist()[0] == look.SCORES["IQ"].title
    checks = look.checks(results)
    assert checks.loc["references"].item() == sum(r["arms"]["simulated"]["n"] for r in results)
    assert look.over_topics(results)["topics"].unique().tolist() == [6]
    assert look.exposure(experiment).startswith("No seed of this run trains a transformer")
    assert look.published(results).startswith("Nothing was recorded")
    assert look.experts(results).startswith("The labels of experts are in the recorded results")


def test_exposure(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}" / "transformer"
        folder.mkdir(parents=True)
        pd.DataFrame({"exposure": [0, 1, 16] * 4, "IQ": rng.random(12), "DQ1": [0.7, 0.8, 0.9] * 4}).to_parquet(
            folder / "scores.parquet"
        )
    display = look.exposure(SimpleNamespace(seeds=[0, 1, 2], run=Run(tmp_path)))
    assert "DQ1 0.70 to 0.90" in display.figure().layout.title.text
    assert display.figure().layout.xaxis.ticktext == ("0", "1", "16")


def test_cards_show_sessions_overlaps_and_yes_and_escape_all_text(small):
    cards = look.cards(small[1])
    assert cards.frame()["IQ"].dropna().is_monotonic_decreasing
    page = cards.html(0)
    assert page.count("authors, session") == 3
    assert "overlap by jaccard" in page
    assert "1 and 2: " in page
    assert "yes " in page
    cards.tables["samples"]["text"] = BAD
    cards.scores = cards.scores.assign(gen_title=BAD, topic=BAD, list_text=BAD, duplicate_of=BAD)
    bundle = cards._repr_mimebundle_()
    for text in (cards.html(1), bundle["text/html"], cards.figure().to_json()):
        assert "<img" not in text.replace("\\u003c", "<")
    assert bundle["text/html"].count("reference-card") == 4


def test_what_is_missing_is_said(small):
    cards = look.cards(small[1])
    ref = cards.scores["ref_id"][0]
    samples = cards.tables["samples"]
    samples.loc[(samples["ref_id"] == ref) & (samples["sample_index"] == 0), "value"] = np.nan
    agreements = cards.tables["agreements"]
    agreements.loc[agreements["ref_id"] == ref, "overlap"] = np.nan
    cards.scores.loc[0, ["IQ", "IQ_DQ"]] = np.nan
    page = cards.html(0)
    assert "no names: left out" in page
    assert "1 and 2: missing" in page
    assert "1 with neither left out" in page
    assert "IQ missing" in page


def test_nothing_to_show(small):
    view = look.cards(small[1])
    with pytest.raises(ValueError, match="no references to show"):
        look.ReferenceCards({**view.tables, "scores": view.tables["scores"].head(0)})


def test_without_labels_the_views_say_so():
    results = [{"arms": {"references": {"n_measured": 0}}, "replies": 5}]
    for view in (look.ensembles, look.roc_curves, look.fdr_curves, look.means, look.over_topics):
        assert view(results) == look.NO_LABELS


def test_recorded_results_have_bands_over_topics_and_published_figures(recorded):
    experiment, results = recorded
    display = look.fdr_curves(results)
    assert {"low", "high"} <= set(display.frame())
    assert sum(trace.fill == "toself" and len(trace.x) == 100 for trace in display.figure().data) >= 12
    table = look.published(results)
    assert (table["paper"] - table["again"]).abs().max() < 1e-3
    assert len(table) == 21
    assert look.experts(results).iloc[:, 1].between(0.97, 1).all()
    assert look.cards(experiment).startswith("Recorded results have scores alone")
    assert look.checks(results).startswith("Recorded results")


def test_the_ranking_orders_titles_and_says_so_where_there_are_none(small, recorded):
    ranking = look.ranking(small[1], seed=0)
    assert next(iter(ranking.scores)) == "IQ_DQ"
    assert set(ranking.answers["correct"].dropna()) == {0.0, 1.0}
    assert look.ranking(recorded[0], seed=0).startswith("The recorded results hold no titles")


# ---- real models and files: the same code with another part
def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WORLD = Citations(n_topics=10)


@pytest.fixture
def real(monkeypatch):
    """The simulated model stands for a real one, behind a file of topics and a bibliography."""
    monkeypatch.setattr(
        ReferenceFile,
        "part",
        lambda self, arm, seed: Part(WORLD.subject(7), self.topics, self.references, self.labels, self.direct),
    )


def test_topics_and_a_bibliography(tmp_path, real):
    titles = tmp_path / "titles.txt"
    titles.write_text("\n".join(title.upper() for title, fact in WORLD.truth(7).items() if fact.exists))
    config = hr.Config(bootstrap=200, curve_bootstrap=20, overlaps=["judge"], bibliography=str(titles))
    dataset = write(tmp_path / "topics.jsonl", [{"topic": topic} for topic in WORLD.topics])
    experiment, results = run_seeds(tmp_path, config, [0], hr.open_task(config, model="m", dataset=dataset))
    part = results[0]["arms"]["references"]
    truth = WORLD.truth(7)
    refs = pd.read_parquet(tmp_path / "seed-0" / "references" / "references.parquet")
    assert refs["grounded"].tolist() == [truth[title].exists for title in refs["gen_title"]]
    assert part["auroc"]["IQ"][0] > 0.7
    verdicts = claims(experiment, results).verdicts()
    assert set(verdicts) == {"C1", "C2", "C3", "C4", "C4b", "C5", "C6", "C7"}
    record = json.loads((tmp_path / "seed-0" / "transcript.jsonl").read_text().splitlines()[0])
    assert "numbered list" in record["request"][-1]["content"]


def test_own_references_without_labels_get_scores_and_no_claims(tmp_path, real):
    rows = [
        {"ref_id": f"r{i}", "topic": "T", "gen_title": title, "list_text": f"1. {title}", "position": 1}
        for i, title in enumerate(list(WORLD.truth(7))[:6])
    ]
    config = hr.Config(**SMALL)
    task = hr.open_task(config, model="m", dataset=write(tmp_path / "refs.jsonl", rows))
    experiment, results = run_seeds(tmp_path, config, [0, 1, 2], task)
    assert results[0]["arms"]["references"]["n_measured"] == 0
    assert pd.read_parquet(tmp_path / "seed-0" / "references" / "scores.parquet")["IQ"].notna().sum() >= 5
    assert set(claims(experiment, results).verdicts().values()) == {"needs full scale"}


@pytest.mark.slow
def test_a_tiny_real_model(tmp_path):
    """A random Llama: its lists cannot be read; of given references its replies are counted as unread."""
    save_policy(tmp_path / "tiny", "AUTHORS: Ana Rossi. Yes.")
    sizes = {"list_tokens": 16, "author_tokens": 8, "direct_tokens": 2, "direct_samples": 2, "judge_tokens": 4}
    config = hr.Config(**SMALL | {"overlaps": ["judge", "jaccard"]} | sizes)
    model = str(tmp_path / "tiny")
    topics = write(tmp_path / "topics.jsonl", [{"topic": "Tools: hammers"}, {"topic": "Tools: saws"}])
    with pytest.raises(ValueError, match="no title could be read in the lists for 2 topics; look at transcript"):
        hr.run(hr.open_task(config, model=model, dataset=topics, device="cpu"), config, 0, Run(tmp_path / "a"))
    rows = [
        {"ref_id": f"r{i}", "topic": "T", "gen_title": f"Title {i}", "list_text": f"1. Title {i}"}
        | {"position": 1, "grounded": i % 2}
        for i in range(4)
    ]
    task = hr.open_task(config, model=model, dataset=write(tmp_path / "refs.jsonl", rows), device="cpu")
    result = hr.run(task, config, 0, Run(tmp_path / "b"))
    part = result["arms"]["references"]
    assert part["unread_direct"] == {"DQ1": 8, "DQ2": 8, "DQ3": 8}
    assert part["n_measured"] == 0
    scores = pd.read_parquet(tmp_path / "b" / "references" / "scores.parquet")
    assert scores["authors_logp"].lt(0).all()
    assert scores["DQ"].isna().all()


@pytest.mark.slow
def test_the_authors_log_probability_is_a_score_where_there_is_one(tmp_path, runs_root):
    """The transformer at a small size: its part of the run."""
    config = hr.Config(**{**SMALL, "book_seeds": [0]}, n_books=20, n_invented=20, book_steps=10)
    _, results = run_seeds(tmp_path, config, [0, 1])
    part = results[0]["arms"]["transformer"]
    assert "transformer" not in results[1]["arms"]
    assert {"IQ", "DQ1", "IQ_DQ1", "authors_logp"} <= set(part["auroc"])
    assert not {"DQ2", "DQ", "IQ_judge"} & set(part["auroc"])
    assert len(part["exposure_correlation"]) == 2


# ---- recorded results
def test_the_published_figures_come_out_again(recorded):
    experiment, results = recorded
    judged = claims(experiment, results)
    verdicts = judged.verdicts()
    assert verdicts.pop("C7") == "needs full scale"
    assert set(verdicts.values()) == {FOLLOWS}
    found = {claim.id: claim for claim in judged.decided()}
    assert len(found["C3"].measured) == 12
    assert found["C2"].conditions["figures that the file states of itself, to 1e-4"]
    gains = {model: part["gains"]["IQ_DQ - IQ"] for model, part in results[0]["arms"].items()}
    assert [low > 0 for _, low, _ in gains.values()] == [True, False, False]  # over IQ alone: only GPT-4


def test_a_wrong_record_is_noticed(tmp_path, golden):
    """Labels of one model turned round: its rate and its areas are not the published ones."""
    content = golden("real_hallucinated_references.json")
    del content["experts"]
    model = content["models"]["gpt-4"]
    model["grounded"] = [1 - label for label in model["grounded"]]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    config = hr.Config.at("tiny", bootstrap=50)
    experiment, results = run_seeds(tmp_path, config, [0], hr.open_task(config, dataset=str(path)))
    judged = claims(experiment, results)
    assert {judged.verdicts()[id] for id in ("C1", "C2", "C3", "C4", "C5")} == {DIFFERS}
    assert judged.verdicts()["C6"] == "needs full scale"
    assert {c.id: c.conditions for c in judged.decided()}["C1"] == {
        "rate of gpt-4 comes out": False,
        "rate of gpt-3.5-turbo comes out": True,
        "rate of text-davinci-003 comes out": True,
        "fewer from model to better model": True,
    }


def test_a_record_of_other_models_has_nothing_published(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps({"models": {"other": {"grounded": [1, 0, 1], "IQ": [0.9, 0.1, 0.5], "topic_index": [0, 1, 2]}}})
    )
    experiment, results = run_seeds(tmp_path, hr.Config(**SMALL), [0], hr.open_task(hr.Config(), dataset=str(path)))
    assert results[0]["arms"]["other"]["auroc"]["IQ"][0] == 1.0
    with pytest.raises(ValueError, match="none of other is a model of the paper"):
        claims(experiment, results)


# ---- what must hold in the planted world, and what must fail when the method is broken
SEEDS = list(range(100, 105))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny preset without transformers; sabotaged runs start from its transcripts, so they ask nothing."""
    folder = tmp_path_factory.mktemp("base")
    return folder, *run_seeds(folder, hr.Config.at("tiny", book_seeds=[], bootstrap=50, curve_bootstrap=20), SEEDS)


def again(base, folder, seeds=SEEDS, keep=(), **overrides):
    """Scores the replies of `base` again, into a folder of its own."""
    for seed in seeds:
        (folder / f"seed-{seed}").mkdir(parents=True)
        shutil.copy(base[0] / f"seed-{seed}" / "transcript.jsonl", folder / f"seed-{seed}" / "transcript.jsonl")
        for name in keep:
            (folder / f"seed-{seed}" / "simulated").mkdir(exist_ok=True)
            shutil.copy(
                base[0] / f"seed-{seed}" / "simulated" / f"{name}.parquet", folder / f"seed-{seed}" / "simulated"
            )
    config = hr.Config.at("tiny", book_seeds=[], bootstrap=50, curve_bootstrap=20, **overrides)
    experiment, results = run_seeds(folder, config, seeds)
    return claims(experiment, results).verdicts(), results


@pytest.mark.slow
def test_the_prototype_comes_back(base):
    """AUROC of our pilot, 20 seeds, mean (sd): ours, of five other seeds, lies within 2 sd."""
    _, experiment, results = base
    expected = {"IQ": (0.834, 0.024), "DQ1": (0.805, 0.024), "DQ2": (0.753, 0.024), "DQ3": (0.561, 0.024)}
    expected |= {"IQ_DQ": (0.920, 0.014)}
    for name, (mean, sd) in expected.items():
        assert area(results, name).mean() == pytest.approx(mean, abs=2 * sd), name
    assert (area(results, "IQ_DQ") > np.maximum(area(results, "IQ"), area(results, "DQ"))).all()
    verdicts = claims(experiment, results).verdicts()
    assert {verdicts[id] for id in ("C2", "C4", "C4b", "C5")} == {"shown in small"}
    assert {verdicts[id] for id in ("C1", "C2b", "C2c", "C3", "C6", "C7")} == {"needs full scale"}


@pytest.mark.slow
def test_samples_of_one_session_are_noticed(tmp_path, monkeypatch):
    """Three copies of one answer always agree: IQ is 1 for everything that has an answer, and separates nothing."""
    monkeypatch.setattr(sessions, "Request", lambda *three, **_: Request(*three[:3], 0))
    config = hr.Config.at("tiny", book_seeds=[], bootstrap=20, curve_bootstrap=20, direct_samples=1, n_topics=40)
    experiment, results = run_seeds(tmp_path, config, SEEDS[:4])
    np.testing.assert_allclose(area(results), 0.5)
    assert claims(experiment, results).verdicts()["C2"] == "not shown"


@pytest.mark.slow
def test_a_flipped_sign_is_noticed(base, tmp_path, monkeypatch):
    straight = selective.auroc
    monkeypatch.setattr(selective, "auroc", lambda h, s, *rest, **names: straight(1 - np.asarray(h), s, *rest, **names))
    verdicts, results = again(base, tmp_path, SEEDS[:4], keep=TABLES)
    assert area(results).max() < 0.3
    assert verdicts["C2"] == verdicts["C4"] == "not shown"


@pytest.mark.slow
def test_yes_inside_a_reply_is_noticed(base, tmp_path, monkeypatch):
    """2 % of the replies are "I cannot say yes": counted as yes they lift every share above the planted one."""

    def bias(results):
        shares = []
        for seed in SEEDS[:3]:
            truth = base[1].task.citations.truth(seed)
            scores = pd.read_parquet(results / f"seed-{seed}" / "simulated" / "scores.parquet")
            shares.append((scores["DQ2"] - [truth[title].yes["DQ2"] for title in scores["gen_title"]]).mean())
        return np.mean(shares)

    assert abs(bias(base[0])) < 0.006
    monkeypatch.setattr(hr, "read_yes", lambda text, official: float("yes" in text.lower()))
    again(base, tmp_path, SEEDS[:3], keep=["references"])
    assert bias(tmp_path) > 0.008


@pytest.mark.slow
def test_string_equality_is_noticed(base, tmp_path, monkeypatch):
    """Initials and accents make the same authors differ."""
    monkeypatch.setattr(
        name_lists,
        "read_names",
        lambda text: frozenset(text.split(": ")[-1].split(", ")) if "AUTHORS" in text else None,
    )
    _, results = again(base, tmp_path, SEEDS[:4], keep=["references", "samples"], overlaps=["jaccard"])
    assert area(results).mean() < 0.834 - 4 * 0.024  # the band of the test above


@pytest.mark.slow
def test_the_position_is_that_of_the_list_and_not_of_the_row(base):
    """One title dropped from 10 % of the lists leaves the third direct question of all others as it is; row numbers do
    not."""
    refs = pd.read_parquet(base[0] / "seed-100" / "simulated" / "references.parquet")
    dropped = refs.drop(refs.groupby("topic", sort=False).head(1).index[::10]).reset_index(drop=True)
    model, config = Citations().subject(100), hr.Config.at("tiny")
    ask, truth = hr.sample_direct, Citations().truth(100)

    def shares(refs):
        return ask(refs, model, "DQ3", 10, config).groupby("ref_id")["value"].mean().rename("share")

    def by_row(refs):
        return shares(refs.assign(position=np.arange(len(refs)) % 5 + 1))

    def follows(found):
        rates = refs.set_index("ref_id")["gen_title"].map(lambda title: truth[title].yes["DQ3"])
        return found.corr(rates.reindex(found.index))

    before, after = shares(refs), shares(dropped)
    pd.testing.assert_series_equal(after, before.reindex(after.index))
    assert not by_row(dropped).equals(before.reindex(after.index))
    assert follows(after) > 0.6  # rates near 1 seen in ten replies
    assert follows(by_row(dropped)) < 0.4


@pytest.mark.slow
def test_ties_in_the_order_of_the_file_are_noticed(base, monkeypatch):
    """A file with its real references first: broken by rows, ties make DQ1 look better than it is."""
    table = pd.read_parquet(base[0] / "seed-100" / "simulated" / "scores.parquet")
    files = [table.sort_values("grounded", ascending=first, ignore_index=True) for first in (False, True)]

    def curves():
        return [np.array(reference_scores.measure(file, **MEASURE)["curves"]["DQ1"])[:, 1] for file in files]

    np.testing.assert_allclose(*curves())
    checked = selective._checked

    def by_row(h, s, ids):
        labels, scores = checked(h, s, ids)
        return labels, scores - 1e-6 * np.arange(len(scores))

    monkeypatch.setattr(selective, "_checked", by_row)
    good, bad = curves()
    assert (bad - good).max() > 0.1


@pytest.mark.slow
def test_a_control_that_keeps_its_labels_is_noticed(base, tmp_path, monkeypatch):
    """Without shuffling the control shows what the claim shows, and no claim is shown."""

    class Still:
        def permutation(self, h):
            return h

    monkeypatch.setattr(
        reference_scores,
        "np",
        SimpleNamespace(**{**vars(np), "random": SimpleNamespace(default_rng=lambda seed: Still())}),
    )
    verdicts, _ = again(base, tmp_path, SEEDS[:4], keep=TABLES)
    assert {verdicts[id] for id in ("C2", "C4", "C4b", "C5")} == {"not shown"}
