"""PACE-LM: its run, its views, other input, what must hold in the planted world, what fails where it is broken."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small import save_policy

from workbench.feedback.chat import Reply
from workbench.feedback.templates import Template
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.pace_lm import calibration, prompts, retrieval
from workbench.methods.confidence.pace_lm import method as pl
from workbench.methods.confidence.pace_lm import scores as scored_cases
from workbench.methods.confidence.pace_lm import view as look
from workbench.methods.confidence.pace_lm.cases import check_cases, check_history
from workbench.methods.confidence.pace_lm.experiment import CONTROLS, claims, values
from workbench.methods.confidence.pace_lm.scores import MAIN
from workbench.methods.confidence.pace_lm.world import Incidents
from workbench.runs.run import Run

SMALL = {"n_history": 80, "n_calibration": 100, "n_test": 30, "n_analyses": 1, "n_answers": 2, "bootstrap": 20}
SMALL |= {"max_missing": 0.5, "max_unparsed": 0.1, "arms": [MAIN, *CONTROLS]}
MEDIUM = {"n_calibration": 120, "n_test": 100, "n_analyses": 1, "n_answers": 4, "bootstrap": 20}
MEDIUM |= {"max_missing": 0.5, "arms": [MAIN, *CONTROLS]}


def run_seeds(folder, config, seeds, task=None):
    """An experiment as claims and views see it, and its results."""
    task = task or pl.open_task(config)
    results = [pl.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    results = json.loads(json.dumps(results, default=float))
    return SimpleNamespace(task=task, config=config, seeds=seeds, scale="tiny", run=Run(folder)), results


def mean(results, score, metric, arm=MAIN):
    return values(results, arm, score, metric).mean()


def test_no_prompt_of_the_first_phase_shows_the_proposal(tmp_path):
    """The texts that the model saw, not the templates."""
    config = pl.Config(**{**SMALL, "arms": [MAIN]})
    task, seen = pl.open_task(config), []

    class Spy:
        def __init__(self, model):
            self.model, self.name, self.fits = model, model.name, model.fits

        def ask(self, requests):
            seen.extend(r.messages[0]["content"] for r in requests)
            return self.model.ask(requests)

    spied = SimpleNamespace(tables=task.tables, subject=lambda seed: Spy(task.subject(seed)), is_simulated=True)
    pl.run(spied, config, 0, Run(tmp_path))
    first = [text for text in seen if "Sufficient:" in text or "Do not name a cause" in text]
    assert len(first) > 400
    assert not any("Proposed cause" in text for text in first)


# ---- the run
@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, *run_seeds(folder, pl.Config(**{**SMALL, "arms": [MAIN, *CONTROLS, "k3"]}), [0, 1])


def test_tables_of_the_run_folder(small):
    folder = small[0] / "seed-0"
    scores, references, samples = (
        pd.read_parquet(folder / name)
        for name in ("scores.parquet", "similar/references.parquet", "similar/samples.parquet")
    )
    assert list(scores)[:5] == ["case_id", "coe", "rce", "confidence", "transform_id"]
    assert list(references) == ["case_id", "rank", "incident_id", "similarity"]
    assert {"case_id", "phase", "analysis_index", "answer_index", "raw_text", "value", "parse_status"} <= set(samples)
    assert set(samples["phase"]) == {"coe", "rce", "direct", "direct_references"}
    assert samples["version"].nunique() == 4
    assert scores["confidence"].dropna().between(0, 1).all()
    assert (scores["confidence"].isna() == (scores["flag"] == "scores missing")).all()
    assert not pd.read_parquet(folder / "none" / "references.parquet").size


def test_every_reply_is_logged_once_and_scoring_again_asks_nothing(small, tmp_path, monkeypatch):
    folder, experiment, results = small
    append = Transcript._append

    def dying(self, records):
        append(self, records)
        if len(self) > 1500:
            raise KeyboardInterrupt

    monkeypatch.setattr(Transcript, "_append", dying)
    with pytest.raises(KeyboardInterrupt):
        run_seeds(tmp_path, experiment.config, [0])
    log = tmp_path / "seed-0" / "transcript.jsonl"
    assert 1500 < len(Transcript(log)) < results[0]["replies"]
    monkeypatch.setattr(Transcript, "_append", append)
    assert run_seeds(tmp_path, experiment.config, [0])[1] == results[:1]
    assert log.read_bytes() == (folder / "seed-0" / "transcript.jsonl").read_bytes()  # in the same order
    monkeypatch.setattr(Transcript, "_append", lambda *a: pytest.fail("asked again"))
    for table in (tmp_path / "seed-0").rglob("*.parquet"):
        table.unlink()
    assert run_seeds(tmp_path, experiment.config, [0])[1] == results[:1]


def test_too_many_unread_replies_stop_the_run(tmp_path):
    said = r"replies of phase 'coe' could not be read, more than max_unparsed = 0\.1 allows"
    with pytest.raises(ValueError, match=said):
        run_seeds(tmp_path, pl.Config(**{**SMALL, "garbled": 0.3}), [0])


# ---- the views: figures say what the tables say, text is escaped, the static face needs no kernel
def test_the_reliability_diagram_counts_every_case_once(small):
    _, experiment, results = small
    display = look.reliability_diagram(experiment)
    table = display.frame()
    n = sum(result["arms"][MAIN]["n"] for result in results)
    assert table.groupby("score")["count"].sum().tolist() == [n] * 3
    assert {"bin", "count", "confidence", "accuracy", "lower", "upper"} <= set(table)
    assert "rating (rce), raw" in display.figure().layout.title.text
    experiment.task = SimpleNamespace(is_simulated=False)  # real seeds share their cases
    once = look.reliability_diagram(experiment).frame().groupby("score")["count"].sum()
    experiment.task = pl.open_task(experiment.config)
    assert once.tolist() == [results[0]["arms"][MAIN]["n"]] * 3


def test_figures_and_tables_state_what_was_measured(small):
    _, experiment, results = small
    ece = values(results, "random", "logistic", "ece").mean()
    assert f"random references have ECE {ece:.3f}" in look.by_references(results).figure().layout.title.text
    assert set(look.by_references(results).frame()["arm"]) == set(results[0]["arms"])
    assert "base rate" in look.by_score(results).figure().layout.title.text
    assert set(look.transfer_figure(results).frame()["panel"]) == {"weak", "strong"}
    assert look.transfer_figure([{**r, "transfer": {}} for r in results]).startswith(
        "The cases come from one predictor"
    )
    means = look.means(results)
    assert means.loc["rating (rce), raw", "auroc"] == pytest.approx(
        values(results, MAIN, "raw_rce", "auroc").mean(), abs=1e-3
    )
    checks = look.checks(experiment, results)
    assert checks.loc["test cases compared", "mean"] == np.mean([r["arms"][MAIN]["n"] for r in results])
    assert "coe and the proposal at equal evidence, correlation" in checks.index


def test_a_case_shows_references_samples_proposal_and_scores(small):
    view = look.CaseView(small[1], seed=1, shown=2)
    text = view.html(0)
    for part in ("incident", "proposed cause", "reference 1, similarity", "samples, coe", "samples, rce", "confidence"):
        assert part in text
    assert view._repr_mimebundle_()["text/html"].count("case-view") == 2
    assert view.frame()["split"].eq("test").all()
    bar, shown = view.widget().children
    bar.children[2].click()
    assert shown.value == view.html(1)


def test_text_of_models_and_cases_is_escaped(small):
    view = look.CaseView(small[1])
    first = view.table["case_id"][0]
    view.table.loc[0, ["summary", "predicted_root_cause"]] = "<script>alert(1)</script>"
    view.references[first] = view.references[first].assign(root_cause="<b>x</b>")
    view.samples[first] = view.samples[first].assign(raw_text="<i>y</i>", parse_status="unparsed")
    text = view.html(0)
    assert not any(tag in text for tag in ("<script>", "<b>x</b>", "<i>y</i>"))
    assert "&lt;script&gt;" in text
    assert "[unread]" in text


def test_what_is_not_there_is_named(small):
    with pytest.raises(ValueError, match=r"no table 'scores' of seed 9; seeds of this run: \[0, 1\]"):
        look.CaseView(small[1], seed=9)
    with pytest.raises(ValueError, match="no case of split 'later' to show; splits: calibration, fresh, test"):
        look.CaseView(small[1], split="later")
    assert pd.api.types.is_float_dtype(look.means(small[2])["ece"])


def test_the_ranking_holds_every_measured_case(small):
    _, experiment, results = small
    ranking = look.ranking(experiment, seed=1)
    assert len(ranking.answers) == results[1]["arms"][MAIN]["n"]
    assert next(iter(ranking.scores)) == "chosen"
    assert ranking.frame()["score"].is_monotonic_decreasing
    assert look.ranking(experiment, seed=9).startswith("No labelled test cases")


# ---- other input
class Plain:
    """A text-only stub, with neither weights nor log-probabilities."""

    name = "plain"

    def __init__(self, world):
        self.world = world

    def ask(self, requests):
        return [Reply(reply.text, None) for reply in self.world.ask(requests)]

    def fits(self, request):
        return True


def real(cases, history):
    given = {"tables": lambda seed: (cases, history), "is_simulated": False, "name": "real"}
    given |= {"subject": lambda seed: Plain(Incidents(garbled=0.0).subject(seed))}
    return SimpleNamespace(**given)


def rows(n, **changes):
    """Tables of `n` main cases as a file would bring them."""
    cases, history = Incidents(80, max(n - 20, 0), 20, 0.0).tables(3)
    cases = cases[(cases["predictor"] == "main") & (cases["split"] != "fresh")].assign(**changes)
    return check_cases(cases.to_dict("records")), check_history(history.to_dict("records"))


def test_without_labels_there_are_scores_and_no_confidence(tmp_path):
    task = real(*rows(30, correct=None))
    experiment, results = run_seeds(tmp_path, pl.Config(**SMALL), [0], task)
    scores = pd.read_parquet(tmp_path / "seed-0" / "scores.parquet")
    assert scores["confidence"].isna().all()
    assert scores["transform_id"].isna().all()
    assert scores[["coe", "rce"]].notna().all().all()
    assert set(scores["flag"]) == {"no labels"}
    with pytest.raises(ValueError, match=r"nothing can be measured; what was scored is in scores\.parquet"):
        claims(experiment, results)


def test_few_labels_are_an_error_before_anything_is_asked_or_leave_platt(tmp_path):
    with pytest.raises(ValueError, match=r"49 labelled calibration cases, \d+ of them right"):
        run_seeds(tmp_path / "few", pl.Config(**SMALL), [0], real(*rows(69)))
    assert not (tmp_path / "few" / "seed-0" / "transcript.jsonl").exists()
    with pytest.raises(ValueError, match="60 labelled calibration cases, 60 of them right"):
        run_seeds(tmp_path / "one", pl.Config(**SMALL), [0], real(*rows(80, correct=1)))
    with pytest.warns(UserWarning, match="only Platt's map of the rating is fitted"):
        _, results = run_seeds(tmp_path / "platt", pl.Config(**SMALL), [0], real(*rows(80)))
    scores = pd.read_parquet(tmp_path / "platt" / "seed-0" / "scores.parquet")
    assert scores["transform_id"].str.startswith("rce-").all()
    assert results[0]["arms"] == {}


def test_a_case_without_a_proposal_is_not_rated_and_gets_the_base_rate_of_such(tmp_path):
    cases, history = rows(140)
    empty = [0, 1, 2, 3, 125]  # four calibration cases, of which one is right, and a test case
    cases.loc[empty, "predicted_root_cause"] = ["", "unknown", "", "Unknown", ""]
    cases.loc[empty, "correct"] = [1.0, 0.0, 0.0, 0.0, np.nan]
    run_seeds(tmp_path, pl.Config(**SMALL), [0], real(cases, history))
    scores = pd.read_parquet(tmp_path / "seed-0" / "scores.parquet")
    flagged = scores[scores["flag"] == "no prediction: base rate of such cases"]
    assert flagged["case_id"].tolist() == cases.loc[empty, "case_id"].tolist()
    assert set(flagged["confidence"]) == {0.25}
    assert flagged["rce"].isna().all()
    assert flagged["coe"].notna().all()


def test_cases_without_an_older_incident_are_left_out_and_counted(tmp_path):
    cases, history = rows(140)
    cases.loc[:1, "created"] = history["created"].min()
    _, results = run_seeds(tmp_path, pl.Config(**SMALL), [0], real(cases, history))
    assert results[0]["no_earlier"] == 2
    assert results[0]["excluded"]["not_older"] == 2 * len(history)
    scores = pd.read_parquet(tmp_path / "seed-0" / "scores.parquet").set_index("case_id")
    assert scores.loc[cases["case_id"][:2], "confidence"].isna().all()
    cases["created"] = history["created"].min()
    with pytest.raises(ValueError, match="no case has an earlier incident"):
        run_seeds(tmp_path / "all", pl.Config(**SMALL), [0], real(cases, history))


def test_real_cases_with_self_consistency_and_a_second_predictor(tmp_path):
    """A file: one set of cases for all seeds, a predictor that was sampled, claims with intervals over cases."""
    cases, history = rows(130)
    other = cases.assign(case_id=cases["case_id"] + "-b", predictor="other")
    both = pd.concat([cases, other], ignore_index=True)
    both["predictor_samples"] = [[p, p.upper() + ".", "x", "y"] for p in both["predicted_root_cause"]]
    experiment, results = run_seeds(tmp_path, pl.Config(**SMALL), [0, 1], real(both, history))
    assert set(results[0]["arms"][MAIN]["scores"]["self_consistency"]) == set(calibration.MEASURES)
    assert mean(results, "self_consistency", "auroc") == 0.5  # half of all samples agree, everywhere
    records = {record["id"]: record for record in claims(experiment, results).records()}
    assert "ece_raw_rce: excludes 0 over cases" in records["C1"]["conditions"]
    assert records["C4"]["test"] == "wilcoxon"
    assert results[0]["transfer"]["other"]["transferred"] == results[0]["transfer"]["other"]["own"]


@pytest.mark.slow
def test_a_tiny_real_model_reads_grade_school_problems(tmp_path, shared):
    """A random Llama in the hub's format: prompts lose references to fit, its replies are logged, none can be read."""

    lines = (shared / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[:12]
    problems = [json.loads(line) for line in lines]
    folder = tmp_path / "study"
    folder.mkdir()
    made = [{"summary": p["question"], "cause": p["answer"].split("####")[-1].strip()} for p in problems]
    history = [
        {"incident_id": f"h{i}", "summary": p["summary"], "root_cause": p["cause"], "created": "2024-01-01"}
        for i, p in enumerate(made[:9])
    ]
    cases = [
        {"case_id": f"c{i}", "summary": p["summary"], "predicted_root_cause": p["cause"], "created": "2024-02-01"}
        for i, p in enumerate(made[9:])
    ]
    for name, table in (("cases", cases), ("history", history)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in table))
    model = save_policy(tmp_path / "tiny", [p["question"] for p in problems], vocab_size=400)
    config = pl.Config.at("smoke", True, n_analyses=1, analysis_tokens=8, answer_tokens=4, max_unparsed=1.0)
    task = pl.open_task(config, model=model, dataset=str(folder), device="cpu")
    result = pl.run(task, config, 0, Run(tmp_path / "run"))
    used = {int(k) for k in result["k_used"]}
    assert max(used) < config.k
    assert result["labelled"] is False
    logged = (tmp_path / "run" / "transcript.jsonl").read_text().splitlines()
    assert "Earlier incidents" in json.loads(logged[0])["request"][0]["content"]
    with pytest.raises(ValueError, match="replies of phase 'coe' could not be read, more than max_unparsed"):
        pl.run(
            task,
            pl.Config.at("smoke", True, n_analyses=1, analysis_tokens=8, answer_tokens=4),
            0,
            Run(tmp_path / "run"),
        )


# ---- what must hold in the planted world, and what must fail when the method is broken
SEEDS = list(range(200, 207))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Seven seeds, smaller than the published run: as few as Wilcoxon's test with Holm's correction can use."""
    folder = tmp_path_factory.mktemp("base")
    return folder, *run_seeds(folder, pl.Config(**MEDIUM), SEEDS)


def sabotaged(folder, seeds=SEEDS[:1]):
    """The main arm alone, with whatever was broken before."""
    return run_seeds(folder, pl.Config(**{**MEDIUM, "arms": [MAIN]}), seeds)[1]


@pytest.mark.slow
def test_the_planted_truth_comes_back(base):
    """Bounds from our pilot."""
    _, experiment, results = base
    assert mean(results, "logistic", "ece") < mean(results, "raw_rce", "ece") - 0.05
    assert (
        mean(results, "logistic", "auroc") > mean(results, "raw_rce", "auroc") > mean(results, "raw_product", "auroc")
    )
    assert mean(results, "logistic", "brier") < mean(results, "grid_rce", "brier") < mean(results, "raw_rce", "brier")
    assert abs(mean(results, "direct", "ece") - 0.33) < 0.05
    assert abs(np.mean([r["coe_follows"] for r in results])) < 0.1
    verdicts = claims(experiment, results).verdicts()
    assert verdicts["C2"] == verdicts["C5"] == "shown in small"


@pytest.mark.slow
def test_the_trap_random_references_have_a_low_ece_and_no_worth(base):
    results = base[2]
    assert mean(results, "logistic", "ece", "random") < mean(results, "raw_rce", "ece", "random") / 2
    assert mean(results, "logistic", "ece", "random") < 0.12
    assert abs(mean(results, "logistic", "auroc", "random") - 0.5) < 0.06
    assert mean(results, "logistic", "brier", "random") > mean(results, "base_rate", "brier", "random") - 0.01
    # the null that ECE must be read against
    assert mean(results, "base_rate", "ece") < mean(results, "logistic", "ece")
    assert mean(results, "base_rate", "auroc") == 0.5


@pytest.mark.slow
def test_a_map_costs_calibration_on_another_predictor_and_refitting_gives_it_back(base):
    for name in ("weak", "strong"):
        parts = {
            way: np.mean([r["transfer"][name][way] for r in base[2]]) for way in ("own", "transferred", "refitted")
        }
        assert parts["transferred"] > parts["refitted"] + 0.02
        assert abs(parts["refitted"] - parts["own"]) < 0.04


@pytest.mark.slow
def test_a_proposal_in_the_first_prompt_is_noticed(base, tmp_path, monkeypatch):
    shown = prompts.PROPOSED.removeprefix(prompts.SHOWN)
    leaky = [
        Template(t.name, t.text.replace(prompts.SHOWN, prompts.SHOWN + shown))
        for t in (prompts.COE_ANALYSIS, prompts.COE_ANSWER)
    ]
    monkeypatch.setitem(pl.PHASES, "coe", pl.PHASES["coe"]._replace(analysis=leaky[0], answer=leaky[1]))
    results = sabotaged(tmp_path)
    assert all(r["coe_follows"] > 0.3 for r in results)
    seen = [{**r, "coe_follows": results[0]["coe_follows"]} for r in base[2]]
    records = {record["id"]: record for record in claims(base[1], seen).records()}
    assert records["C3"]["conditions"]["coe does not follow the proposal"] is False
    assert records["C3"]["verdict"] == "not shown"


@pytest.mark.slow
def test_swapped_scores_are_noticed(base, tmp_path, monkeypatch):
    scored = scored_cases.scored
    monkeypatch.setattr(scored_cases, "scored", lambda *a: scored(*a).rename(columns={"coe": "rce", "rce": "coe"}))
    results = sabotaged(tmp_path)
    seen = [{**r, "coe_follows": results[0]["coe_follows"]} for r in base[2]]
    assert claims(base[1], seen).verdicts()["C3"] == "not shown"


@pytest.mark.slow
def test_a_case_among_its_own_references_is_noticed(base, tmp_path, monkeypatch):
    """Resolved cases go into the store, as they do in life, and the guard is taken away."""
    tables = Incidents.tables

    def with_resolved(self, seed):
        cases, history = tables(self, seed)
        truth = self.truth(seed)
        resolved = cases.rename(columns={"case_id": "incident_id"}).assign(root_cause=cases["case_id"].map(truth))
        return cases, pd.concat([history, resolved[list(history.columns.drop("service"))]], ignore_index=True)

    monkeypatch.setattr(Incidents, "tables", with_resolved)
    guarded = sabotaged(tmp_path / "guarded", SEEDS[:1])[0]["true_share"]
    allowed = retrieval.allowed
    monkeypatch.setattr(retrieval, "allowed", lambda *a: allowed(*a)._replace(pairs=np.ones_like(allowed(*a).pairs)))
    with pytest.raises(ValueError, match=r"references row \d+: incident .* is not older than case"):
        sabotaged(tmp_path / "open", SEEDS[:1])
    monkeypatch.setattr(retrieval, "check_references", lambda *a: None)
    opened = sabotaged(tmp_path / "open", SEEDS[:1])[0]["true_share"]
    assert opened > guarded + 0.2


@pytest.mark.slow
def test_fitting_on_test_cases_shows_against_a_second_fresh_set(base, tmp_path, monkeypatch):
    def optimism(results):
        fresh = [r["fresh"]["scores"]["binned"]["brier"] for r in results]
        return np.array(fresh) - [r["arms"][MAIN]["scores"]["binned"]["brier"] for r in results]

    columns = scored_cases.columns
    monkeypatch.setattr(
        scored_cases, "columns", lambda table, split: columns(table, "test" if split == "calibration" else split)
    )
    leaked = sabotaged(tmp_path, SEEDS[:2])
    honest = optimism(base[2][:2])
    assert (optimism(leaked) > honest + 0.01).all()
    assert optimism(leaked).mean() > 0.02 > abs(optimism(base[2]).mean())


def test_unread_ratings_counted_as_zero_move_the_mean(tmp_path, monkeypatch):
    """Three in a hundred replies broken: the mean of what was read stays, a zero for each moves it."""
    config, five = pl.Config(**{**SMALL, "garbled": 0.0}), pl.Arm("five", k=5)
    cases, history = pl.open_task(config).tables(0)
    refs = pl.find_references(cases, history, five, config, 0)
    model = pl.open_task(config).subject(0)

    def breaking(requests):
        said = model.ask(requests)
        return [
            Reply("I would rather not say.") if i % 33 == 32 and r.text.startswith("Score") else r
            for i, r in enumerate(said)
        ]

    def rating(ask):
        samples = pl.ask_phases(cases, refs, history, five, model, ask, config)
        return samples.loc[samples["phase"] == "rce", "value"].mean()

    whole, broken = rating(model.ask), rating(breaking)
    assert abs(broken - whole) < 0.005
    read = prompts.read_score
    zero = pl.PHASES["rce"]._replace(read=lambda text: 0.0 if math.isnan(read(text)) else read(text))
    monkeypatch.setitem(pl.PHASES, "rce", zero)
    assert rating(breaking) < whole - 0.012
