"""Command lines: reported, substituted, without their drafter."""

import pytest

from pyllm.repro import flags


def test_reported_lines_are_joined_and_split():
    assert flags.split("-m a \\\n  --x 'b c' \\\n -y") == ["-m", "a", "--x", "b c", "-y"]


def test_substitutions_replace_once_and_append():
    changes = [("-m a", "-m {model}"), ("--gone 1", ""), ("", "--threads 1")]
    assert flags.substitute(["-m", "a", "--gone", "1", "-m", "a"], changes) == [
        "-m",
        "{model}",
        "-m",
        "a",
        "--threads",
        "1",
    ]
    with pytest.raises(ValueError, match="-x"):
        flags.substitute(["-m", "a"], [("-x", "")])


def test_only_known_names_are_filled_in():
    assert flags.fill(["-m", "{model}", '{"a": 1}'], {"model": "f"}) == ["-m", "f", '{"a": 1}']


def test_a_plain_server_has_no_drafter_flags():
    words = flags.split("-m a -md b --spec-type draft-mtp --spec-draft-n-max 2 -ngl 9 -ngld 9 --spec-draft-cpu-moe -ctkd f16 -c 5 --spec-default -np 2")
    assert flags.without_drafter(words) == flags.split("-m a -ngl 9 -c 5 -np 2")
