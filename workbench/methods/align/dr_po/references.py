"""The offline responses that rollouts are reset to."""

from __future__ import annotations

import logging
from typing import Any

from workbench.data import Row
from workbench.models import Policy

log = logging.getLogger(__name__)


def read_references(task: Any, split: str, seed: int, *, patchy: bool = False, needed: bool = True) -> list[Row]:
    """Rows with `prompt` and `reference` (a demonstration, or the chosen response of a pair; "" where it is missing).

    Args:
        patchy: take the task's references that are right in parts only.

    Raises:
        ValueError: no row has a reference and they are needed.
    """
    given = task.patchy_demonstrations(split, seed) if patchy else task.demonstrations(split, seed)
    rows = [{"prompt": row["prompt"], "reference": row.get("completion") or row.get("chosen") or ""} for row in given]
    missing = sum(not row["reference"] for row in rows)
    if needed and missing == len(rows):
        raise ValueError(
            f"none of the {len(rows)} rows has a reference (columns completion or chosen), and a reset share above 0"
            " needs them; set beta=0 (plain PPO) or add references"
        )
    if missing > 0.05 * len(rows):
        log.warning("%d of %d rows have no reference and are never reset to", missing, len(rows))
    return rows


def encode_reference(policy: Policy, text: str, length: int) -> list[int]:
    """Token ids of a reference with its EOS token, cut to `length`; nothing for a row without one."""
    return policy.encode_response(text)[:length] if text else []
