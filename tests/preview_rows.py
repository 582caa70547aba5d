"""Rows with every kind of fault, and a policy that tokenises them: for the tests of the training preview."""

import numpy as np

from workbench.models import Policy, bpe_tokenizer, new_llama

HOSTILE = "<img src=x onerror='window.pwned=1'></script><script>window.pwned=2</script>"
TEXT = "the quick brown fox jumps over lazy dog while a small cat sleeps near warm fire and dreams of fish"
WORDS = TEXT.split()
HIDDEN = "مرحبا \u202e evil \u202c zero\u200bwidth €uro 漢字 </s> end\n\n\tnew line"


def policy(max_length=600):
    tokenizer = bpe_tokenizer([" ".join(WORDS) * 20, HOSTILE], vocab_size=420)
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=max_length, seed=0), tokenizer)


def clean(n=30, seed=0):
    """Pairs without a fault."""
    rng = np.random.default_rng(seed)

    def say(k):
        return " ".join(rng.choice(WORDS, k))

    return [
        {"prompt": f"Tell me about number {i}: {say(12)}?", "chosen": f"{say(12)}.", "rejected": f"{say(12)}, yes."}
        for i in range(n)
    ]


def faulty(n=30):
    """The same with faults in rows 1 to 13: identical, duplicate, conflicting, cut, empty, hostile, hidden, leaked."""
    rows, long = clean(n), " ".join(WORDS * 4)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2] = dict(rows[5])
    rows[3] = {**rows[6], "chosen": rows[6]["rejected"], "rejected": rows[6]["chosen"]}
    rows[4]["chosen"] = " ".join(WORDS * 60)
    rows[7]["rejected"] = ""
    rows[8]["prompt"], rows[8]["chosen"] = f"{HOSTILE} what is <|user|> this?", HOSTILE
    rows[9]["rejected"] = HIDDEN
    rows[10]["prompt"] = "long " * 700
    rows[11]["chosen"] = " " + rows[11]["chosen"]
    rows[12]["chosen"] = rows[12]["prompt"]
    rows[13]["chosen"], rows[13]["rejected"] = f"{long} fish", f"{long} dog"
    return rows
