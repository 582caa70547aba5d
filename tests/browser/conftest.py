"""The browser for these tests: the system's chromium, offline, with a list of everything a page asked for or said."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Opened:
    """A page in the browser, with what it requested, what it could not load, and what its console said."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine: pages were not opened in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(path, dark=False, width=1280)` opens a file and returns it when it has loaded."""
    contexts = []

    def open_file(path: Path, *, dark: bool = False, width: int = 1280) -> Opened:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", bypass_csp=False
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        page = opened.page
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("requestfailed", lambda request: opened.complaints.append(f"{request.failure}: {request.url}"))
        page.on("console", lambda line: opened.complaints.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (opened.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri(), wait_until="load")
        return opened

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def barriers() -> Callable[..., list[str]]:
    """`barriers(page, selector)` lists what axe-core finds there against WCAG 2.1 A and AA."""
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    ask = """selector => axe.run(selector, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        .then(found => found.violations.map(v => v.id + ": " + v.nodes.slice(0, 3).map(
            n => n.html.slice(0, 160) + " " + n.any.map(a => a.message).join("; ").slice(0, 200)).join(" | ")))"""

    def find(page: Any, selector: str = "body") -> list[str]:
        page.evaluate(axe)  # through the debugger: a page's own policy keeps scripts out
        return page.evaluate(ask, selector)

    return find


# ------------------------------------------------------------------------------------------------------- JupyterLab
@dataclass
class Lab:
    """A JupyterLab server of our own: `folder` is what it shows, `open(name)` opens a notebook in the browser."""

    folder: Path
    url: str
    token: str
    browser: Any
    contexts: list[Any] = field(default_factory=list)

    def write(self, name: str, *cells: str) -> str:
        """A notebook of these code cells in the folder; returns its name."""
        book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.folder / name)
        return name

    def open(self, name: str, *, width: int = 1280, dark: bool = False) -> Any:
        """The browser's page with this notebook opened and its kernel idle."""
        context = self.browser.new_context(viewport={"width": width, "height": 900})
        self.contexts.append(context)
        page = context.new_page()
        if dark:
            self._theme("JupyterLab Dark")
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.wait_for_selector(
            ".jp-Toolbar-kernelStatus, .jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000
        )
        return page

    def _theme(self, theme: str) -> None:
        path = self.folder.parent / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        path.mkdir(parents=True, exist_ok=True)
        (path / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))

    def run_all(self, page: Any, timeout_s: float = 120) -> None:
        """Runs every cell and waits for the last one. A Run All right after the start can get lost: then once more."""
        last = page.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-InputPrompt")
        deadline = time.monotonic() + timeout_s
        asked = 0.0
        while time.monotonic() < deadline:
            prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()
            if prompts and all(text.strip("[]: ").isdigit() for text in prompts):
                return
            if all(text.strip("[]: ") == "" for text in prompts) and time.monotonic() - asked > 8:
                page.locator(".jp-Notebook").first.click(position={"x": 5, "y": 5})
                page.get_by_role("menuitem", name="Run", exact=True).click()
                page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
                asked = time.monotonic()
            page.wait_for_timeout(300)
        raise TimeoutError(f"the notebook did not finish; its last prompt is {last.inner_text()!r}")


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab on this machine alone, with settings, data and kernels of its own."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    ours = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    ours |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "config" / "lab" / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces"),
    }
    ours |= {"PYTHONPATH": str(ROOT), "WORKBENCH_RUNS": str(home / "runs")}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
    command += [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.extension_manager=readonly"]
    with open(home / "log.txt", "wb") as log:
        server = subprocess.Popen(command, env=os.environ | ours, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    opened = Lab(folder, url, token, chromium)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise RuntimeError((home / "log.txt").read_text()[-2000:]) from None
                time.sleep(0.3)
        yield opened
    finally:
        for context in opened.contexts:
            context.close()
        server.terminate()
        server.wait(20)
