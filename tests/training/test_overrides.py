"""Overrides hold any text that a shell hands over: as it is, or quoted as the refusal says."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import assume, example, given, settings, strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from attention_core.training import UsageError
from attention_core.training.overrides import exact, parsed, read_overrides, shell_override, texts
from tests.training.conftest import CONF, Compose

# What a shell can hand over: no NUL, and surrogates for bytes that are no UTF-8
ANY = st.characters(exclude_characters="\0", exclude_categories=[])
PIECES = st.sampled_from(
    [*"""abÄß1=()[]{}#'"&~!;<>,:$%@*?|+-_/\\. \t\n""", "${", "${a}", "choice(", "\\${", "\udcff"]
)
TEXTS = st.lists(st.one_of(PIECES, PIECES, ANY), max_size=8).map("".join)
FEW = settings(derandomize=True, deadline=None, max_examples=300)


def hydras(override: str) -> Any:
    """What Hydra's parser and OmegaConf make of `x`, in a configuration of x and a."""
    read = OverridesParser.create().parse_override(override)
    if read.is_sweep_override():
        raise HydraException("several values")
    config = OmegaConf.create({"x": None, "a": "one"})
    OmegaConf.update(config, "x", read.value())
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return values["x"]


def attempt(read: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, read()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return False, error


@FEW
@given(text=TEXTS)
@example(text="")
@example(text="/data/Ärger (1)/a=b.csv")
@example(text="'tis the season")
@example(text="[Äpfel,Birnen]")
@example(text="Äpfel,Birnen")
@example(text="ä${a}")
@example(text="${a")
@example(text="'${a'")
@example(text="{null:1}")
@example(text="choice(ä,b")
@example(text="Berlin (1)")
def test_any_text_arrives_is_hydras_or_is_refused_with_what_arrives(text: str) -> None:
    known, meaning = attempt(lambda: hydras(f"x={text}"))
    try:
        (override,) = read_overrides([f"x={text}"])
    except UsageError as refusal:
        assert not known
        said = str(refusal)
        assert said.startswith(f"x: {text!r}")
        form = shlex.split(said.rpartition("To give it as a text: ")[2])
        # Control characters are in $'...', which shlex does not read
        assert [f"x={exact(text)}"] == form or "$'" in said
        assert hydras(f"x={exact(text)}") == text
        return
    arrived, value = attempt(lambda: hydras(override))
    if known:
        assert value == meaning
    elif arrived and not isinstance(value, list):
        interpolated = attempt(lambda: OmegaConf.create({"x": text, "a": "one"})["x"])[1]
        assert value in (text, interpolated)
    elif arrived:
        assert all(element in text for element in texts(value))
    else:  # several values, or an interpolation of what there is not
        assert not isinstance(value, GrammarParseError)
        assert parsed(override) is not None


@FEW
@given(text=TEXTS)
@example(text="\\")
@example(text="\\\\${a}\\")
@example(text='"\\"')
@example(text="${")
def test_a_quoted_text_arrives_in_an_override_a_list_and_a_job(text: str) -> None:
    assume(text != "???")  # which is to OmegaConf that there is none
    assert hydras(f"x={exact(text)}") == text
    assert hydras(f"x=[{exact(text)},1]") == [text, 1]
    read = parsed(f"x={exact(text)}")
    assert read is not None
    assert hydras(f"x={read.get_value_element_as_str()}") == text  # as a sweep tells its jobs
    if text.isprintable():
        (word,) = shlex.split(shell_override("x", text))
        assert hydras(word) == text


@pytest.mark.parametrize("key", ["ä", "+a b", "'a'", "a.b.", "", "@", "~ä", "a=b"])
def test_a_key_of_other_letters_is_refused(key: str) -> None:
    override = f"{key}=1"
    if key == "a=b":  # a value with an equals sign
        assert read_overrides([override]) == ['a="b=1"']
        return
    with pytest.raises(UsageError, match="is no key. The parts of a key are made of") as refusal:
        read_overrides([override])
    assert str(refusal.value).startswith(f"{override!r}: {key!r}")


def test_texts_reach_the_configuration(compose: Compose) -> None:
    texts = ["don't", "#1", "/data/Ärger (1)/a=b.csv", "~y", "(a", "naïve", "a;b", "<mask>", "\n"]
    texts += ["a & b!", "a\tb\nc=\\", "Berlin (1)", "", r"C:\data", "$HOME", "http://a/b?c=d"]
    given = {f"t{number}": text for number, text in enumerate(texts)}
    config = compose("experiment=toy", *(f"+about.{key}={text}" for key, text in given.items()))
    assert {key: config["about"][key] for key in given} == given


def test_several_values_say_how_a_text_with_a_comma_is_written(compose: Compose) -> None:
    with pytest.raises(UsageError, match="several values, don't, please!") as refusal:
        compose("experiment=toy", "about.title=don't, please!")
    said = str(refusal.value)
    (text,) = shlex.split(said.rpartition("a text with a comma ")[2])
    (listed,) = shlex.split(said.partition("A list is written ")[2].rpartition(", and")[0])
    assert compose("experiment=toy", text)["about"]["title"] == "don't, please!"
    assert compose("experiment=toy", listed)["about"]["title"] == ["don't", "please!"]


def test_folders_and_experiments_of_any_name(compose: Compose, tmp_path: Path) -> None:
    folder = tmp_path / "Ärger (1) ${a}, b=c\\"
    shutil.copytree(CONF, folder)
    (folder / "experiment" / "toy.yaml").rename(folder / "experiment" / "größe.yaml")
    config = compose("experiment=größe", config_dir=folder)
    assert (config["experiment"], config["trainer"]["max_epochs"]) == ("größe", 8)
    with pytest.raises(UsageError, match="experiment: there is no 'größer'. Did you mean größe"):
        compose("experiment=größer", config_dir=folder)
