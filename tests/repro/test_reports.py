"""The files under ``repro/reports``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm.errors import NotFoundError
from pyllm.repro import find_scenarios, load
from pyllm.repro.collection import ENVIRONMENT

FOLDER = Path(__file__).parents[2] / "repro"
REPORTS = sorted((FOLDER / "reports").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _repository(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(FOLDER))


def test_there_are_five():
    assert [path.name[:3] for path in REPORTS] == ["000", "001", "002", "003", "004"]


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_each_says_what_was_reported_and_runs_on_both_levels(path):
    scenario = load(path)
    assert scenario.reported.flags
    assert scenario.engine is not None
    assert scenario.server is not None
    assert scenario.requires == ("cpu",)
    assert scenario.beyond
    assert all(change.because for change in scenario.server.substituted)
    flags = scenario.server_flags(Path("m.gguf"), Path("d.gguf"))
    assert not any(word.startswith(("--host", "--port")) for word in flags)


def test_files_are_found_by_name_beginning_and_folder():
    assert find_scenarios(["reports/003"]) == [REPORTS[3]]
    assert find_scenarios([load(REPORTS[1]).name, "reports"]) == [REPORTS[1], REPORTS[0], *REPORTS[2:]]
    assert find_scenarios([str(REPORTS[0])]) == [REPORTS[0]]
    assert set(REPORTS) <= set(find_scenarios())


def test_an_unknown_name(monkeypatch, tmp_path):
    with pytest.raises(NotFoundError) as caught:
        find_scenarios(["reports/003-beelama-24-dflash-slots"])
    assert "did you mean `reports/003-beellama-24-dflash-slots`?" in caught.value.hint
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match="there is no folder"):
        find_scenarios()
