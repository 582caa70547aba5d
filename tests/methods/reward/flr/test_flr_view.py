"""The browser of follow-ups: text is escaped, phrases stand by polarity, the list moves it, and it needs no kernel."""

import pandas as pd
import pytest

from workbench.methods.reward.flr.view import FollowUpBrowser

PHRASES = [("d", "positive", "Good <i>x</i>"), ("d", "positive", "Fine"), ("d", "negative", "Bad")]
TABLE = pd.DataFrame(
    {
        "prompt": ["<b>q</b>", "q2", "q2"],
        "response": ["<script>alert(1)</script>", "two words", "two words"],
        "side": ["chosen", "rejected", "rejected"],
        "flr": [0.5, -0.5, -0.5],
        "likelihoods": [[-1.0, -2.0, -2.0], [-3.0, -2.0, -2.0], [-3.0, -2.0, -2.0]],
    }
)


def test_text_is_escaped_everywhere():
    view = FollowUpBrowser(TABLE, PHRASES)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure(0).to_json(), view.length_figure().figure().to_json()):
        text = text.replace("\\u003c", "<")
        assert "<script>" not in text
        assert "<b>q</b>" not in text
        assert "<i>x</i>" not in text


def test_phrases_and_list():
    view = FollowUpBrowser(TABLE, PHRASES)
    assert len(view.table) == 2  # the same response once
    assert view.frame().groupby("polarity").size().to_dict() == {"positive": 4, "negative": 2}
    assert [len(trace.x) for trace in view.figure(1).data] == [2, 1]
    pick, text = view.widget().children
    pick.value = 1
    assert text.value == view.html(1)
    assert view.html(1).index("Fine") < view.html(1).index("Good")  # the likeliest first
    assert view.length_figure().frame()["words"].tolist() == [1, 2]


def test_other_phrases_and_empty_tables_are_refused():
    with pytest.raises(ValueError, match="not the set they were scored with"):
        FollowUpBrowser(TABLE, PHRASES[:2])
    with pytest.raises(ValueError, match="no scored responses"):
        FollowUpBrowser(TABLE.iloc[:0], PHRASES)
