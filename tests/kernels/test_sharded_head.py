"""The head in two shards against the plain head: log-probs and all gradients, ragged tokens, chunks, caps."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from two_processes import launch


@pytest.mark.slow
def test_two_shards_are_one_head(tmp_path):
    """Sums over both processes' tokens, also where one or both have none; float64."""
    done = launch("head", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "worst.json").read_text())
    for worst in found["worst"]:
        assert set(worst) == {"logps", "d_hidden", "d_weight", "d_bias"}
        assert max(worst.values()) < 1e-10
    assert "the head must be sharded over its vocabulary with a word or more on every process" in found["refused"]
