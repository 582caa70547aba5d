"""TrainingPreview: what exactly will be trained on, before it is.

Three faces: alive in JupyterLab, the same view in a rendered page without a kernel (`js/preview.js` draws both), and
`frame()`, `warnings()`, `tokens()`, `figure()`, `check()` for scripts. Text of models and data goes in as text only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import data
from workbench.figures import blank, plain
from workbench.kernels import Group
from workbench.kernels.batching import microbatches, tokens_per_microbatch
from workbench.kernels.scoring import check_groups
from workbench.models import Policy
from workbench.widgets import scripted
from workbench.widgets.training_preview import row_checks
from workbench.widgets.training_preview.row_checks import Rows
from workbench.widgets.training_preview.token_text import TokenText

LISTED = 20_000  # rows whose lengths and warnings the view lists
CARRIED = 400_000  # characters of token ids that the view carries; JupyterLab asks Python for the others
OF_EACH = 20  # rows of every warning that are carried before any other
POINTS = 3_000  # different pairs of lengths that the figure draws
KINDS = ("preference", "ranking", "demonstration")


class TrainingPreview:
    """Rows as the trainer will see them: tokens, border, scored tokens, end tokens, cuts, and what is wrong with them.

    Args:
        policy: whose tokenizer made the rows; nothing of it is changed.
        rows: what `training.train` takes: `Group`s, `PairRow`s, or anything with a `.group`. Of several responses the
            first one is the preferred one.
        held_out: what the evaluation asks: rows with `prompt`, prompts, or groups. Training rows with one are named.

    Raises:
        ValueError: no rows; a row (named) that is no group, has no prompt or an empty response, or an unknown token.
    """

    def __init__(self, policy: Policy, rows: Sequence[Any], *, held_out: Sequence[Any] = ()):
        groups = [_group_of(row, number) for number, row in enumerate(rows)]
        if not groups:
            raise ValueError("no rows to preview; give the rows that training.train will get")
        try:
            check_groups(groups)
        except ValueError as error:
            raise ValueError(str(error).replace("group ", "row ", 1)) from None
        known = max(len(policy.tokenizer), policy.model.get_input_embeddings().num_embeddings)
        parts = ((row, ids) for row, group in enumerate(groups) for ids in (group.prompt_ids, *group.responses_ids))
        for row, ids in parts:
            if min(ids) < 0 or max(ids) >= known:
                bad = f"token {min(ids) if min(ids) < 0 else max(ids)} is none of the model's {known}"
                raise ValueError(f"row {row}: {bad}; was it tokenised with another tokenizer?")
        names = [str(getattr(row, "id", f"row {number}")) for number, row in enumerate(rows)]
        self._begin(policy, groups, names, None, held_out)

    @classmethod
    def of_rows(
        cls,
        policy: Policy,
        rows: Sequence[Mapping[str, Any]],
        kind: str = "preference",
        *,
        max_length: int = 0,
        max_prompt_length: int = 0,
        held_out: Sequence[Any] = (),
    ) -> TrainingPreview:
        """From raw rows, through `policy.group` as methods do it; what that cuts is known then.

        Args:
            kind: "preference" (prompt, chosen, rejected), "ranking" (prompt, responses, scores) or "demonstration"
                (prompt, completion); see `workbench.data`.
            max_length: of prompt and response; 0: the model's context. `max_prompt_length` as in `policy.group`.

        Raises:
            ValueError: a row that `data.check` refuses, that the tokenizer cannot write, or whose prompt leaves no room
                for a response. Row and column are named.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        if min(max_length, max_prompt_length) < 0:
            raise ValueError(f"lengths are 0 or more; got {max_length=}, {max_prompt_length=}")
        checked = data.check([dict(row) for row in rows], kind)
        limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
        before, groups, whole = policy.counts.copy(), [], []
        try:
            for number, row in enumerate(checked):
                prompt, responses = _encoded(policy, row, kind, number)
                try:
                    groups.append(policy.group(prompt, responses, **limits))
                except ValueError as error:
                    raise ValueError(f"row {number}: {error}") from None
                whole.append((prompt, responses))
        finally:  # looking is not training: what a run counts must not change
            policy.counts.clear()
            policy.counts.update(before)
        self = cls.__new__(cls)
        prompts = [row["prompt"] for row in checked]
        prompts = [p if isinstance(p, str) else "\n".join(str(turn["content"]) for turn in p) for p in prompts]
        texts = list(zip(prompts, (_responses_of(row, kind) for row in checked), strict=True))
        self._begin(policy, groups, [f"row {i}" for i in range(len(groups))], texts, held_out)
        self.rows.whole_prompts = [prompt for prompt, _ in whole]
        self.rows.prompts_cut = [len(p) - len(g.prompt_ids) for (p, _), g in zip(whole, groups, strict=True)]
        self.rows.responses_cut = [
            [len(one) - len(kept) for one, kept in zip(many, g.responses_ids, strict=True)]
            for (_, many), g in zip(whole, groups, strict=True)
        ]
        self.rows.ordered = kind == "preference"
        self.scores = [list(map(float, row["scores"])) for row in checked] if kind == "ranking" else None
        return self

    def _begin(self, policy: Policy, groups: list[Group], names: list[str], texts: Any, held_out: Any) -> None:
        self.groups, self.names = groups, names
        self.held_tokens = tokens_per_microbatch(policy.device)  # the model itself is let go: it may be large
        self.scores: list[list[float]] | None = None
        self.words = TokenText(policy.tokenizer)
        self.rows = Rows([g.prompt_ids for g in groups], [g.responses_ids for g in groups], self.words, texts=texts)
        self.rows.held_out = [_prompt_of(policy, one) for one in held_out]

    # -- what is found
    @cached_property
    def findings(self) -> list[row_checks.Finding]:
        """What every rule of `row_checks` finds, severe first."""
        return row_checks.findings(self.rows)

    def check(self, *, allow: Sequence[str] = ()) -> None:
        """For scripts: stops before training on rows with severe faults.

        Args:
            allow: codes of faults that are meant.

        Raises:
            ValueError: severe faults, with the numbers of their first rows; or an unknown code.
        """
        if unknown := set(allow) - set(row_checks.BY_CODE):
            raise ValueError(f"unknown codes {', '.join(sorted(unknown))}; known: {', '.join(row_checks.BY_CODE)}")
        bad = [f for f in self.findings if f.rule.severity == "severe" and f.rule.code not in allow]
        if bad:
            named = "; ".join(f"{f.rule.title} ({f.rule.code}): {_some(f.rows)}. {f.rule.remedy}" for f in bad)
            many = f"{len(bad)} severe faults in {len(self.groups)} rows"
            raise ValueError(f"{many}: {named} Or allow them by their codes")

    def warnings(self) -> pd.DataFrame:
        """One row a fault: `code`, `severity`, `title`, `rows` (count), `share`, `first_rows`, `why`, `remedy`."""
        names = ["code", "severity", "title", "rows", "share", "first_rows", "why", "remedy"]
        sizes = [(len(f.rows), len(f.rows) / len(self.groups), f.rows[:10]) for f in self.findings]
        facts = [(*f.rule[:3], *size, *f.rule[3:5]) for f, size in zip(self.findings, sizes, strict=True)]
        return pd.DataFrame(facts, columns=names)

    def frame(self) -> pd.DataFrame:
        """One row a training row: its name, tokens of prompt and responses, tokens cut (NaN where rows came as tokens),
        tokens that the first two responses share at their start, and the codes of its warnings."""
        columns = list(zip_longest(*self.rows.lengths, fillvalue=np.nan))
        with_fault = {finding.rule.code: set(finding.rows) for finding in self.findings}
        known, index = self.rows.prompts_cut is not None, pd.RangeIndex(len(self.groups), name="row")
        shared = [row_checks.shared_start(*many[:2]) if len(many) > 1 else np.nan for many in self.rows.responses]
        table = {"name": self.names, "prompt_tokens": [len(ids) for ids in self.rows.prompts]}
        labels = self._labels(len(columns))
        table |= {f"{label}_tokens": column for label, column in zip(labels, columns, strict=True)}
        table["prompt_cut"] = self.rows.prompts_cut if known else np.nan
        table["responses_cut"] = [sum(many) for many in self.rows.responses_cut or []] if known else np.nan
        told = [", ".join(code for code, rows in with_fault.items() if row in rows) for row in index]
        return pd.DataFrame(table | {"shared_start": shared, "warnings": told}, index=index)

    def tokens(self, row: int) -> pd.DataFrame:
        """One row a token: `part`, `position` (as the model counts it), `id`, `text` (what is invisible made visible),
        `scored`, `special`, and `differs` at the first token in which a response leaves the first one.

        Raises:
            ValueError: no such row.
        """
        if not 0 <= row < len(self.groups):
            raise ValueError(f"row {row}: there are rows 0 to {len(self.groups) - 1}")
        group, start = self.groups[row], self._start_of_responses(row)
        places = group.prompt_positions or range(len(group.prompt_ids))
        found = [("prompt", place, token, False, False) for place, token in zip(places, group.prompt_ids, strict=True)]
        first = group.responses_ids[0] if group.responses_ids else []
        for label, ids in zip(self._labels(len(group.responses_ids)), group.responses_ids, strict=True):
            leaves = -1 if ids is first else row_checks.shared_start(first, ids)
            found += [(label, start + at, token, True, at == leaves) for at, token in enumerate(ids)]
        table = pd.DataFrame(found, columns=["part", "position", "id", "scored", "differs"])
        table.insert(3, "text", [self.words.shown(token) for token in table["id"]])
        table["special"] = table["id"].isin(list(self.words.special))
        return table

    # -- numbers of all rows
    def summary(self) -> dict[str, Any]:
        """`rows`, `tokens`, `scored_tokens`, `prompts_cut`, `responses_cut` (None where unknown), `length_rule`,
        `micro_batches` and `rows_held` (median rows held at once on this device), and `lengths`: name -> (median, 95th
        percentile, max)."""
        rows, known = self.rows, self.rows.prompts_cut is not None
        sizes = [len(p) + sum(many) for p, many in zip(rows.prompts, rows.lengths, strict=True)]
        parts = [len(part) for part in microbatches(range(len(sizes)), sizes, max_tokens=self.held_tokens)]
        found = {name: (np.median(n), np.percentile(n, 95), max(n)) for name, n in self._spread().items()}
        return {
            "rows": len(self.groups),
            "tokens": sum(sizes),
            "scored_tokens": sum(map(sum, rows.lengths)),
            "prompts_cut": sum(n > 0 for n in rows.prompts_cut or []) if known else None,
            "responses_cut": sum(n > 0 for many in rows.responses_cut or [] for n in many) if known else None,
            "length_rule": row_checks.length_rule(rows),
            "micro_batches": len(parts),
            "rows_held": int(np.median(parts)),
            "lengths": {name: (float(mid), float(high), int(top)) for name, (mid, high, top) in found.items()},
        }

    def __repr__(self) -> str:
        lines = [self._say(), *(f"  {name}: {_quantiles(values)}" for name, values in self._spread().items())]
        if rule := self._rule_text():
            lines.append(f"  {rule}")
        lines += [f"{f.rule.severity:>8}  {f.rule.title}: {_some(f.rows)}. {f.rule.why}" for f in self.findings]
        return "\n".join(lines if self.findings else [*lines, "      no  warnings"])

    def figure(self) -> go.Figure:
        """Tokens of the preferred response against the other, a circle's area for the rows; or a histogram."""
        pairs = pd.DataFrame([many[:2] for many in self.rows.lengths if len(many) > 1], columns=["chosen", "rejected"])
        if pairs.empty:
            figure = blank(f"{len(self.groups)} responses", "tokens of the response, end token included", "rows")
            figure.add_trace(go.Histogram(x=[many[0] for many in self.rows.lengths], name="responses"))
            return figure
        counted: Any = pairs.value_counts().reset_index(name="rows")
        title = self._rule_text(short=True)
        if len(counted) > POINTS:
            title += f"; the {POINTS} most frequent of {len(counted)} pairs of lengths"
        shown, top = counted.head(POINTS), int(pairs.to_numpy().max())
        first, second = self._labels(2)
        figure = blank(plain(title), f"tokens of the {second} response", f"tokens of the {first} response")
        hover = f"{first} %{{y}}, {second} %{{x}} tokens: %{{customdata}} rows<extra></extra>"
        marker = {"size": 4 + 3 * np.sqrt(shown["rows"]).clip(upper=8), "opacity": 0.6}
        points: Any = {"x": shown["rejected"], "y": shown["chosen"], "customdata": shown["rows"], "mode": "markers"}
        figure.add_trace(go.Scatter(**points, name="rows", showlegend=False, marker=marker, hovertemplate=hover))
        figure.add_shape(type="line", x0=0, y0=0, x1=top, y1=top, line={"color": "#888", "dash": "dot"})
        return figure

    # -- the view
    def data(self) -> dict[str, Any]:
        """What the view draws, JSON types only."""
        rows, first = self.rows, self._order[:LISTED]
        listed, carried, spent = sorted(first), {}, 0
        for row in first:
            size = 7 * (len(rows.prompts[row]) + sum(rows.lengths[row])) + 8
            if spent + size <= CARRIED or not carried:
                carried[row], spent = self._ids(row), spent + size
        cuts = rows.prompts_cut and [[rows.prompts_cut[row], *rows.responses_cut[row]] for row in listed]  # type: ignore[index]
        names = [self.names[row] for row in listed]
        names = None if names == [f"row {row}" for row in listed] else names
        spread = self._spread()
        tops = {name: _top(values) for name, values in spread.items()}
        tops |= dict.fromkeys([*tops][1:], max([*tops.values()][1:]))  # responses share one axis
        told, place = [], set(listed)
        for finding in self.findings:
            about = {name: getattr(finding.rule, name) for name in ("code", "severity", "title", "why", "remedy")}
            told.append({**about, "count": len(finding.rows), "rows": [row for row in finding.rows if row in place]})
        return {
            "total": len(self.groups),
            "listed": listed,
            "names": names,
            "labels": self._labels(0),
            "lengths": [[len(rows.prompts[row]), *rows.lengths[row]] for row in listed],
            "cuts": cuts,
            "starts": [self._start_of_responses(row) for row in listed],
            "scores": None if self.scores is None else [self.scores[row] for row in listed],
            "ids": {str(row): ids for row, ids in carried.items()},
            **self._vocabulary(carried.values()),
            "say": self._say(),
            "rule": self._rule_text(),
            "eos": self.words.end,
            "spread": [{"name": n, "text": _quantiles(v), **_histogram(v, tops[n])} for n, v in spread.items()],
            "findings": told,
        }

    def widget(self) -> Any:
        """Live face: `.chosen` (row number) and `.warning` (code of the list's filter, "" for none) follow what the
        reader does, and the view follows them."""
        return scripted.live("preview", self.data(), on_message=self._on_message, **self._state())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return scripted.bundle("preview", self.data(), self.widget(), repr(self), **self._state())

    # -- inside
    def _state(self) -> dict[str, Any]:
        return {"chosen": self._order[0], "warning": ""}

    def _on_message(self, widget: Any, content: Any) -> None:
        row = content.get("row")
        if content.get("kind") == "tokens" and isinstance(row, int) and 0 <= row < len(self.groups):
            ids = self._ids(row)
            widget.send({"kind": "tokens", "row": row, "ids": ids, **self._vocabulary([ids])})

    def _ids(self, row: int) -> list[list[int]]:
        return [list(self.rows.prompts[row]), *map(list, self.rows.responses[row])]

    def _vocabulary(self, rows: Iterable[list[list[int]]]) -> dict[str, Any]:
        used = sorted({token for row in rows for part in row for token in part})
        return {
            "vocabulary": {str(token): self.words.shown(token) for token in used},
            "partial": {str(t): self.words.bytes_of(t).hex() for t in used if self.words.is_partial(t)},
            "special": [token for token in used if token in self.words.special],
        }

    @cached_property
    def _order(self) -> list[int]:
        """All rows: some of every warning, then by how bad their worst warning is, then as they stand."""
        worst = np.full(len(self.groups), 3)
        for finding in self.findings:
            rank = ("severe", "warning", "note").index(finding.rule.severity)
            worst[finding.rows] = np.minimum(worst[finding.rows], rank)
            worst[finding.rows[:OF_EACH]] = -1
        return np.argsort(worst, kind="stable").tolist()

    def _labels(self, k: int) -> list[str]:
        k = k or max(map(len, self.rows.lengths))
        if self.scores is None and k <= 2:
            return ["response"] if max(map(len, self.rows.lengths)) == 1 else ["chosen", "rejected"][:k]
        return [f"response {i + 1}" for i in range(k)]

    def _start_of_responses(self, row: int) -> int:
        positions = self.groups[row].prompt_positions
        return positions[-1] + 1 if positions else len(self.groups[row].prompt_ids)

    def _spread(self) -> dict[str, list[int]]:
        """Tokens of prompts, preferred and other responses."""
        lengths, labels = self.rows.lengths, self._labels(0)
        others = [n for many in lengths for n in many[1:]]
        rest = {labels[1] if len(labels) == 2 else "other responses": others} if others else {}
        return {"prompt": [len(p) for p in self.rows.prompts], labels[0]: [many[0] for many in lengths if many], **rest}

    def _say(self) -> str:
        s = self.summary()
        what = {1: "demonstration", 2: "pair"}.get(max(map(len, self.rows.lengths)), "list")
        cuts = "what was cut before cannot be seen"
        if s["prompts_cut"] is not None:
            cuts = f"{_many(s['prompts_cut'], 'prompt')} and {_many(s['responses_cut'], 'response')} cut"
        passes = "1 pass" if s["micro_batches"] == 1 else f"{s['micro_batches']:,} passes"
        read = f"{_many(s['rows'], what)}, {_many(s['tokens'], 'token')}, {s['scored_tokens']:,} of them scored"
        return f"{read}; {cuts}; about {_many(s['rows_held'], 'row')} held at once, {passes} an epoch."

    def _rule_text(self, *, short: bool = False) -> str:
        rule = row_checks.length_rule(self.rows)
        if not self.rows.ordered or not rule.n:
            return "" if not short else "Lengths of the first two responses"
        if short:
            return f"The chosen response is the longer one in {rule.share:.0%} of {rule.n} pairs"
        sure = f"(95 % interval {rule.low:.1%} to {rule.high:.1%})"
        of = f"Of {rule.n:,} pairs that differ in length"
        return f"{of} the chosen response is the longer one in {rule.share:.1%} {sure}."


def _group_of(row: Any, number: int) -> Group:
    group = getattr(row, "group", row)
    if not isinstance(group, Group):
        what = f"a {type(row).__name__} without a group of tokens"
        raise ValueError(f"row {number} is {what}; for raw rows use TrainingPreview.of_rows")
    if not group.responses_ids:
        raise ValueError(f"row {number} has no responses, so there is nothing to train on; drop it")
    return group


def _prompt_of(policy: Policy, one: Any) -> list[int]:
    if isinstance(one, Mapping):
        one = one["prompt"]
    elif not isinstance(one, (str, list)):
        return list(_group_of(one, 0).prompt_ids)
    return policy.encode_prompt(one)


def _encoded(policy: Policy, row: Mapping[str, Any], kind: str, number: int) -> tuple[list[int], list[list[int]]]:
    """What `policy.group` makes of texts, before it cuts."""
    column = "prompt"
    try:
        prompt = policy.encode_prompt(row["prompt"])
        column = {"preference": "chosen or rejected", "ranking": "responses"}.get(kind, "completion")
        return prompt, [policy.encode_response(text) for text in _responses_of(row, kind)]
    except Exception as error:  # tokenizers raises no narrower kind
        raise ValueError(f"row {number}, column {column!r}: the tokenizer cannot write it: {error}") from error


def _responses_of(row: Mapping[str, Any], kind: str) -> list[str]:
    if kind == "ranking":
        return list(row["responses"])
    return [row["completion"]] if kind == "demonstration" else [row["chosen"], row["rejected"]]


def _some(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:10]))}{more}"


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _quantiles(values: Sequence[int]) -> str:
    middle, high = np.percentile(values, (50, 95))
    return f"median {middle:,.0f}, 95 % up to {high:,.0f}, longest {max(values):,} tokens"


def _top(values: Sequence[int]) -> int:
    """Where a histogram ends: at the longest, or well above the bulk where a few are very long."""
    return int(min(max(values), max(24, 1.5 * np.percentile(values, 95))))


def _histogram(values: Sequence[int], top: int) -> dict[str, Any]:
    """At most 24 bins of whole tokens from 0 to `top`; `over` rows are longer and stand in the last one."""
    width = -(-(top + 1) // 24)
    places = np.minimum(np.asarray(values) // width, top // width)
    over = int((np.asarray(values) >= width * (top // width + 1)).sum())
    return {"width": width, "counts": np.bincount(places, minlength=top // width + 1).tolist(), "over": over}
