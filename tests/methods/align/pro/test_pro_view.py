"""The browser of lists: text is escaped, positions are right, the static face needs no kernel, and the slider moves
it."""

import pandas as pd
import pytest

from workbench.methods.align.pro.view import ListBrowser, bleu_figure, rewards_figure

LISTS = pd.DataFrame(
    {
        "list": [0, 0, 0, 1, 1],
        "prompt": ["<b>a3</b>"] * 3 + ["a4"] * 2,
        "response": ["<script>alert(1)</script>", "t1", "t2", "t3", "t4"],
        "score": [2.0, 0.0, 0.0, 1.0, -1.0],
        "before": [-3.0, -1.0, -2.0, -1.0, -1.5],
        "after": [-1.0, -2.0, -3.0, -1.0, -1.5],
    }
)


def test_positions_by_hand():
    rows = ListBrowser(LISTS).positions(0)
    assert rows["before_position"].tolist() == [3, 1, 2]
    assert rows["after_position"].tolist() == [1, 2, 3]
    assert rows["score_position"].tolist() == [1, 2.5, 2.5]  # equal scores share a position


def test_text_is_escaped_everywhere():
    view = ListBrowser(LISTS)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure(0).to_json()):
        assert "<script>" not in text.replace("\\u003c", "<")
        assert "<b>a3</b>" not in text.replace("\\u003c", "<")


def test_slider_moves_table_and_chart():
    view = ListBrowser(LISTS)
    slider, text, chart = view.widget().children
    first = chart.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    slider.value = 1
    assert text.value == view.html(1)
    assert chart.outputs[0]["data"]["application/vnd.plotly.v1+json"] != first
    assert "1 of 2" in view._repr_mimebundle_()["text/html"]


def test_no_lists_is_an_error():
    with pytest.raises(ValueError, match="no lists to show"):
        ListBrowser(LISTS.iloc[:0])


def test_curves_of_a_run_without_bleu():
    table = pd.DataFrame(
        {
            "arm": ["pro", "pro", "bon", "bon"],
            "seed": 0,
            "round": [0, 1] * 2,
            "quality": [-2.0, -1.0, -2.0, -1.5],
            "agreement": [0.5, 0.7, 0.5, 0.6],
        }
    )
    assert "ends at -1.00, SFT on the best answer at -1.50" in rewards_figure(table).figure().layout.title.text
    assert "evaluation_judge" in bleu_figure(table)
