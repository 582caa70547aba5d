"""What a simultaneous translator does over the sweep of its thresholds: quality, preferences and latency, and its
decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from workbench.data import Row
from workbench.methods.align.simulpl.network import Reader, Translation, prefix_prompts, translate
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.stats.latency import Unit, latency, word_delays, words_of
from workbench.tasks.protocols import TranslationTask

SHOWN = 6  # sentences whose decisions are kept for the view


def readers_of(kinds: Sequence[str], taus: Sequence[float], waits: Sequence[int], seed: int) -> list[Reader]:
    """A reader for each kind and each setting of its sweep."""
    values = {"confidence": taus, "random": taus, "wait_k": waits}
    return [Reader(kind, float(value), seed) for kind in kinds for value in values[kind]]  # type: ignore[arg-type]


def sweep(
    task: TranslationTask,
    policy: Policy,
    readers: Sequence[Reader],
    *,
    rows: Sequence[Row],
    run: Run,
    unit: Unit = "word",
    allow_early_stop: bool = False,
) -> pd.DataFrame:
    """One line a reader: `reader`, `value` and the means of `numbers`. The decisions on some sentences go to the table
    `steps`."""
    room = task.max_new_tokens
    prompts = [prefix_prompts(policy, task.prompt, words_of(row["source"], unit), room=room) for row in rows]
    measured, traces = [], []
    for reader in readers:
        written = translate(policy, prompts, reader, max_new_tokens=room, unit=unit, allow_early_stop=allow_early_stop)
        means = numbers(task, policy, rows, written, unit)
        measured.append({"reader": reader.kind, "value": float(reader.value), **means})
        traces += trace(task, policy, rows[:SHOWN], written[:SHOWN], reader, unit)
    run.table("steps", lambda: pd.DataFrame(traces))
    return pd.DataFrame(measured)


def numbers(
    task: TranslationTask, policy: Policy, rows: Sequence[Row], written: Sequence[Translation], unit: Unit = "word"
) -> dict[str, float]:
    """Means over sentences; NaN where no sentence could be measured.

    A text that did not end counts like any other and is counted as truncated. `early_ends`: share of sentences whose
    end was proposed before the source was read.
    """
    table = []
    for index, (row, translation) in enumerate(zip(rows, written, strict=True)):
        delays, text = delays_of(task, policy, translation, unit)
        reference = len(words_of(row["chosen"], unit)) + task.counts_end
        lags = latency(delays, len(words_of(row["source"], unit)), reference, index=index)
        of_text = task.aspects(row, text)._asdict()
        line = {"quality": of_text[task.quality_is], **of_text, **lags._asdict(), "length": len(delays)}
        table.append({**line, "truncated": not translation.ended, "early_ends": translation.early_ends > 0})
    return {str(name): float(value) for name, value in pd.DataFrame(table).astype(float).mean().items()}


def delays_of(
    task: TranslationTask, policy: Policy, translation: Translation, unit: Unit = "word"
) -> tuple[list[int], str]:
    """Delays of the written words, and of the EOS token where it counts or where nothing was written; and the text."""
    body = translation.ids[:-1] if translation.ended else translation.ids
    words, delays = word_delays(policy.decode, body, translation.delays[: len(body)], unit)
    if (translation.ended and task.counts_end) or not words:
        delays = [*delays, translation.delays[-1]]
    return delays, ("" if unit == "character" else " ").join(words)


def trace(
    task: TranslationTask,
    policy: Policy,
    rows: Sequence[Row],
    written: Sequence[Translation],
    reader: Reader,
    unit: Unit = "word",
) -> list[dict]:
    """Every decision on some sentences and the sentence's AL, for the view."""
    decisions = []
    for i, (row, translation) in enumerate(zip(rows, written, strict=True)):
        delays, _ = delays_of(task, policy, translation, unit)
        reference = len(words_of(row["chosen"], unit)) + task.counts_end
        al = latency(delays, len(words_of(row["source"], unit)), reference).AL
        line = {"sentence": i, "source": row["source"], "chosen": row["chosen"], "reader": reader.kind}
        line |= {"value": float(reader.value), "AL": al}
        for step in translation.steps:
            decisions.append({**line, **step._asdict(), "text": policy.decode([step.token]) or "(end)"})
    return decisions
