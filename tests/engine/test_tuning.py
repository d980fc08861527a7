"""A table of routes that an engine asks for, and that goes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyllm import LLM
from pyllm._version import __version__
from pyllm.errors import NotFoundError
from pyllm.routes import tuning
from pyllm.routes.decision import decide
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Key, Node


def test_a_tuning_holds_as_long_as_an_engine_asks_for_it(llama_path, tmp_path, monkeypatch):
    here = replace(DEVICES["sm_90"], products="NVIDIA H200")
    key = Key(here, Node(128, 128, 32, 8, 1, 1024, type_k="q8_0", type_v="q8_0"))
    path = tmp_path / "tuning.json"
    measured = [tuning.Measured("128/128", "q8_0/q8_0", 4, 1, 1, 1024, 10.0, 50.0, "vec")]
    tuning.write(tuning.made_here(here, "580.1", measured), path)
    with LLM(llama_path, ctx=256, tuning=path) as llm:
        assert "is not used: there is no GPU here" in llm.stats()["tuning"]
        assert decide(key).route == "vec"
    monkeypatch.setattr("pyllm.routes.present.present_devices", lambda: [here])
    monkeypatch.setattr(tuning, "driver_version", lambda _: "580.1")
    with LLM(llama_path, ctx=256, tuning=path) as llm:
        assert llm.stats()["tuning"] == f"`{path}`, measured on NVIDIA H200, driver 580.1, pyllm {__version__}"
        assert decide(key).route == "verify"
    with LLM(llama_path, ctx=256) as llm:
        assert llm.stats()["tuning"] == ""
        assert decide(key).route == "vec"
    with pytest.raises(NotFoundError, match="cannot be read"):
        LLM(llama_path, ctx=256, tuning=tmp_path / "none")
