"""The command line: what it passes on, what it prints, how it ends."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import pytest
from toy_notebooks import claim_records, stored

from workbench import cli, methods, runs
from workbench.batch import reproduce

ENVIRONMENT = os.environ | {"PYTHONPATH": str(runs.PACKAGE.parent)}


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What `reproduce` was called with; no notebook is run."""
    got: dict = {}

    def remember(names, **options):
        got.update(options, names=list(names))
        return got.get("jobs", [])

    monkeypatch.setattr(reproduce, "reproduce", remember)
    return got


def test_help_is_quick_and_loads_nothing_heavy():
    tops = "{m.partition('.')[0] for m in sys.modules}"
    code = f"import sys, workbench.cli as c; c.main(['--help']); print(sorted({tops}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=30)
    assert "reproduce" in done.stdout
    assert not {"torch", "transformers", "papermill", "pandas", "plotly"} & set(re.findall(r"'(\w+)'", done.stdout))


COMMANDS = ["list", "reproduce", "rerun", "compare", "report", "serve-pages", "doctor", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert len(capsys.readouterr().out) > 200


def test_list_names_every_system(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods.REGISTRY)


def test_parameters_keep_their_types(asked):
    words = "reproduce spin align -p beta 0.1 -p flag false -p n 3 -p name abc -p list [1,2] -p path=a=b -p lr 1e-4"
    assert cli.main(words.split()) == 0
    assert asked["names"] == ["spin", "align"]
    numbers = {"beta": 0.1, "flag": False, "n": 3, "lr": 1e-4}
    assert asked["overrides"] == {**numbers, "name": "abc", "list": [1, 2], "path": "a=b"}
    assert type(asked["overrides"]["flag"]) is bool


def test_values_with_commas_between_them_are_a_sweep(asked):
    pairs = ["beta=0.1,0.5", "loss_type=sigmoid,ipo", 'arms=["a"],["b","c"]', 'name="x,y"', "list=[[1],[2,3]]"]
    words = ["reproduce", "dpo", "-p", "flags", "true, false", *[word for pair in pairs for word in ("-p", pair)]]
    assert cli.main(words) == 0
    arms = [["a"], ["b", "c"]]
    values = {"beta": [0.1, 0.5], "loss_type": ["sigmoid", "ipo"], "arms": arms, "flags": [True, False]}
    assert asked["sweep"] == values
    assert asked["overrides"] == {"name": "x,y", "list": [[1], [2, 3]]}


def test_options_reach_the_batch(asked):
    words = "reproduce --scale smoke --seeds 3 --model m --dataset d --device cpu --workers 1 --force --timeout 9"
    assert cli.main(words.split()) == 0
    given = {"scale": "smoke", "seeds": range(3), "model": "m", "dataset": "d", "device": "cpu"}
    how = {"workers": 1, "executor": "local", "force": True, "timeout_s": 9.0}
    assert asked == {"names": [], **given, **how, "overrides": {}, "sweep": {}}


def test_failed_notebook_is_exit_code_1(asked):
    asked["jobs"] = [reproduce.Job("toy", Path(), runs.Run(Path()), {}, status="failed")]
    assert cli.main(["reproduce"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "god"], "error: unknown system 'god'; known: spin"),
        (["reproduce", "-p", "beta"], "error: -p takes a key and a value, as in -p beta 0.1; got 'beta'"),
        (["reproduce", "-p", "beta=1", "-p", "beta=2"], "error: -p beta is given twice; for a sweep put its values"),
        (["reproduce", "spin", "--executor", "slurm"], "error: executor must be local or ray; got 'slurm'"),
        (["bench", "nothing"], "error: unknown benchmark 'nothing'"),
        (["reproduce", "--dataset", "x/none.jsonl"], "error: no file or folder 'x/none.jsonl'"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(words, message, capsys):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_unknown_option_is_exit_code_2(capsys):
    assert cli.main(["reproduce", "--seed", "3"]) == 2
    assert "--seed" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="unknown system"):
        cli.main(["reproduce", "god", "--debug"])


def test_report_renders_pages_and_index_again(runs_root, capsys):
    run = runs.open_run("spin", "toy", "tiny", {"seeds": [0]}, str(runs_root / "spin" / "tiny-a"))
    nbformat.write(stored(), run.folder / "notebook.ipynb")
    runs.write_json(run.folder / "claims.json", claim_records())
    run.update_manifest(status="done", finished="2026-01-01T00:00:00+00:00")
    assert cli.main(["report"]) == 0
    assert (run.folder / "page.html").is_file()
    assert "spin/tiny-a/page.html" in (runs_root / "index.html").read_text()
    assert str(runs_root / "index.html") in capsys.readouterr().out


def test_report_writes_readme_from_what_was_published(runs_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["report", "--readme"]) == 2  # nothing published, no README
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("<!-- scoreboard -->\n<!-- /scoreboard -->\n")
    assert cli.main(["report", "--publish", "--readme"]) == 0
    assert "| system |" in (tmp_path / "README.md").read_text()


def test_bench_runs_files_and_reports_the_failed_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    programs = {"good": "import sys; print('1.7 times', *sys.argv[1:])", "bad": "raise SystemExit(3)"}
    programs["harness"] = "raise SystemExit('not a benchmark')"
    for name, program in programs.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(program)
    for options, passed in (([], "--quick"), (["--full", "--device", "cuda"], "--full --device cuda")):
        assert cli.main(["bench", "good", *options]) == 0
        assert capfd.readouterr().out == f"1.7 times {passed}\n"
    assert cli.main(["bench"]) == 1
    assert capfd.readouterr().err == "failed: bad\n"


@pytest.mark.slow
def test_pages_are_served_on_this_machine_only(runs_root):
    words = [sys.executable, "-m", "workbench", "serve-pages", "--port", "0"]
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": "1", "WORKBENCH_RUNS": str(runs_root)}
    # a job started in the background has Ctrl-C switched off, and so have its children, these tests among them
    hear = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen(words, env=environment, **pipes, **hear)
    try:
        address = re.match(r"http://127\.0\.0\.1:\d+/index\.html", server.stdout.readline())[0]
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"No finished run yet" in answer.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 130
    finally:
        server.kill()
