"""Provenance: enough to judge and repeat a run, and nothing that tells who ran it or where."""

import getpass
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import runs
from workbench.runs import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git: recording of commits not tested")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A small project with one commit."""
    folder = tmp_path / "project"
    for name, text in {
        "pyproject.toml": "",
        "constraints.txt": "a==1\n",
        "workbench/x.py": "x = 1\n",
        "README.md": "",
        "notebooks/a.ipynb": "{}\n",
        ".gitignore": "*.pyc\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "start")
    return folder


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=Somebody Secret", "-c", "user.email=somebody@secret"]
    return subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


# ----------------------------------------------------------------------------------------------------------- machine
def test_machine_tells_versions_and_hardware_and_no_names():
    found = provenance.machine()
    assert {"python", "machine", "system", "cores", "memory_gib", "torch", "numpy"} <= set(found)
    assert all(type(value) is str and value for value in found.values())
    assert 1 <= int(found["memory_gib"]) < 10_000
    text = json.dumps(found)
    for secret in (socket.gethostname(), getpass.getuser(), str(Path.home())):
        assert f'"{secret}"' not in text
        assert f"{secret}/" not in text


def test_machine_does_not_load_torch():
    code = "import sys; from workbench.runs import provenance; provenance.machine(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_gpus_are_named_when_torch_sees_them(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda n: f"GPU {n}")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert provenance.machine()["gpu"] == "GPU 0, GPU 1"
    cuda.is_available = lambda: False
    assert "gpu" not in provenance.machine()


# -------------------------------------------------------------------------------------------------------------- code
@needs_git
def test_commit_and_diff_bring_the_code_back(checkout, tmp_path):
    """git apply of the diff on the commit gives the same files; what is not code is not in it."""
    (checkout / "workbench/x.py").write_text("x = 2\n")
    (checkout / "workbench/new one.py").write_text("y = 1\nz = 'no newline at the end'")
    (checkout / "workbench/empty.py").touch()
    (checkout / "workbench/cache.pyc").write_text("ignored")
    (checkout / "notebooks/a.ipynb").unlink()
    (checkout / "README.md").write_text("changed, but no number depends on it")
    code = provenance.code(checkout)
    assert code.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert code.changed == ("notebooks/a.ipynb", "workbench/empty.py", "workbench/new one.py", "workbench/x.py")
    assert "README" not in code.diff
    assert "secret" not in code.diff.lower()

    copy = tmp_path / "copy"
    git(tmp_path, "clone", "--quiet", str(checkout), str(copy))
    (tmp_path / "code.diff").write_text(code.diff)
    git(copy, "apply", str(tmp_path / "code.diff"))
    for name in ("workbench/x.py", "workbench/new one.py", "workbench/empty.py"):
        assert (copy / name).read_bytes() == (checkout / name).read_bytes()
    assert not (copy / "notebooks/a.ipynb").exists()


@needs_git
def test_an_unchanged_checkout_has_a_commit_and_no_diff(checkout):
    code = provenance.code(checkout)
    assert (len(code.commit), code.changed, code.diff) == (40, (), "")


@needs_git
def test_a_project_inside_a_larger_repository_is_told_from_it(checkout, tmp_path):
    (checkout / "inner").mkdir()
    for name in ("pyproject.toml", "workbench/x.py"):
        (checkout / "inner" / name).parent.mkdir(exist_ok=True)
        (checkout / "inner" / name).write_text("inner = 1\n")
    (checkout / "workbench/x.py").write_text("x = 3\n")
    assert provenance.code(checkout / "inner").changed == ("workbench/x.py",)
    assert "inner = 1" in provenance.code(checkout / "inner").diff
    assert "x = 3" not in provenance.code(checkout / "inner").diff


@needs_git
def test_a_long_diff_is_cut_with_a_note(checkout, monkeypatch):
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 400)
    (checkout / "workbench/long.py").write_text("".join(f"line_{n} = 'ä'\n" for n in range(200)))
    diff = provenance.code(checkout).diff
    size = int(diff.rsplit(" of ", 1)[1].split()[0])
    assert diff.endswith(f"\n# cut here: 400 of {size} bytes are kept; the manifest lists all changed files\n")
    assert len(diff.encode()) < 520
    assert size > 2_000


@pytest.mark.parametrize("missing", ["git", "repository", "project"])
def test_without_git_or_repository_nothing_fails(checkout, monkeypatch, missing):
    if missing == "git":
        monkeypatch.setenv("PATH", "/nowhere")
    elif missing == "repository":
        shutil.rmtree(checkout / ".git")
    else:
        (checkout / "pyproject.toml").unlink()
    assert provenance.code(checkout) == provenance.Code()


@needs_git
def test_settings_of_git_do_not_change_what_is_recorded(checkout, monkeypatch):
    """A hook runs with GIT_DIR of another repository; users have external diff programs and colours."""
    (checkout / "workbench/x.py").write_text("x = 2\n")
    before = provenance.code(checkout)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "echo")
    with open(checkout / ".git" / "config", "a") as file:
        file.write("[color]\n\tui = always\n[diff]\n\tnoprefix = true\n\texternal = echo\n")
    assert provenance.code(checkout) == before


# ------------------------------------------------------------------------------------------------------------ inputs
def test_inputs_are_named_with_fingerprint_and_snapshot(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abcd\n")
    (tmp_path / "rows.jsonl").write_text("{}")
    rows = str(tmp_path / "rows.jsonl")
    given = {"model": "org/name", "dataset": rows, "inputs": ["org/name", runs.fingerprint(rows)]}
    assert provenance.inputs(given) == [
        {"kind": "model", "source": "org/name", "fingerprint": "org/name", "revision": "0123abcd"},
        {"kind": "dataset", "source": rows, "fingerprint": runs.fingerprint(rows), "revision": ""},
    ]
    assert provenance.inputs({"model": "", "dataset": "", "inputs": ["", ""]}) == []
    assert provenance.inputs({"seeds": [0]}) == []
    assert provenance.revision("org/other", "model") == ""


def test_an_address_keeps_its_options_and_loses_what_could_be_a_key():
    clean = "https://host:8000/v1?concurrency=8&price=0.15,0.6#name"
    assert provenance.public(clean) == clean
    dirty = "https://me:sk-123@host:8000/v1?concurrency=8&api_key=sk-123&price=0.15,0.6#name"
    assert provenance.public(dirty) == clean
    found = provenance.inputs({"model": dirty, "dataset": "", "inputs": [dirty, ""]})
    assert "sk-123" not in json.dumps(found)


# ------------------------------------------------------------------------------------------------------ in a manifest
@needs_git
def test_a_run_keeps_its_code_and_opening_it_stays_fast(runs_root, checkout, monkeypatch):
    (checkout / "workbench/x.py").write_text("x = 2\n")
    code, calls = provenance.code(checkout), []
    monkeypatch.setattr(provenance, "code", lambda: calls.append(1) or code)
    for _ in range(3):
        run = runs.open_run("x", "workbench.claims", "tiny", {"model": "", "dataset": "", "inputs": ["", ""], "a": 1})
    manifest = run.manifest
    assert len(calls) == 1  # git is asked once a run
    assert manifest["code"] == {
        "hash": runs.code_hash("workbench.claims"),
        "commit": code.commit,
        "changed": ["workbench/x.py"],
        "diff": "code.diff",
    }
    assert "+x = 2" in (run.folder / "code.diff").read_text()
    assert manifest["inputs"] == []
    assert manifest["provenance"]["python"] == provenance.machine()["python"]


def test_a_run_without_changes_has_no_diff(runs_root, monkeypatch):
    monkeypatch.setattr(provenance, "code", provenance.Code)
    run = runs.open_run("x", "workbench.claims", "tiny", {"a": 1})
    assert run.manifest["code"] | {"hash": ""} == {"hash": "", "commit": "", "changed": [], "diff": ""}
    assert not (run.folder / "code.diff").exists()
