"""leaderboard.py: published numbers from raw annotations, and planted truth."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench import ranking
from workbench.studies import leaderboard

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "leaderboard.ipynb"


@pytest.fixture(scope="module")
def public(shared):
    folder = shared / "data" / "alpaca_eval"
    annotations = leaderboard.load_annotations(folder / "annotations.csv.gz")
    return annotations, leaderboard.load_published(folder / "published.csv")


def whole(annotations, rounds=0, **options):
    controlled = leaderboard.length_controlled_win_rate(annotations, rounds=rounds, **options)
    strengths = leaderboard.bradley_terry_ranking(annotations)
    return leaderboard.leaderboard(leaderboard.win_rates(annotations), strengths, controlled)


def test_published_win_rates_come_out(public):
    annotations, published = public
    both = leaderboard.win_rates(annotations).merge(published, on="model", suffixes=("", "_published"))
    assert len(both) == len(published) == 29
    for column in ("win_rate", "standard_error"):
        np.testing.assert_allclose(both[column], both[f"{column}_published"], atol=1e-4, rtol=0)


def test_agreement_with_published_rates_is_reported(public, record_property):
    annotations, published = public
    agreement = leaderboard.compare_with_published(whole(annotations), published)
    assert len(agreement) == 5
    assert np.isfinite(agreement[["spearman", "kendall"]].to_numpy()).all()
    for row in agreement.to_dict("records"):  # how good they are is a result, not a requirement
        record_property(f"{row['ours']} against {row['reference']}", row["spearman"])


@pytest.mark.slow
def test_length_control_recovers_a_planted_order():
    """With a liking for length the controlled rate is nearer the truth; without, it costs little: the control."""
    table = leaderboard.planted_check(range(8), leaderboard.Config())
    biased, fair = table[table["length_bias"] == 1], table[table["length_bias"] == 0]
    assert len(biased) == len(fair) == 8
    assert (biased["spearman_controlled"] > biased["spearman_raw"]).sum() >= 7
    assert (biased["distance_controlled"] < biased["distance_raw"]).sum() >= 7
    assert biased["distance_controlled"].mean() < biased["distance_raw"].mean() / 1.5
    assert (fair["spearman_raw"] - fair["spearman_controlled"]).abs().mean() < 0.05
    assert (fair["distance_controlled"] - fair["distance_raw"]).abs().mean() < 1.5


def test_without_bias_the_raw_rate_lies_in_the_controlled_interval():
    hits = []
    for seed in range(4):
        annotations, _ = leaderboard.synthetic_annotations(length_bias=0.0, seed=seed)
        table = whole(annotations, rounds=60)
        low, high = table["length_controlled_lower"], table["length_controlled_upper"]
        rate, error = table["win_rate"], table["standard_error"]
        hits += list((low - error < rate) & (rate < high + error))
    assert np.mean(hits) > 0.85


def test_planted_rates_are_the_mean_preference_at_equal_length():
    annotations, truth = leaderboard.synthetic_annotations(5, 20_000, length_bias=0.0, seed=1)
    rates = leaderboard.win_rates(annotations).merge(truth, on="model")
    assert ((rates["win_rate"] - rates["length_controlled_winrate"]).abs() < 4 * rates["standard_error"]).all()
    tilted, again = leaderboard.synthetic_annotations(5, 20_000, length_bias=2.0, seed=1)
    pd.testing.assert_frame_equal(truth, again)
    assert (leaderboard.win_rates(tilted).merge(rates, on="model").eval("win_rate_x - win_rate_y").abs() > 3).any()


def test_without_length_differences_control_changes_little():
    annotations, _ = leaderboard.synthetic_annotations(6, 150, seed=2)
    annotations["model_chars"] = annotations["baseline_chars"]
    table = whole(annotations)
    np.testing.assert_allclose(table["length_controlled"], table["win_rate"], atol=0.2)
    np.testing.assert_allclose(table["length_effect"], 0, atol=1e-6)


def test_penalties_are_chosen_on_held_out_annotations():
    annotations, _ = leaderboard.synthetic_annotations(8, 100, seed=3)
    table = leaderboard.penalty_table(annotations, l2_length=[0.1, 1.0], l2_difficulty=[1.0, 1000.0])
    assert table["held_out_loss"].is_monotonic_increasing
    assert table["above_best"].iloc[0] == 0
    assert (table["l2_difficulty"][:2] == 1).all()  # difficulties are real in this world: switching them off costs
    assert leaderboard.best_penalties(table) == (table["l2_length"][0], 1.0)


def by_loops(annotations):
    wide = annotations.pivot(index="model", columns="instruction", values="preference")
    matches, instructions = [], []
    for instruction in wide:
        values = [*wide[instruction], 0.5]  # the baseline against itself
        for i, j in combinations(range(len(values)), 2):
            if not np.isnan(values[i] - values[j]):
                matches.append((i, j, (np.sign(values[i] - values[j]) + 1) / 2))
                instructions.append(instruction)
    return matches, instructions


def test_bradley_terry_matches_are_those_of_the_docstring():
    annotations, _ = leaderboard.synthetic_annotations(4, 40, seed=5)
    annotations = annotations.drop(index=[3, 50, 51]).reset_index(drop=True)
    annotations.loc[0, "preference"] = 0.5
    table = leaderboard.bradley_terry_ranking(annotations).set_index("model")
    matches, _ = by_loops(annotations)
    expected = ranking.bradley_terry(matches, 5, intervals="none")
    names = [*sorted(set(annotations["model"])), leaderboard.BASELINE]
    np.testing.assert_allclose(table.loc[names, "strength"], expected.scores, atol=1e-7)
    assert table["n_matches"].sum() == 2 * len(matches)


def test_clustered_interval_agrees_with_a_bootstrap_over_instructions():
    annotations, _ = leaderboard.synthetic_annotations(5, 120, seed=6)
    table = leaderboard.bradley_terry_ranking(annotations)
    matches, instructions = by_loops(annotations)
    boot = ranking.bradley_terry(matches, 6, clusters=instructions, intervals="bootstrap", rounds=300)
    width = np.sort(table["upper"] - table["lower"])
    np.testing.assert_allclose(width, np.sort(boot.upper - boot.lower), rtol=0.2)
    naive = ranking.bradley_terry(matches, 6)  # matches taken as independent: too short here
    assert np.mean(naive.upper - naive.lower) < 0.8 * width.mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": np.nan}, r"annotations row 2: preference must be a number in \[0, 1\]; got nan"),
        ({"preference": 1.2}, r"annotations row 2: preference must be a number in \[0, 1\]; got 1.2"),
        ({"preference": "high"}, r"annotations row 2: preference must be a number in \[0, 1\]; got high"),
        ({"model_chars": -1}, "annotations row 2: model_chars must be 0 or more; got -1"),
        ({"baseline_chars": np.nan}, "annotations row 2: baseline_chars must be 0 or more; got nan"),
        ({"model": None}, "annotations row 2: model must be a name; got"),
        ({"instruction": 1}, "annotations row 2: instruction must be new for its model .*; got 1"),
    ],
)
def test_bad_rows_are_named(change, message):
    annotations, _ = leaderboard.synthetic_annotations(2, 4)
    annotations = annotations.astype(object)
    ((column, value),) = change.items()
    annotations.loc[2, column] = value
    for function in (leaderboard.win_rates, leaderboard.bradley_terry_ranking, leaderboard.length_controlled_win_rate):
        with pytest.raises(ValueError, match=message):
            function(annotations)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("model,preference\na,1\n")
    lacks = r"table.csv lacks the columns "
    with pytest.raises(ValueError, match=lacks + r"\['instruction', 'baseline_chars', 'model_chars'\]"):
        leaderboard.load_annotations(path)
    with pytest.raises(ValueError, match=lacks + r"\['win_rate', 'standard_error'"):
        leaderboard.load_published(path)
    path.write_text(",".join(leaderboard.COLUMNS) + "\n")
    with pytest.raises(ValueError, match="has no rows"):
        leaderboard.load_annotations(path)


def test_config_is_strict():
    assert leaderboard.Config.at("smoke", rounds=5).rounds == 5
    with pytest.raises(ValueError, match="scale must be one of smoke, tiny, full; got 'huge'"):
        leaderboard.Config.at("huge")
    for bad in ({"n_model": 3}, {"rounds": "5"}, {"n_models": 1}, {"length_bias": float("nan")}):
        with pytest.raises(ValueError, match=r" = .*: .*\. Fields: n_models, "):
            leaderboard.Config.at("tiny", **bad)


def test_open_data_round_trip(tmp_path):
    config = leaderboard.Config.at("smoke")
    data = leaderboard.open_data(config, seed=4)
    assert data.reference_name == "planted"
    data.annotations.to_csv(tmp_path / "a.csv.gz", index=False)
    again = leaderboard.open_data(config, dataset=str(tmp_path / "a.csv.gz"))
    pd.testing.assert_frame_equal(again.annotations, data.annotations, check_dtype=False)
    assert again.reference.empty
    table = whole(again.annotations)
    assert leaderboard.compare_with_published(table, again.reference).empty
    assert "No published" in leaderboard.agreement_figure(table, again.reference).layout.title.text


def test_figures_draw_the_table():
    hostile = {"model": {"model 00": "<script>x</script>"}}
    annotations, truth = (table.replace(hostile) for table in leaderboard.synthetic_annotations(4, 60))
    table, strengths = whole(annotations, rounds=5), leaderboard.bradley_terry_ranking(annotations)
    figure = leaderboard.strengths_figure(strengths)
    np.testing.assert_allclose(figure.data[0].x, strengths["strength"])
    np.testing.assert_allclose(figure.data[0].x + figure.data[0].error_x.array, strengths["upper"])
    assert "&lt;script&gt;x&lt;/script&gt;" in figure.data[0].y
    scatter = leaderboard.agreement_figure(table, truth, "planted")
    assert set(scatter.data[2].y) == set(table["length_controlled"])
    assert "n = 4" in scatter.layout.title.text
    assert all("<script" not in drawing.to_json() for drawing in (figure, scatter))


def test_tables_are_saved_only_when_asked(tmp_path):
    frame = pd.DataFrame({"a": [1]})
    assert leaderboard.save_tables("", rates=frame) == []
    (path,) = leaderboard.save_tables(str(tmp_path / "new"), rates=frame)
    assert pd.read_csv(path).equals(frame)


def test_notebook_is_stripped_and_holds_calls_only():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert code[0]["metadata"]["tags"] == ["parameters"]
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert len(cell["source"]) <= 12
        assert not any(line.lstrip().startswith(("def ", "class ", "for ", "if ", "while ")) for line in cell["source"])


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    import papermill

    given = {"scale": "smoke", "seeds": [0], "output": str(tmp_path / "tables")}
    done = papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", given, progress_bar=False)
    assert not any(output.output_type == "error" for cell in done.cells for output in cell.get("outputs", []))
    assert len(pd.read_csv(tmp_path / "tables" / "leaderboard.csv")) == 6
