"""The browser of wrong steps: text is escaped, the static face needs no kernel, and buttons move it."""

import pandas as pd
import pytest

from workbench.methods.align.step_dpo.view import WrongStep, accuracy_figure, rates_figure

PAIRS = pd.DataFrame(
    {
        "prompt": ["<b>3</b> 9 5"] * 7,
        "prefix": ["", "3 3 ;"] + ["x"] * 5,
        "chosen": [" 9 12 ;"] * 7,
        "rejected": [" <script>alert(1)</script>"] * 7,
        "margin": [-0.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }
)


def test_text_is_escaped_everywhere():
    view = WrongStep(PAIRS)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure().to_json()):
        assert "<script>" not in text.replace("\\u003c", "<")
        assert "<b>3</b>" not in text.replace("\\u003c", "<")
    assert "&lt;script&gt;" in view.html(0)


def test_static_face_shows_the_first_problems_and_says_where_it_is():
    bundle = WrongStep(PAIRS, shown=2)._repr_mimebundle_()
    assert bundle["text/html"].count("first wrong step") == 2
    assert "1 of 7, margin -0.500" in bundle["text/html"]
    assert "(nothing yet)" in bundle["text/html"]


def test_buttons_and_slider_move_the_view():
    view = WrongStep(PAIRS)
    bar, text = view.widget().children
    back, slider, forth = bar.children
    forth.click()
    assert (slider.value, text.value) == (1, view.html(1))
    back.click()
    back.click()  # stays at the first
    assert text.value == view.html(0)
    slider.value = 6
    assert text.value == view.html(6)


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no step pairs to show"):
        WrongStep(PAIRS.head(0))


def test_figures_state_their_finding():
    numbers = {"valid_steps": 0.5, "sampled": 0.3, "closes": 1.0}
    rows = [
        {"arm": arm, "seed": seed, "round": t, "quality": quality if t else 0.1, **numbers}
        for arm, quality in (("step_dpo", 0.4), ("dpo", 0.3), ("step_dpo_slow", 0.2))
        for seed in (0, 1)
        for t in (0, 1)
    ]
    table = pd.DataFrame(rows)
    display = accuracy_figure(table)
    assert (
        display.figure().layout.title.text
        == "Step-DPO answers 40% right, from 10% at the start; DPO on whole answers 30%"
    )
    assert set(display.frame()["arm"]) == {"step_dpo", "dpo"}
    assert set(rates_figure(table).frame()["rate"]) == {1.0, 1 / 3}
    assert rates_figure(table[table["arm"] == "dpo"]).startswith("This run sweeps no learning rate")
