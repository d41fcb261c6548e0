"""The units of packaging/systemd are ones that systemd accepts, and call cryptfs as it can be called."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from .project import PROJECT, label
from .test_commands import unknown_words

UNITS = sorted((PROJECT / "packaging" / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_systemd_accepts_it(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    instance = tmp_path / unit.name.replace("@.", "@test.")
    shutil.copy(unit, instance)
    done = subprocess.run([analyze, "verify", "--man=no", instance], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if instance.name in line or unit.name in line]
    # The software that a unit orders itself before need not be installed here.
    assert [line for line in ours if "not found" not in line] == []


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_it_calls_commands_that_exist(unit: Path) -> None:
    calls = re.findall(r"^Exec\w+=\S*/env cryptfs (.*)$", unit.read_text().replace("\\\n", " "), re.MULTILINE)
    for call in calls:
        words = [word for word in shlex.split(call) if word != "--" and not word.startswith(("$", "%"))]
        assert unknown_words(words) == []


def test_the_tpm_unit_falls_back_to_asking_and_waits_for_a_person() -> None:
    text = (PROJECT / "packaging/systemd/cryptfs-tpm@.service").read_text()
    (call,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(call)
    assert {"--tpm", "--or-ask", "--ask-with"} <= set(words)
    asker = words[words.index("--ask-with") + 1]
    assert shlex.split(asker)[0] == "systemd-ask-password"
    assert "TimeoutStartSec=infinity" in text
    assert "Before=orthanc.service" in text
