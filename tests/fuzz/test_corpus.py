"""What fuzzing (tools/fuzz) found to reach something new, and what once crashed, goes through the parsers."""

from __future__ import annotations

import pytest

from tests.fuzz.corpus import inputs
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    found = inputs(target)
    assert found, "no corpus"
    for data in found:
        TARGETS[target](data)


def test_a_target_notices_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a parser lets through that its callers do not expect is a failure."""
    monkeypatch.setattr("cryptfs.vault.journal._parse", lambda body: body[70_000])
    TARGETS["journal_record"](b"")  # IndexError is expected there
    monkeypatch.setattr("cryptfs.vault.journal._parse", lambda body: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        TARGETS["journal_record"](b"")
