"""The read/write path: escaped text, a slider over thresholds, AL in the title, and figures that state their
finding."""

import pandas as pd
import pytest

from workbench.methods.align.simulpl.view import ReadWritePath, aspect_figure, counted, curve_figure


def decisions():
    rows = []
    for value, lag in ((0.3, 1.0), (0.7, 2.5)):
        for sentence in (0, 1):
            shared = {
                "sentence": sentence,
                "source": "<b>s1</b> f0",
                "chosen": "x",
                "reader": "confidence",
                "value": value,
                "AL": lag,
            }
            rows += [
                {**shared, "read": 1, "written": 0, "action": "READ", "confidence": 0.2, "token": 5, "text": "a"},
                {
                    **shared,
                    "read": 2,
                    "written": 0,
                    "action": "WRITE",
                    "confidence": 0.9,
                    "token": 5,
                    "text": "<script>x</script>",
                },
            ]
    return pd.DataFrame(rows)


def test_text_is_escaped_and_the_slider_moves_the_path():
    shown = [trace.visible for trace in ReadWritePath(decisions()).figure().data]
    assert shown == [False, True]  # the threshold nearest to 0.7
    figure = ReadWritePath(decisions(), tau=0.3).figure()
    raw = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<script>" not in raw
    assert "<b>" not in raw
    assert [trace.visible for trace in figure.data] == [True, False]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.3", "0.7"]
    assert slider.steps[1].args[0]["visible"] == [False, True]
    assert "AL 2.50" in slider.steps[1].args[1]["title.text"]
    assert "AL 1.00" in figure.layout.title.text
    assert list(figure.data[0].marker.color) == [0.2, 0.9]


def test_static_face_and_live_face():
    view = ReadWritePath(decisions())
    assert "application/vnd.plotly.v1+json" in view._repr_mimebundle_()
    assert view.widget().children[0].options == (0, 1)
    assert len(view.frame()) == 8
    with pytest.raises(ValueError, match=r"sentence 7 was not kept; kept are \[0, 1\]"):
        view.figure(7)
    with pytest.raises(ValueError, match="no decisions of a confidence policy"):
        ReadWritePath(decisions().assign(reader="wait_k"))


def test_figures_state_their_finding():
    names = {
        "LAAL": 2.0,
        "AP": 0.5,
        "DAL": 2.0,
        "length": 7,
        "truncated": 0,
        "early_ends": 0,
        "monotonicity": 1.0,
        "key_points": 1.0,
        "words_per_clause": 3.0,
    }
    table = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "reader": "confidence", "value": v, "AL": 1 + v, "quality": q, **names}
            for arm, q in (("simul_dpo", 1.0), ("msft", 0.5))
            for seed in (0, 1, 2)
            for v in (0.3, 0.7)
        ]
    )
    assert curve_figure(table).figure().layout.title.text.startswith("Quality against latency: SimulDPO reaches 100%")
    assert set(aspect_figure(table, 0.7).frame()["measure"]) >= {"quality", "AL", "monotonicity"}
    assert len(counted(table, 0.7)) == 2
