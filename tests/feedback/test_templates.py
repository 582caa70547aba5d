"""Templates: values are data, slots are checked, the version follows the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.feedback.templates import Template

ASK = Template("ask", 'Incident: {incident}\nCause: {cause}\nReply as {"cause": 0} or {}; incident again: {incident}')


@given(st.text(), st.text())
def test_values_are_inserted_as_they_are(incident, cause):
    expected = f'Incident: {incident}\nCause: {cause}\nReply as {{"cause": 0}} or {{}}; incident again: {incident}'
    assert ASK.fill(incident=incident, cause=cause) == expected


def test_a_value_that_looks_like_a_slot_or_a_group_stays_text():
    assert Template("t", "{a}|{b}").fill(a="{b}\\1 {0} %s", b='"x"\n') == '{b}\\1 {0} %s|"x"\n'


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"incident": "x"}, "template 'ask': no value for cause; its slots are incident, cause"),
        ({"incident": "x", "cause": "y", "extra": "z"}, "template 'ask': no slot named extra; its slots are"),
    ],
)
def test_missing_and_unknown_slots_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ASK.fill(**values)


def test_the_version_changes_with_the_text_only():
    assert ASK.version == Template("ask", ASK.text).version != Template("ask", ASK.text + " ").version
    assert ASK.version.startswith("ask-")
    assert ASK.slots == ("incident", "cause")
