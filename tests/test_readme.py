"""README says what runs wrote: its table, its figure, and commands that exist."""

import ast
import gzip
import re
from pathlib import Path

from small import save_policy
from typer.testing import CliRunner

from workbench import cli, methods, runs
from workbench.figures import claims_forest
from workbench.share import published

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PUBLISHED = published.entries(ROOT / "figures" / "results")


def test_table_is_the_published_scoreboard():
    assert published.readme_table(PUBLISHED) in README
    assert [entry["system"] for entry in PUBLISHED] == list(methods.REGISTRY)


def test_verdicts_follow_from_the_published_measurements():
    """Nobody types a verdict: each one comes out again from the measurements beside it."""
    from workbench.claims import Claims

    for entry in PUBLISHED:
        again = Claims(entry["system"], entry["scale"], entry["seeds"])
        for record in entry["claims"]:
            if record["test"] == "none":
                continue
            names = "paper measured control control_is control_alpha direction margin unit note seeds"
            known = {name: record[name] for name in names.split()} | {"control": record["control"] or None}
            known |= {name: record.get(name, ()) for name in ("null", "control_null")}
            test = "paired_t" if record["direction"] == "equivalent" else record["test"]
            again.test(record["id"], record["statement"], **known, test=test, also=record["conditions"])
        tested = {r["id"]: r["verdict"] for r in entry["claims"] if r["test"] != "none"}
        assert again.verdicts() == tested


def test_published_results_are_judged_again_without_training():
    """Where the results of every seed are published, the claims come out of them again; each file stays small."""
    for entry in PUBLISHED:
        assert (ROOT / "figures" / "results" / f"{entry['system']}.json").stat().st_size < 1_000_000
        if "results" in entry:
            assert published.judged(entry).verdicts() == {r["id"]: r["verdict"] for r in entry["claims"]}


def test_figure_shows_the_published_claims():
    import pandas as pd

    records = [{"system": e["system"], **c} for e in PUBLISHED for c in e["claims"]]
    table = claims_forest(records).frame()
    drawn = pd.read_csv(ROOT / "figures" / "claims.csv")
    pd.testing.assert_frame_equal(table.reset_index(drop=True), drawn, check_dtype=False, rtol=1e-6)
    assert "figures/claims.svg" in README
    assert (ROOT / "figures" / "claims.svg").stat().st_size > 1_000


def test_commands_in_the_texts_exist():
    runner = CliRunner()
    texts = README + (ROOT / "CONTRIBUTING.md").read_text()
    for name in set(re.findall(r"(?:^|`)workbench ([a-z][a-z-]+)", texts, re.MULTILINE)):
        assert runner.invoke(cli.app, [name, "--help"]).exit_code == 0, name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)`?", texts)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_examples_run(tmp_path, monkeypatch):
    """The Python blocks of README, on a small random model, a small data set and a run folder that is written to."""
    save_policy(tmp_path / "my-model", "Name a river in Peru. The Ucayali is one. 2+2? 4 5", max_length=128)
    monkeypatch.chdir(tmp_path)
    with gzip.open("pairs.jsonl.gz", "wt") as file:
        file.write('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    inspect, parts = (
        block.replace('"my-model"', '"./my-model"') for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    )
    run = runs.Run(tmp_path / re.search(r'"(runs/[^"]+)"', inspect)[1])
    run.child("seed-0/dpo").log({"step": 0, "loss": 0.69})
    run.update_manifest(status="done")
    found: dict = {}
    statements = ast.parse(inspect).body  # our own page
    exec(compile(ast.Module([x for x in statements if not isinstance(x, ast.Expr)], []), "README", "exec"), found)
    shown = [
        eval(compile(ast.Expression(x.value), "README", "eval"), found) for x in statements if isinstance(x, ast.Expr)
    ]
    assert [type(view).__name__ for view in shown] == ["PreferenceBrowser", "TrainingPreview", "TrainingMonitor"]
    found = {}
    exec(parts, found)
    assert found["losses"].shape == (1,)
    assert len(found["ratings"].scores) == 3
