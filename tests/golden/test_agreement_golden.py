"""Golden numbers of the agreement of two label vectors: every case, every field, raw and merged."""

import numpy as np
import pytest

from workbench import metrics

MERGED = ["vote_left", "vote_right", "uncertain"]


def test_agreement_cases(golden):
    data = golden("agreement_metrics.json")
    assert set(data) == {"about", "cases"}
    seen = 0
    for case in data["cases"]:
        assert set(case) == {"name", "human", "judge", "labels", "expected"}
        assert set(case["expected"]) <= {"raw", "merged3"}
        for kind, expected in case["expected"].items():
            labels, merge = (case["labels"], None) if kind == "raw" else (MERGED, metrics.MERGED_VOTES)
            ours = metrics.agreement(case["human"], case["judge"], labels, merge=merge)._asdict()
            ours["confusion_rows_human"] = ours.pop("confusion")
            for name, value in expected.items():  # a field that is not ours is a KeyError
                np.testing.assert_allclose(
                    ours[name], value, rtol=1e-6, atol=1e-8, err_msg=f"{case['name']} {kind} {name}"
                )
                seen += 1
    assert seen >= 50


@pytest.mark.parametrize(
    ("human", "judge", "message"),
    [
        ([], [], "at least one; got 0 and 0"),
        (["a"], ["a", "b"], "as many labels, at least one; got 1 and 2"),
        (["a", "b"], ["a", "c"], "judge row 1: 'c' is none of the labels a, b"),
    ],
)
def test_bad_labels_are_named(human, judge, message):
    with pytest.raises(ValueError, match=message):
        metrics.agreement(human, judge, ["a", "b"])


def test_columns_and_rows_of_the_confusion_are_not_mixed_up():
    found = metrics.agreement(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    assert found.confusion.tolist() == [[1, 1], [0, 1]]
    assert found.accuracy == pytest.approx(2 / 3)
