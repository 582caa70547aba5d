"""Documents with questions: chunks, what a chunk says about a question, tokens whose borders are known, and real rows.

A chunk is a text with the white space that separates it from the next; a document is its chunks joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.models import Policy
from workbench.models.turns import render
from workbench.tasks.real import TextTask
from workbench.training.reference import reference_logps

FUNCTION_WORDS = (
    "a about after all also am an and any are as at be because been before being but by can could did do does doing"
    " down each few for from had has have having he her here hers him his how i if in into is it its just many may me"
    " more most much my no nor not of off on once only or other our out over own same she should so some such than that"
    " the their them then there these they this those through to too under until up very was we were what when where"
    " which while who whom why will with would you your"
)
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
SUFFIXES = ("ing", "ies", "ed", "es", "s", "y", "e")
_MARK, _SECOND, _THIRD = "\x01", "\x02", "\x03"  # places in a rendered template; no tokenizer sees them


# ------------------------------------------------------------------------------------------------------------- chunks
def pack_paragraphs(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    """Paragraphs packed one after the other into chunks of at most `most` (by `count`); a longer paragraph stays
    alone."""
    chunks: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        n = count(paragraph)
        if chunks and size + n <= most:
            chunks[-1] += f"{paragraph.strip()}\n\n"
            size += n
        else:
            chunks.append(f"{paragraph.strip()}\n\n")
            size = n
    return chunks


# --------------------------------------------------------------------------------------------------------- importance
def content_words(text: str) -> set[str]:
    """Words that carry content, without case and simple endings; names and numbers among them.

    The official code takes lemmas of nouns and verbs and named entities from spaCy's en_core_web_lg. This light
    extractor has no model: it drops function words and cuts endings, so a few unrelated words meet and irregular forms
    do not. Pass another function where that matters.
    """
    words = set()
    for word in re.findall(r"\w+", text.lower()):
        if word in STOP_WORDS:
            continue
        for suffix in SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) >= 3:
                word = word[: -len(suffix)]
                break
        words.add(word)
    return words


def overlaps(
    chunks: Sequence[str], question: str, answer: str, extract: Callable[[str], set[str]] = content_words
) -> list[int]:
    """For every chunk, how many content words it shares with question and answer."""
    wanted = extract(f"{question} {answer}")
    return [len(extract(chunk) & wanted) for chunk in chunks]


def keep_best(scores: Sequence[int], n: int, minimum: int) -> list[int] | None:
    """Numbers of the `n` best chunks, best first; None where the weakest of them is below `minimum`.

    Raises:
        ValueError: fewer chunks than asked for; both numbers are named.
    """
    if len(scores) < n:
        raise ValueError(f"{n} chunks are wanted but the document has {len(scores)}; lower `chunks` or split it finer")
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]
    return best if scores[best[-1]] >= minimum else None


def ablated(chunks: Sequence[str], best: Sequence[int]) -> list[list[str]]:
    """Three contexts from the kept chunks (best first): all, the better half, the worse half; in document order."""
    half = len(best) // 2
    return [[chunks[i] for i in sorted(kept)] for kept in (best, best[:half], best[half:])]


# ------------------------------------------------------------------------------------------------------------- tokens
def prompt_parts(policy: Policy, chunks: Sequence[str], question: str) -> tuple[list[int], list[list[int]], list[int]]:
    """Token ids of what stands before the document, of every chunk, and of the question with what announces the answer.

    Every part is tokenised apart, so that the borders of chunks are borders of tokens. Joined they are the prompt.

    Raises:
        ValueError: a chunk or the question is empty.
    """
    for number, text in enumerate([*chunks, question]):
        if not text.strip():
            what = "the question" if number == len(chunks) else f"chunk {number}"
            raise ValueError(f"{what} is empty; remove it, or the row")
    before, after = _framed(policy)
    return before, [policy.encode_part(chunk) for chunk in chunks], [*policy.encode_part(question), *after]


def prompt_ids(policy: Policy, chunks: Sequence[str], question: str) -> list[int]:
    before, parts, ask = prompt_parts(policy, chunks, question)
    return [*before, *(token for part in parts for token in part), *ask]


def next_question(policy: Policy, question: str) -> list[int]:
    """Token ids between an answer with its turn-end token and the next answer: the next turn of a conversation."""
    if not getattr(policy.tokenizer, "chat_template", None):
        return policy.encode_part(f"\n{question}")
    turns = [("user", _MARK), ("assistant", _SECOND), ("user", _THIRD)]
    text = _rendered(policy, turns).partition(_SECOND)[2]
    between, _, after = text.partition(_THIRD)
    ids = _special(policy, between)
    end = list(policy.turn.end_ids)
    ids = ids[len(end) :] if ids[: len(end)] == end else ids  # the answer has its own
    return [*ids, *policy.encode_part(question), *_special(policy, after)]


def _framed(policy: Policy) -> tuple[list[int], list[int]]:
    """Token ids before and after the text of the first user turn."""
    if not getattr(policy.tokenizer, "chat_template", None):
        start = policy.tokenizer.bos_token_id
        return ([start] if start is not None else []), []
    before, _, after = _rendered(policy, [("user", _MARK)]).partition(_MARK)
    return _special(policy, before), _special(policy, after)


def _rendered(policy: Policy, turns: Sequence[tuple[str, str]]) -> str:
    chat = [{"role": role, "content": text} for role, text in turns]
    return render(policy.tokenizer, chat)


def _special(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False).input_ids)


# ---------------------------------------------------------------------------------------------------------- real rows
@dataclass
class TextDocuments(TextTask):
    """Documents of a data set. Rows are documents (`chunks`, or `text`, whose paragraphs are packed; `question` or
    `questions`, `answer` or `answers`, or none of these; other columns are kept), or questions with answers that are
    packed: several problems with their solutions make a document, and it is asked about some of them again.

    Attributes:
        chunk_tokens: most tokens of a chunk that paragraphs are packed into.
        pack: problems a document.
        turns: questions a packed document is asked.
    """

    pack: int = 6
    turns: int = 1
    chunk_tokens: int = 1024
    _documents: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def documents(self, split: str, seed: int) -> list[Row]:
        """Rows `chunks`, `questions`, `answers`, `chunk_of`; `train_size` and `test_size` count documents.

        Raises:
            ValueError: a row without chunks, question or answer, or with an empty one (row and column are named); too
                few problems for one document of each split.
        """
        if not self._documents:
            rows = data.load(self.dataset)
            is_text = "text" in rows[0]
            if is_text:
                rows = [{**row, "chunks": self._chunks(row["text"], i)} for i, row in enumerate(rows)]
            is_documents = is_text or "chunks" in rows[0]
            documents = [_document(row, i) for i, row in enumerate(rows)] if is_documents else self._packed(rows)
            if len(documents) <= self.test_size:
                raise ValueError(
                    f"{self.dataset} gives {len(documents)} documents, of which test_size={self.test_size} are held"
                    " out: none is left to train on; give more rows, or lower test_size or pack"
                )
            self._documents |= {"test": documents[: self.test_size], "train": documents[self.test_size :]}
        rows = self._documents[split]
        return rows[: self.train_size or None] if split == "train" else rows

    def _chunks(self, text: Any, index: int) -> list[str]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"row {index}, column 'text': a text is needed; got {text!r}; mend or remove the row")
        if "tokenizer" not in self._loaded:
            from transformers import AutoTokenizer

            self._loaded["tokenizer"] = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        tokenizer = self._loaded["tokenizer"]
        return pack_paragraphs(
            text, self.chunk_tokens, lambda part: len(tokenizer(part, add_special_tokens=False).input_ids)
        )

    def longer(self, pack: int) -> TextDocuments:
        """The same rows packed into documents of so many problems; documents of the data set stay as they are."""
        return replace(self, pack=pack, _documents={})

    def _packed(self, rows: Sequence[Row]) -> list[Row]:
        problems = data.as_demonstrations(rows)
        rng, documents = np.random.default_rng(0), []
        for first in range(0, len(problems) - self.pack + 1, self.pack):
            packed = problems[first : first + self.pack]
            asked = sorted(rng.permutation(self.pack)[: self.turns].tolist())
            documents.append(
                {
                    "chunks": [f"{problem['prompt']}\n{problem['completion']}\n\n" for problem in packed],
                    "questions": [packed[i]["prompt"] for i in asked],
                    "answers": [packed[i]["completion"] for i in asked],
                    "chunk_of": asked,
                }
            )
        return documents

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Negative log-likelihood a token of the reference answers to held-out questions, nats: `long_nll` behind the
        whole document, `short_nll` behind the chunk that the question is about; `quality` is minus the former. Where no
        document has a question: of the last chunk, behind all others or behind the one before it."""
        numbers = {}
        for name in ("long_nll", "short_nll"):
            whole, groups = name == "long_nll", []
            for row in self.documents("test", seed):
                if not row["questions"]:
                    before, parts, _ = prompt_parts(policy, row["chunks"], "?")
                    context = chain(*(parts[:-1] if whole else parts[-2:-1]))
                    groups.append(policy.group([*before, *context], [parts[-1]], max_length=self.max_length))
                for question, answer, place in zip(row["questions"], row["answers"], row["chunk_of"], strict=True):
                    ids = prompt_ids(policy, row["chunks"] if whole else [row["chunks"][place]], question)
                    groups.append(policy.group(ids, [answer], max_length=self.max_length))
            numbers[name] = -float(reference_logps(policy, groups).sum() / sum(len(g.responses_ids[0]) for g in groups))
        return {"quality": -numbers["long_nll"], **numbers}


def _document(row: Row, index: int) -> Row:
    """A row of documents with plural columns; every text is there and says something."""
    document: dict[str, Any] = dict(row)
    is_bare = not {"question", "questions", "chosen", "answer", "answers"} & set(row)
    for many, one in (("questions", "question"), ("answers", "answer")):
        if many not in document:
            alone, chosen = document.get(one), document.get("chosen")
            document[many] = [alone] if alone is not None else chosen and [chosen]
    if is_bare:
        document |= {"questions": [], "answers": [], "chunk_of": []}
    for column in ("chunks",) if is_bare else ("chunks", "questions", "answers"):
        texts = document.get(column)
        if not isinstance(texts, list) or not texts:
            raise ValueError(f"row {index}: column {column!r} must be a list of texts with at least one; got {texts!r}")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"row {index}, column {column!r}, number {number}: a text is needed; got {text!r}; mend or remove"
                    " the row"
                )
    if len(document["questions"]) != len(document["answers"]):
        raise ValueError(f"row {index}: {len(document['questions'])} questions but {len(document['answers'])} answers")
    document["chunks"] = [chunk if chunk[-1].isspace() else chunk + "\n\n" for chunk in document["chunks"]]
    if "chunk_of" not in document:
        pairs = zip(document["questions"], document["answers"], strict=True)
        document["chunk_of"] = [int(np.argmax(overlaps(document["chunks"], q, a))) for q, a in pairs]
    return document
