"""Comparing names as people expect it."""

# ruff: noqa: RUF001  (names in many scripts)
from __future__ import annotations

import pytest

from cryptfs.index.text import Pattern, fold, words


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("müller", "MÜLLER^Hans"),
        ("muller", "Müller^Hans"),
        ("Hans Müller", "Müller^Hans^Peter"),
        ("Müller^Hans", "Müller^Hans"),
        ("strasse", "Straße^Otto"),
        ("lodz", "Łódź^Anna"),
        ("M*er", "Müller^Hans"),
        ("m* h*", "Müller^Hans"),
        ("*ller", "Müller^Hans"),
        ("山田", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("yamada", "Ｙａｍａｄａ^Tarou"),
        ("김희중", "김희중"),
        ("**", "Anybody"),
    ],
)
def test_found(typed: str, name: str) -> None:
    assert Pattern(typed).matches_name(words(name))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Mull", "Müller^Hans"),
        ("Müller Fritz", "Müller^Hans"),
        ("m.ller", "Müller^Hans"),
        ("", "Müller^Hans"),
        ("^", "Müller^Hans"),
    ],
)
def test_not_found(typed: str, name: str) -> None:
    assert not Pattern(typed).matches_name(words(name))


def test_an_identifier_is_compared_from_end_to_end() -> None:
    assert Pattern("pid-1").matches_identifier(fold("PID-1"))
    assert Pattern("PID*").matches_identifier(fold("pid-17"))
    assert not Pattern("PID-1").matches_identifier(fold("PID-17"))


def test_many_asterisks_take_no_longer() -> None:
    assert not Pattern("*" * 5000 + "x").matches_identifier("a" * 200)
