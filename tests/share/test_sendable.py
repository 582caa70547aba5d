"""What leaves this machine: no folder of it and no key, and everything else as it was."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output
from toy_notebooks import display, stdout, stored

from workbench import runs
from workbench.share import sendable

CHECKOUT = str(runs.PACKAGE.parent)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"{CHECKOUT}/workbench/training/loop.py:12", "…/workbench/training/loop.py:12"),
        (f"'{CHECKOUT}'", "'…'"),
        (f"see {CHECKOUT}.", "see …."),
        (f"\x1b[32m{CHECKOUT}/x.py\x1b[39m", "\x1b[32m…/x.py\x1b[39m"),
        (f"\x1b[38;5;28m{CHECKOUT}/x.py", "\x1b[38;5;28m…/x.py"),
        (f'File "{sys.prefix}/lib/x.py"', 'File "…/lib/x.py"'),
        ("/somewhere/else/x.py", "…/x.py"),
        ("/somewhere/else-where/x.py", None),  # its own name; the checkout's neighbours may lie in a folder that goes
        (f"http://host{CHECKOUT}/x.py", None),
        (f"there is no part{CHECKOUT}/x", None),
        ("nothing of this machine, 3/4 and/or <b>/x</b>", None),
    ],
)
def test_a_folder_of_this_machine_becomes_dots(text, left):
    clean = sendable.cleaner(Path("/somewhere/else"))
    assert clean(text) == (text if left is None else left)


def test_folders_that_are_given_are_taken_out_too():
    clean = sendable.cleaner(Path("/data/of/mine"))
    assert clean("read /data/of/mine/pairs.jsonl and /data/of/yours") == "read …/pairs.jsonl and /data/of/yours"


@pytest.mark.parametrize(
    "secret",
    ["sk-abcdefgh0123456789xyz", "hf_abcdefgh0123456789", "ghp_abcdefghij0123456789", "AKIAABCDEFGHIJKLMNOP"],
)
def test_what_looks_like_a_key_is_removed(secret):
    assert sendable.cleaner()(f"key={secret}, then") == f"key={sendable.REMOVED}, then"


def test_keys_in_addresses_and_headers_are_removed():
    clean = sendable.cleaner()
    assert clean("https://me:pass@host/v1") == f"https://{sendable.REMOVED}@host/v1"
    assert clean("https://host/v1?price=1,2&key=abc#name") == f"https://host/v1?price=1,2&key={sendable.REMOVED}#name"
    assert clean("Authorization: Bearer abcdefghijkl") == f"Authorization: Bearer {sendable.REMOVED}"


def test_the_value_of_a_secret_variable_is_removed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plain-words-as-a-key")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert sendable.cleaner()("it is plain-words-as-a-key, abc") == f"it is {sendable.REMOVED}, abc"


@given(text=st.text(max_size=80))
def test_other_text_stays_as_it_is(text):
    # neither a folder nor a key is made of these
    text = text.replace("/", "|").replace("sk-", "").replace("Bearer", "")
    assert sendable.cleaner()(text) == text


def test_a_notebook_is_cleaned_in_every_part(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plain-words-as-a-key")
    spot = f"{CHECKOUT}/a.txt plain-words-as-a-key"
    book = stored(
        stdout(spot),
        display(text_html=spot, text_plain=spot),
        new_output("error", ename="E", evalue=spot, traceback=[spot]),
        display(application_json={"deep": [{spot: spot}]}),
        new_output("stream", name="stderr", text="at /opt/py/lib/x/y.py:3"),
        new_output("error", ename="E", evalue="", traceback=["File /opt/py/lib/asyncio/x.py:3, in https://host/a/b"]),
        markdown=f"# {spot}",
    )
    book.metadata["papermill"] = {"input_path": spot}
    book.cells[1].metadata = {"papermill": {"status": "completed"}, "tags": ["x"]}
    before = str(book)
    clean = sendable.cleaned(book)
    assert str(book) == before  # a copy
    assert CHECKOUT not in str(clean)
    assert "plain-words" not in str(clean)
    assert "papermill" not in str(clean)
    assert str(clean).count("…/a.txt") == 8
    assert clean.cells[1].outputs[-2].text == "at …/lib/x/y.py:3"
    assert clean.cells[1].outputs[-1].traceback == ["File …/lib/asyncio/x.py:3, in https://host/a/b"]


def test_the_parameters_cell_names_files_without_their_folders():
    source = (
        'scale = "tiny"\noutput = "/srv/runs/spin/tiny-1"\ndataset = "/srv/data of mine/pairs.jsonl"\nmodel ='
        ' "hub/name"'
    )
    cell = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    book = new_notebook(
        cells=[cell, new_code_cell("print(1)", outputs=[stdout("/srv/data of mine/pairs.jsonl has 3 rows")])]
    )
    book.metadata["papermill"] = {"parameters": {"dataset": "/srv/data of mine/pairs.jsonl"}}
    clean = sendable.cleaned(book)
    assert clean.cells[0].source == 'scale = "tiny"\noutput = ""\ndataset = "pairs.jsonl"\nmodel = "hub/name"'
    assert clean.cells[1].outputs[0].text == "…/pairs.jsonl has 3 rows"
    assert clean.cells[0].metadata == {"tags": ["injected-parameters"]}


def test_a_long_text_is_cleaned_quickly():
    import time

    text = "a/b/c " * 300_000 + os.getcwd()
    start = time.process_time()
    assert sendable.cleaner()(text).endswith("…")
    assert time.process_time() - start < 3
