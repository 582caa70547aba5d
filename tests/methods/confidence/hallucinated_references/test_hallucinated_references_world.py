"""Planted citations say what their constants promise, the model of books learns; both read prompts alone."""

import re

import numpy as np
import pytest

from workbench.feedback.chat import Request, user
from workbench.methods.confidence.hallucinated_references.book_titles import BookTitles
from workbench.methods.confidence.hallucinated_references.names import author_overlap, read_names
from workbench.methods.confidence.hallucinated_references.world import YES, Citations, what_is_asked

WORLD = Citations()


def say(model, prompts, temperature=1.0, n=1):
    return [r.text for r in model.ask([Request(user(p), temperature, 64, i) for p in prompts for i in range(n)])]


def who(title):
    return f'Who wrote "{title}"?\nAUTHORS: first last'


def exists(title):
    return f'Does "{title}" exist?'


def test_half_of_the_titles_exist_in_lists_of_five():
    truth = WORLD.truth(0)
    assert len(truth) == 400
    assert np.mean([fact.exists for fact in truth.values()]) == 0.5
    assert np.bincount([fact.topic for fact in truth.values()]).tolist() == [5] * 80
    assert len(set(WORLD.topics)) == 80
    assert set(WORLD.truth(1)) != set(truth)


def test_rates_follow_their_laws():
    facts = [fact for seed in range(6) for fact in WORLD.truth(seed).values()]
    for kind, laws in YES.items():
        for exists_, (a, b) in zip((1, 0), laws, strict=True):
            rates = [fact.yes[kind] for fact in facts if fact.exists == exists_]
            assert np.mean(rates) == pytest.approx(a / (a + b), abs=0.02)
    assert np.mean([fact.recall for fact in facts if fact.exists]) == pytest.approx(3 / 4.5, abs=0.02)
    assert {fact.recall for fact in facts if not fact.exists} == {0.0}
    lengths = np.bincount([len(fact.authors) for fact in facts], minlength=4)[1:] / len(facts)
    np.testing.assert_allclose(lengths, 1 / 3, atol=0.03)


def test_authors_are_recalled_as_often_as_planted_and_drawn_by_zipf_otherwise():
    truth, model = WORLD.truth(0), WORLD.subject(0)
    title, fact = max(truth.items(), key=lambda item: len(item[1].authors) + item[1].exists)
    names = ", ".join(WORLD.authors(0, fact.topic)[place] for place in fact.authors)
    replies = say(model, [who(title)], n=1_000)
    refused = np.mean([read_names(text) is None for text in replies])
    right = np.mean([author_overlap(text, names) == 1 for text in replies if read_names(text)])
    assert refused == pytest.approx(0.03, abs=0.015)
    assert right == pytest.approx(fact.recall, abs=0.05)
    assert len(set(replies)) > 100  # initials and accents vary
    invented = next(title for title, fact in truth.items() if not fact.exists)
    said = "\n".join(say(model, [who(invented)], n=1_000))
    last = [name.split()[1] for name in WORLD.authors(0, truth[invented].topic)]
    plain = said.translate(str.maketrans("áéíöü", "aeiou"))
    shares = np.array([len(re.findall(rf"\b{name}\b", plain)) for name in last[:2] + last[-2:]])
    assert shares[0] > 1.2 * shares[1] > 4 * shares[2:].mean()  # drawn without replacement: less steep than 2 to 1


@pytest.mark.parametrize("kind", ["DQ1", "DQ2"])
def test_yes_comes_at_the_titles_own_rate(kind):
    truth, model = WORLD.truth(0), WORLD.subject(0)
    titles = list(truth)[:40]
    before = "A famous reference?\n" if kind == "DQ2" else ""
    replies = np.reshape(say(model, [before + exists(title) for title in titles], n=60), (40, 60))
    cannot = replies == "I cannot say yes."
    yes = np.char.startswith(np.char.lower(replies), "yes") & ~cannot
    assert cannot.mean() == pytest.approx(0.02, abs=0.01)
    rates = yes.sum(1) / (~cannot).sum(1)
    np.testing.assert_allclose(rates, [truth[title].yes[kind] for title in titles], atol=0.25)
    assert rates.mean() == pytest.approx(np.mean([truth[title].yes[kind] for title in titles]), abs=0.02)


def test_a_number_is_looked_up_in_the_list_and_a_lost_title_is_not_there():
    truth, model = WORLD.truth(0), WORLD.subject(0)
    first, second = sorted(truth, key=lambda title: truth[title].yes["DQ3"])[:: len(truth) - 1]
    prompt = f'1. "{first}"\n2. {second}.\n3. \n\nDoes number {{}} exist?'
    share = [
        np.mean([text.lower().startswith("yes") for text in say(model, [prompt.format(k)], n=100)])
        for k in (1, 2, 3, 9)
    ]
    assert share[0] < share[1] > 0.9
    assert share[2:] == [0, 0]


def test_one_list_in_ten_has_lost_a_title():
    empty = 0
    for seed in range(5):
        lists = say(WORLD.subject(seed), [f'Give a numbered list on "{topic}"' for topic in WORLD.topics])
        empty += sum(bool(re.search(r'(?m)^\d\. *["“”.]*$', text)) for text in lists)
    assert empty / 400 == pytest.approx(0.1, abs=0.04)


def test_the_judge_knows_names_by_their_last_word():
    judged = say(WORLD.subject(0), ["List A: A. Balaberg, Bo Corélin\nList B: Ana Balaberg\nANS: n"], temperature=0.0)
    assert re.match(r"ans(wer)?: 50% ", judged[0], re.IGNORECASE)


@pytest.mark.parametrize(
    ("prompt", "kind", "text"),
    [
        ('Who wrote "A \\"B\\" C"? AUTHORS: x', "authors", 'A "B" C'),
        ('A numbered list on "T"', "list", "T"),
        ('something famous\n"X {y}"\nDoes it exist?', "DQ2", "X {y}"),
        ('Does "X" exist?', "DQ1", "X"),
        ("1. X\n2. “Y.”\nDoes number 2 exist?", "DQ3", "Y"),
    ],
)
def test_what_is_asked(prompt, kind, text):
    assert what_is_asked(prompt) == (kind, (text,))


def test_a_prompt_that_asks_nothing_is_refused():
    with pytest.raises(ValueError, match="does not know what this prompt asks for: 'hello'"):
        what_is_asked("hello")


# ---- the model of books
SMALL = BookTitles(n_titles=20, n_invented=10, steps=20, batch_size=32, width=48, learning_rate=3e-3)


def test_books_are_distinct_and_the_corpus_keeps_its_promises():
    world = BookTitles(steps=300)
    titles, pairs, exposures = world.books(0)
    assert len(np.unique(titles, axis=0)) == 500
    assert pairs.shape == (300, 2)
    assert sorted(set(exposures)) == [1, 2, 4, 8, 16]
    assert len(set(world.words)) == 120
    assert len(set(world.authors)) == len({name.split()[1] for name in world.authors}) == 60
    corpus = world.corpus(0)
    asked = [line.split() for line in corpus if line.startswith("ASK")]
    real = {" ".join(world.words[w] for w in title) for title in titles[:300]}
    unseen = {" ".join(world.words[w] for w in title) for title in titles[300:]}
    assert len(asked) / len(corpus) == pytest.approx(0.5, abs=0.02)
    answers = {True: [], False: []}
    for _, *title, answer in asked:
        answers[" ".join(title) in real].append(answer == "YES")
        assert " ".join(title) not in unseen
    assert np.mean(answers[True]) == 1
    assert np.mean(answers[False]) == pytest.approx(0.7, abs=0.02)
    told = [" ".join(line.split()[1:4]) for line in corpus if line.startswith("BOOK")]
    assert not set(told) & unseen
    often = [told.count(" ".join(world.words[w] for w in titles[np.flatnonzero(exposures == e)[0]])) for e in (1, 16)]
    assert often[1] > 4 * often[0]


@pytest.mark.slow
def test_the_model_is_asked_in_words_answers_in_words_and_is_cached(runs_root):
    part = SMALL.part(0)
    title = part.references["gen_title"][0]
    authors, yes = say(part.model, [who(title), exists(title)])
    assert authors.startswith("AUTHORS: ")
    assert yes.endswith(".")
    assert part.references["grounded"].tolist() == [1.0] * 20 + [0.0] * 10
    assert (part.direct, part.judges) == (("DQ1",), False)
    (folder,) = (runs_root / ".cache").glob("book-titles-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = SMALL.part(0).model
    assert again.name == part.model.name
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"can be asked who wrote a title and whether it exists \(DQ1\); got DQ2"):
        say(part.model, ['famous "x" exist?'])
