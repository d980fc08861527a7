"""Settings, checked before anything is loaded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.config import EngineConfig, SamplingParams, SpecConfig, check_batch, parse
from pyllm.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "types", "n_max"),
    [
        ("mtp", ("draft-mtp",), None),
        ("draft-dflash,ngram", ("draft-dflash", "ngram-map-k"), None),
        ({"method": "mtp", "num_speculative_tokens": 4}, ("draft-mtp",), 4),
        ({"types": ["ngram-mod"], "n_max": 7}, ("ngram-mod",), 7),
    ],
)
def test_spec_shapes(value: object, types: tuple[str, ...], n_max: int | None) -> None:
    spec = SpecConfig.of(value)
    assert spec is not None
    assert (spec.types, spec.n_max) == (types, n_max)


def test_unknown_names_have_a_near_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(EngineConfig, {"model": "m.gguf", "kv_type": "f16"})
    assert caught.value.render() == "error: setting `kv_type` is not known\n\nhint: did you mean `kv_types`?"
    with pytest.raises(ConfigError, match="drafter type `dflesh`") as caught:
        SpecConfig.of("dflesh")
    assert caught.value.hint.startswith("did you mean `dflash`?")


def test_drafts_and_types_go_together() -> None:
    for values, match in (
        ({"draft": "d.gguf"}, "without a drafter type"),
        ({"spec": "dflash"}, "needs a draft model"),
        ({"draft": "d.gguf", "spec": "ngram"}, "uses no draft model"),
    ):
        with pytest.raises(ConfigError, match=match):
            parse(EngineConfig, {"model": "m.gguf"} | values)


@given(batch=st.integers(1, 4096), slots=st.integers(1, 64), depth=st.integers(0, 64))
def test_a_refused_batch_names_ways_that_work(batch: int, slots: int, depth: int) -> None:
    need = slots * (1 + depth)
    if need <= batch:
        check_batch(batch=batch, slots=slots, depth=depth)
        return
    with pytest.raises(ConfigError, match=f"= {need}") as refusal:
        check_batch(batch=batch, slots=slots, depth=depth)
    check_batch(batch=need, slots=slots, depth=depth)
    if "draft depth" in refusal.value.hint:
        check_batch(batch=batch, slots=slots, depth=batch // slots - 1)
    if "slot" in refusal.value.hint:
        check_batch(batch=batch, slots=batch // (1 + depth), depth=depth)


def test_settings_are_immutable() -> None:
    params = SamplingParams(stop="x")
    assert params.stop == ("x",)
    with pytest.raises(Exception, match="frozen"):
        params.max_tokens = 3
