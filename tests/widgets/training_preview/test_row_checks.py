"""What is found in rows before training: every fault planted once and found in its rows, and nothing in clean ones."""

import numpy as np
import pytest

from workbench.models import bpe_tokenizer
from workbench.widgets.training_preview import row_checks
from workbench.widgets.training_preview.row_checks import BY_CODE, RULES, Rows
from workbench.widgets.training_preview.token_text import TokenText, visible
from workbench.worlds.language import word_tokenizer

TEXT = "why does the quick brown fox jump over a lazy dog while small cats sleep near warm fires "


@pytest.fixture(scope="module")
def words():
    return TokenText(bpe_tokenizer([TEXT * 5], vocab_size=330))


def clean(n=30):
    """Rows without a fault: another prompt each, responses of like length that differ."""
    rng, all_words = np.random.default_rng(0), TEXT.split()
    say = lambda: " ".join(rng.choice(all_words, 9))  # noqa: E731
    return [(f"question {i}: {say()}?", [say(), say()]) for i in range(n)]


def encoded(words, texts, **more):
    tokenizer, eos = words.tokenizer, words.end
    prompt = lambda text: [words.bos, *tokenizer(text, add_special_tokens=False).input_ids]  # noqa: E731
    response = lambda text: [*tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, eos]  # noqa: E731
    return Rows(
        [prompt(p) for p, _ in texts], [[response(r) for r in many] for _, many in texts], words, texts=texts, **more
    )


def found(rows):
    return {finding.rule.code: finding.rows for finding in row_checks.findings(rows)}


def planted(words, changes, **more):
    texts = clean()
    for row, (prompt, responses) in changes.items():
        texts[row] = (prompt or texts[row][0], responses or texts[row][1])
    return found(encoded(words, texts, **more))


def test_clean_rows_give_no_warning(words):
    assert found(encoded(words, clean())) == {}
    rows = encoded(words, clean(), prompts_cut=[0] * 30, responses_cut=[[0, 0]] * 30, held_out=[[5, 6]])
    assert found(rows) == {}
    rows.texts = None
    assert found(Rows(rows.prompts, rows.responses, words)) == {}  # the same from tokens alone


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({4: ("", ["same here", "same here"])}, {"identical": [4]}),
        ({3: ("", [TEXT * 3, TEXT * 3 + " now"])}, {"near_identical": [3]}),
        ({5: ("", ["a " + TEXT * 4, TEXT * 4])}, {"near_identical": [5]}),
        ({1: ("p", ["a b c", "d e f"]), 8: ("p", ["d e f", "a b c"])}, {"conflicting": [1, 8]}),
        ({2: ("p", ["a b c", "d e f"]), 6: ("p", ["a b c", "d e f"])}, {"duplicates": [2, 6]}),
        ({7: ("", ["", "no"])}, {"empty_chosen": [7]}),
        ({7: ("", ["no", ""])}, {"empty_other": [7]}),
        ({9: ("", [" yes", "no"])}, {"starts_with_blank": [9]}),
        ({9: ("", ["yes", "\nno"])}, {"starts_with_blank": [9]}),
        ({0: ("", ["it ends </s> here", "no"])}, {"special_in_response": [0]}),
        ({0: ("say </s> please", None)}, {"special_in_prompt": [0]}),
        ({11: ("[INST] why [/INST]", None)}, {"template_in_text": [11]}),
        ({11: ("Human: why", None)}, {"template_in_text": [11]}),
        ({12: ("zero\u200bwidth", None)}, {"hidden_characters": [12]}),
        ({12: ("", ["\u202eevil\u202c", "no"])}, {"hidden_characters": [12]}),
        ({13: ("repeat: the quick brown fox jumps, please", ["the quick brown fox jumps", "no"])}, {"leaked": [13]}),
        (dict.fromkeys(range(12), ("one prompt", None)), {"frequent_prompt": list(range(12))}),
    ],
)
def test_each_fault_is_found_in_its_rows_and_nothing_else(words, changes, expected):
    assert planted(words, changes) == expected


def test_what_tokens_alone_show(words):
    rows = encoded(words, clean())
    bos, eos = words.bos, words.end
    rows.responses[2][1] = rows.responses[2][1][:-1]
    rows.responses[3][0] = [eos, *rows.responses[3][0]]
    rows.prompts[4] = [bos, *rows.prompts[4]]
    rows.responses[5][0] = [bos, *rows.responses[5][0]]
    rows.texts = None
    assert found(rows) == {"no_end_token": [2], "end_token_inside": [3], "two_begin_tokens": [4, 5]}


def test_cuts_and_held_out_prompts(words):
    rows = encoded(words, clean(), prompts_cut=[0, 3] + [0] * 28, responses_cut=[[0, 0]] * 2 + [[0, 7]] + [[0, 0]] * 27)
    rows.responses[2][1] = rows.responses[2][1][:-7]
    assert found(rows) == {"prompt_cut": [1], "response_cut": [2]}  # a known cut is not also a missing end token
    rows = encoded(words, clean(), whole_prompts=[[9, 9, i] for i in range(30)], held_out=[[9, 9, 4], [9, 9]])
    assert found(rows) == {"in_held_out": [4]}  # the whole prompt is compared, not what a cut left of it


def test_unknown_tokens_and_text_that_is_lost():
    tokenizer = word_tokenizer(["[UNK]", "a", "b", "c"])
    tokenizer.add_special_tokens({"unk_token": "[UNK]"})
    words = TokenText(tokenizer)
    unk, a, b = words.unk, *tokenizer.convert_tokens_to_ids(["a", "b"])
    rows = Rows(
        [[0, a], [0, b], [0, unk]],
        [[[a, 1], [b, b, 1]], [[a, unk, 1], [b, 1]], [[a, 1], [b, 1]]],
        words,
        texts=[("a", ["a", "b b"]), ("b", ["a Z", "b"]), ("Z", ["a", "b"])],
    )
    assert found(rows) == {"unknown_token": [1, 2], "not_written_back": [1]}


def test_length_gives_the_label_away_only_when_it_does(words):
    texts = [(p, [chosen + " and on and on", rejected]) for p, (chosen, rejected) in clean(40)]
    texts[7] = (texts[7][0], [texts[7][1][0] + " over" * 30, texts[7][1][1]])
    rows = encoded(words, texts)
    rule = row_checks.length_rule(rows)
    assert (rule.n, rule.share) == (sum(len({*map(len, many)}) == 2 for many in rows.responses), 1.0)
    assert 0.9 < rule.low < rule.high == 1.0
    assert found(rows)["chosen_is_longer"][0] == 7  # the greatest difference first
    rows.ordered = False
    assert "chosen_is_longer" not in found(rows)
    few = row_checks.length_rule(encoded(words, [("p", ["a", "a"])]))
    assert (few.n, few.low, few.high) == (0, 0.0, 1.0)
    assert np.isnan(few.share)


def test_a_list_that_is_in_no_order_contradicts_nothing(words):
    rows = encoded(words, [("p", ["a b c", "d e f"]), ("p", ["d e f", "a b c"])])
    assert found(rows)["conflicting"] == [0, 1]
    rows.ordered = False
    assert "conflicting" not in found(rows)


@pytest.mark.parametrize(
    ("one", "two", "expected"), [([1, 2], [1, 2], 2), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [1], 0)]
)
def test_shared_start(one, two, expected):
    assert row_checks.shared_start(one, two) == expected


def test_likeness_is_edits_or_shared_start():
    one = list(range(100))
    assert row_checks.likeness(one, [*one, *range(500, 900)]) == 1.0  # all of the shorter one
    assert row_checks.likeness(one, [999, *one[1:]]) == pytest.approx(0.99)
    assert row_checks.likeness(one, one[::-1]) == 0.0
    assert row_checks.likeness([], []) == 1.0


def test_every_rule_says_why_and_what_to_do():
    assert len(BY_CODE) == len(RULES) == 22
    order = [("severe", "warning", "note").index(rule.severity) for rule in RULES]
    assert order == sorted(order)
    for rule in RULES:
        assert rule.why.endswith((".", ")."))
        assert rule.remedy.endswith(".")
        assert len(rule.title) < 45


def test_tokens_say_what_they_are(words):
    tokenizer = words.tokenizer
    ids = tokenizer("€ a\n\u200b </s>", add_special_tokens=False, split_special_tokens=True).input_ids
    assert words.join(ids) == "€ a\n\u200b </s>"
    shown = [words.shown(token) for token in ids]
    assert shown[:3] == ["⟨E2⟩", "⟨82⟩", "⟨AC⟩"]
    assert "↵" in shown
    assert [words.is_partial(token) for token in ids[:4]] == [True, True, True, False]
    assert words.shown(words.end) == "</s>"
    assert words.shown(10_000) == "⟨no·token·10000⟩"


def test_visible_names_what_cannot_be_seen():
    assert visible("a b\tc\n") == "a·b⇥c↵"
    assert visible("x\u202ey\u200bz\u00a0\x00") == "x⟨U+202E⟩y⟨U+200B⟩z⟨U+00A0⟩⟨U+0000⟩"
    assert visible("\u0301e") == "◌\u0301e"
    assert visible("\ud800") == "⟨U+D800⟩"
    assert visible("漢字 é 😀") == "漢字·é·😀"
