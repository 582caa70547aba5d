"""Clip bags: escaped text, the selected clip marked, numbers shown, buttons that move it."""

import pandas as pd
import pytest

from workbench.methods.align.pami_vdpo.view import ClipBags, accuracy_figure, likelihood


def table():
    shared = {
        "question": "HAS",
        "prompt": "<b>HAS</b> o1",
        "response": "<i>yes</i>",
        "evidence": ["o1", "<script>x</script>"],
    }
    return pd.DataFrame(
        [
            {
                **shared,
                "sample": n,
                "candidate": kind,
                "altered": ["-", "o1"],
                "close": 0.5,
                "far": far,
                "weight": weight,
                "is_false": float(not weight),
                "identical": 0,
                "fell_back": False,
            }
            for n in (3, 8)
            for kind, far, weight in (("reverse", 0.01, 0.0), ("crop", 0.4, 1.0))
        ]
    )


def test_text_is_escaped_and_the_selected_clip_is_marked():
    answers = pd.DataFrame([{"sample": 3, "k": k, "p_before": 0.5, "p_after": 0.9 - 0.2 * k} for k in (-1, 0, 1)])
    view = ClipBags(table(), answers=answers)
    text = view.html(0)
    assert "<script>" not in text
    assert "<b>HAS" not in text
    assert "<i>" not in text
    lines = text.split("<tr")
    assert [("&#9664;" in line) for line in lines[2:]] == [False, False, True]
    assert "reverse (same right answer)" in text
    assert "0.400" in text
    assert "0.50, 0.70" in text
    assert "background:#fff;" in lines[3]  # a blank frame
    raw = view.figure().to_json().replace("\\u003c", "<")
    assert "<b>HAS" not in raw
    assert view.figure().layout.title.text == "0% of what is rejected has the same right answer"


def test_buttons_move_it():
    view = ClipBags(table())
    bar, text = view.widget().children
    back, slider, forth = bar.children
    forth.click()
    forth.click()
    assert (slider.value, text.value) == (1, view.html(1))
    back.click()
    assert text.value == view.html(0)
    assert view._repr_mimebundle_()["text/html"].count('class="clip-bag"') == 2
    assert len(view.frame()) == 4
    with pytest.raises(ValueError, match="no candidates to show"):
        ClipBags(table().head(0))


def test_figures_state_their_finding():
    names = {"HAS against": 0.5, "EARLY against": 0.5, "with": 1.0, "yes_bias": 0.0, "quality": 0.5}
    rows = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "round": t, "paired": 0.2 + 0.4 * t, "chosen_logp": -0.1 * t, **names}
            for arm in ("pami", "sft")
            for seed in (0, 1)
            for t in (0, 1)
        ]
    )
    assert accuracy_figure(rows).figure().layout.title.text == "PaMi-VDPO answers 60% of question pairs right, from 20%"
    assert likelihood(rows).loc["PaMi-VDPO", "after"] == pytest.approx(-0.1)
