"""The drawing of a search: cut candidates are told from the chains, and text is escaped."""

import pandas as pd

from workbench.methods.align.sphere.view import tree_of

NODES = pd.DataFrame(
    [
        {
            "number": 0,
            "depth": t,
            "chain": side,
            "step": f"<i>{t}{k}</i>",
            "score": (k + 1) / 4,
            "picked": k == (2 if side == "max" else 0),
        }
        for t in range(2)
        for side in ("max", "min")
        for k in range(3)
    ]
)


def test_tree_says_what_was_cut_and_escapes_steps():
    display = tree_of(NODES)
    figure = display.figure()
    assert (
        figure.layout.title.text
        == "One search, 8 of 12 candidates cut: best chain ends at 0.75; worst chain ends at 0.25"
    )
    chains = [trace for trace in figure.data if trace.name in ("best chain", "worst chain")]
    assert list(chains[0].x) == [0.5, 0.75, 0.75]
    assert "<i>" not in figure.to_json().replace("\\u003c", "<")
    assert len(display.frame()) == 12
