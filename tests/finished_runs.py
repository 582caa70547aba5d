"""Run folders as finished runs leave them, for tests of pages, the scoreboard and what is sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from toy_notebooks import claim_records

from workbench import runs

HOSTILE = "</pre></script><script>window.pwned=1</script><img src=http://x.invalid/a onerror=alert(1)>&lt;b"


def finished(
    root: Path, system: str, scale: str = "tiny", name: str = "a", day: int = 1, records: Any = None, **parameters: Any
) -> runs.Run:
    """A run folder as a finished run leaves it."""
    given = {"config": {}, "model": "", "dataset": "", "device": "auto", "seeds": [0, 1, 2], "inputs": ["", ""]}
    run = runs.Run(root / system / f"{scale}-{name}")
    times = {"started": f"2026-01-0{day}T10:00:00+00:00", "finished": f"2026-01-0{day}T10:02:05+00:00"}
    provenance = {"python": "3.12.1", "cores": "2", "workbench": "0.1.0", "torch": "2.13.0"}
    facts = {"scale": scale, "parameters": given | parameters, "key": "0123456789ab", "provenance": provenance}
    run.update_manifest(system=system, status="done", **facts, **times)
    runs.write_json(run.folder / "claims.json", claim_records(scale=scale) if records is None else records)
    return run


def live_scripts(page: BeautifulSoup) -> list:
    return [tag for tag in page("script") if tag.get("type") != "application/json"]


def only_its_own_scripts(page: BeautifulSoup) -> list[str]:
    """The scripts of a page, once it is sure that its policy lets each of them run and lets no other one."""
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    allowed = re.search(r"script-src ([^;]*);", policy)[1]
    scripts = live_scripts(page)
    assert [tag.get("nonce") for tag in scripts] == [re.fullmatch(r"'nonce-([\w-]{20,})'", allowed)[1]] * len(scripts)
    assert not [tag for tag in scripts if tag.has_attr("src")]
    return [tag.text for tag in scripts]
