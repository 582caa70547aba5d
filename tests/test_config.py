"""Configurations: what a key holds of them, sources made absolute, blocks that refuse what is not built yet."""

from dataclasses import dataclass

import pytest

from workbench.config import (
    Field,
    Judged,
    Presets,
    Sampling,
    Training,
    keyed,
    listed,
    located,
    neutral,
    source_fields,
    strict,
)


@dataclass(frozen=True)
class Arm:
    title: str
    loss: str = "a"
    colour: str = ""


@strict
class Config(Training, Sampling, Judged, Presets):
    beta: float = Field(default=0.1, gt=0)
    arms: list[str] = listed("one", "two")


Config.presets(
    arms={"one": Arm("One"), "two": Arm("Two", loss="b", colour="red")}, smoke={}, tiny={"beta": 0.5}, full={}
)


def test_a_key_holds_values_and_what_arms_change():
    values = keyed(Config.at("tiny"))
    assert values["beta"] == 0.5
    assert values["arms"] == {"one": {}, "two": {"loss": "b"}}  # neither title nor colour: they are for the reader
    assert not {"processes", "engine", "server", "micro_batch_tokens", "activation_checkpointing"} & set(values)


def test_a_new_field_moves_no_key_at_its_neutral_value_and_does_at_another():
    @strict
    class Grown(Config):
        new: int = neutral(0)

    assert keyed(Grown(beta=0.5)) == keyed(Config(beta=0.5))
    assert keyed(Grown(new=1))["new"] == 1


def test_a_changed_default_moves_the_key():
    @strict
    class Changed(Config):
        beta: float = 0.2

    assert keyed(Changed()) != keyed(Config())


@pytest.mark.parametrize("field", [{"processes": 8}, {"engine": "vllm"}, {"server": "http://x/v1#m"}])
def test_what_is_not_built_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} = .*is built so far"):
        Config.at("tiny", **field)


def test_sources_are_known_and_become_absolute(tmp_path, monkeypatch):
    assert source_fields(Config) == ("judge",)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    assert located("judge") == str(tmp_path / "judge")
    assert located("someone/judge-1.5") == "someone/judge-1.5"
    assert located("http://localhost:1/v1#name") == "http://localhost:1/v1#name"
    assert located("") == ""
    for missing in ("./judge-2", "rows.jsonl", "~/nothing-there"):
        with pytest.raises(FileNotFoundError, match="give one that exists"):
            located(missing)
