"""Samplers: their settings, rows without finite logits, and a state that goes on exactly where it was taken."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyllm._ffi import Batch, Context, Model, Sampler
from pyllm._ffi.door import check, ffi, lib
from pyllm._ffi.grammar import grammar_from_json_schema
from pyllm._ffi.logprobs import logprobs
from pyllm.errors import DecodeError, InvalidArgumentError, StateError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENTRY = 4  # the batch entry with logits
FLAT: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture
def decoded(make_context: Callable[..., Context]) -> Context:
    """A context whose batch entry ``ENTRY`` has logits."""
    context = make_context(n_threads=1)
    with Batch(context) as batch:
        batch.add(0, 0, prompt_tokens(1, ENTRY + 1), "last")
        context.decode(batch)
    return context


def row_of(context: Context, entry: int = ENTRY) -> np.ndarray:
    """The row of logits itself, as the sampler reads it; what is written here is what the model computed."""
    row, width = ffi.new("const float **"), ffi.new("int32_t *")
    check(lib.pyllm_context_get_logits(context._pointer, entry, row, width))
    return np.frombuffer(ffi.buffer(ffi.cast("float *", row[0]), 4 * width[0]), np.float32)


def drawn(sampler: Sampler, context: Context, n: int) -> list[int]:
    return [sampler.verify(context, ENTRY)[0] for _ in range(n)]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_token_is_that_of_the_whole_list(decoded: Context, llama: Model, seed: int) -> None:
    """Without anything that moves logits a greedy sampler reads the row once; a bias of nothing has it sort the vocabulary."""
    rng = np.random.default_rng(seed)
    row = row_of(decoded)
    with Sampler(llama, temperature=0.0) as once, Sampler(llama, temperature=0.0, logit_bias={7: 0.0}) as listed:
        for _ in range(50):
            row[:] = rng.integers(-3, 3, row.size) if rng.random() < 0.5 else rng.standard_normal(row.size)
            row[rng.random(row.size) < rng.choice([0.0, 0.5, 0.99])] = -math.inf
            row[rng.integers(row.size)] = rng.choice([-0.0, 0.0, 3e38, -3e38])
            expected = int(np.argmax(row))
            assert drawn(once, decoded, 1) == drawn(listed, decoded, 1) == [expected]
            row[rng.integers(row.size)] = rng.choice([math.nan, math.inf])
            with pytest.raises(DecodeError):
                drawn(once, decoded, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"typical_p": 1.5}, r"typical_p 1.5 is not in \[0, 1\]"),
        ({"top_n_sigma": float("inf")}, "top_n_sigma inf"),
        ({"dry_multiplier": -1.0}, "dry_multiplier -1"),
        ({"dry_base": 0.5}, "dry_base 0.5"),
        ({"dry_allowed_length": 0}, "dry_allowed_length 0"),
        ({"dry_penalty_last_n": -1}, "dry_penalty_last_n -1"),
        ({"penalty_last_n": 1 << 40}, "penalty_last_n 1099511627776 does not fit 32 bits"),
        ({"min_keep": 513}, r"min_keep 513 is not in \[0, 512\]"),
        ({"logit_bias": {512: 1.0}}, r"logit_bias of token 512 is not in \[0, 511\]"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias of token -1"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias nan of token 3"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias inf of token 3"),
    ],
)
def test_impossible_settings(llama: Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Sampler(llama, **settings)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {300, 301, 302, 303}),
        ({"logit_bias": {300: -math.inf}}, {301, 302, 303}),
        ({"logit_bias": {299: 4.0, 300: -2.0}}, {299, 300, 301, 302, 303}),
        ({"top_k": 2}, {300, 301}),
        ({"top_p": 0.6}, {300, 301}),  # 0.4 + 0.3
        ({"min_p": 0.6}, {300, 301}),
        ({"min_p": 0.6, "min_keep": 3}, {300, 301, 302}),
        ({"typical_p": 0.2}, {301}),  # nearest to the entropy, 1.28
        ({"top_n_sigma": 0.01}, {300}),
        ({"temperature": 1e-30}, {300}),
        ({"temperature": 1e-44}, {300}),
        ({"temperature": 0.0}, {300}),
        ({"temperature": 0.0, "logit_bias": {303: 30.0}}, {303}),
        ({"temperature": 1e6, "top_k": 3}, {300, 301, 302}),
    ],
)
def test_what_a_setting_leaves(llama: Model, decoded: Context, settings: dict[str, Any], kept: set[int]) -> None:
    row = row_of(decoded)
    row[:] = -200
    row[300:304] = np.log([0.4, 0.3, 0.2, 0.1])
    row[299] = -100 if 299 not in kept else -5.0
    with Sampler(llama, seed=1, **(FLAT | settings)) as sampler:
        assert set(drawn(sampler, decoded, 300)) == kept


def test_repetition_is_broken_by_dry(llama: Model, decoded: Context) -> None:
    """After 300 301 302 … 300 301, token 302 would go on with a sequence that was there before."""
    row = row_of(decoded)
    row[:] = -200
    row[[302, 310]] = [1.0, 0.0]
    for multiplier, best in ((0.0, 302), (2.0, 310)):
        with Sampler(llama, temperature=0.0, dry_multiplier=multiplier) as sampler:
            sampler.accept([300, 301, 302, 320, 300, 301], generated=False)
            assert drawn(sampler, decoded, 1) == [best]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("grammar", ["", "root ::= [a-z]*"])
def test_rows_that_are_not_numbers(llama: Model, decoded: Context, temperature: float, grammar: str) -> None:
    row = row_of(decoded)
    good = row.copy()
    with Sampler(llama, seed=3, temperature=temperature, top_k=5, typical_p=0.9, repeat_penalty=1.2, grammar=grammar) as sampler:
        before = sampler.state()
        for value in (math.nan, -math.inf, math.inf):
            row[:] = value
            with pytest.raises(DecodeError, match=f"no finite logit at batch entry {ENTRY}"):
                sampler.verify(decoded, ENTRY)
            assert sampler.state() == before
        for value in (math.nan, math.inf):
            row[:] = good
            row[::7] = value
            with pytest.raises(DecodeError, match=f"the logit of token 0 at batch entry {ENTRY} is {value:g}"):
                sampler.verify(decoded, ENTRY)
            assert sampler.state() == before
        row[:] = -math.inf
        row[345] = -1e30
        assert sampler.verify(decoded, ENTRY) == [345]
        row[:] = 3e38
        assert all(0 <= token < 512 for token in drawn(sampler, decoded, 5))


def test_what_was_found_before_a_bad_row_stands(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context(n_threads=1)
    with Batch(context) as batch, Sampler(llama, temperature=0.0) as sampler:
        batch.add(0, 0, [1, 300, 301, 302, 303], "all")
        context.decode(batch)
        best = [int(context.logits(place).argmax()) for place in range(5)]
        row_of(context)[:] = math.nan
        assert sampler.verify(context, 2, best[2:4]) == best[2:4]
        with pytest.raises(DecodeError):
            sampler.verify(context, ENTRY)


def test_no_token_is_left(llama: Model, decoded: Context) -> None:
    with Sampler(llama, logit_bias=dict.fromkeys(range(512), -math.inf)) as sampler, pytest.raises(DecodeError, match="biases forbid all"):
        sampler.verify(decoded, ENTRY)


def generate(sampler: Sampler, context: Context, prompt: list[int], n: int) -> list[int]:
    """``n`` tokens after ``prompt``, which sequence 0 does not hold yet; the last one is not decoded."""
    made: list[int] = []
    with Batch(context) as batch:
        start = context.range(0)[1] + 1
        for _ in range(n):
            batch.clear()
            first = batch.add(0, start, made[-1:] or prompt, "last")
            context.decode(batch)
            start += len(batch)
            made += sampler.verify(context, first + len(batch) - 1)
    return made


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 5, "temperature": 1.3},
    "random seed": {"temperature": 2.0, "top_k": 0},
    "penalties": {"seed": 6, "temperature": 1.5, "repeat_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2, "penalty_last_n": 24},
    "dry": {"seed": 7, "temperature": 0.0, "dry_multiplier": 1.0, "dry_penalty_last_n": 40, "repeat_penalty": 1.1, "penalty_last_n": 8},
    "grammar": {"seed": 8, "temperature": 1.5, "repeat_penalty": 1.3, "grammar": 'root ::= ("(" [a-z]+ ")" | [0-9]{2,5} " ")+'},
}
SCRIPT = """
import json, sys
from pathlib import Path
from pyllm._ffi import Batch, Context, Model, Sampler
from tests._ffi.test_sampler import generate
path, state, settings, tokens = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
with Model(path) as model, Context(model, n_ctx=512, n_batch=512, n_threads=1) as context, Sampler(model, **settings) as sampler:
    sampler.set_state(state.read_bytes())
    print(json.dumps(generate(sampler, context, tokens, 200)))
"""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_restored_sampler_goes_on_as_the_first(llama: Model, llama_path: Path, make_context: Callable[..., Context], tmp_path: Path, name: str) -> None:
    settings = SETTINGS[name]
    prompt = prompt_tokens(3, 12)
    context = make_context(n_ctx=512, n_batch=512, n_threads=1)
    with Sampler(llama, **settings) as sampler:
        sampler.accept(prompt, generated=False)
        before = generate(sampler, context, prompt, 60)
        state = sampler.state()
        with sampler.clone() as copy:
            after = generate(sampler, context, before[-1:], 200)
            assert copy.state() == state
            context.remove(0, len(prompt) + 59)
            assert generate(copy, context, before[-1:], 200) == after
    with Sampler(llama, **(settings | {"seed": 99})) as other:
        other.accept([300, 301], generated=False)
        other.set_state(state)
        assert other.state() == state
        context.remove(0, len(prompt) + 59)
        assert generate(other, context, before[-1:], 200) == after
    (tmp_path / "state").write_bytes(state)
    arguments = [sys.executable, "-c", SCRIPT, str(llama_path), str(tmp_path / "state"), json.dumps(settings), json.dumps(prompt + before)]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(printed) == after


def test_the_rejection_stream_is_part_of_the_state(llama: Model, decoded: Context) -> None:
    settings = FLAT | {"seed": 4, "logit_bias": {token: -math.inf for token in range(512) if token not in (300, 301)}}
    with Batch(decoded) as batch:
        batch.add(0, ENTRY + 1, [300, 300], "all")
        decoded.decode(batch)
    row_of(decoded, 0)[:] = 0.0  # both tokens alike: a draft is a coin's throw
    q = (np.array([[300, 301] + [-1] * 8], np.int32), np.array([[0.9, 0.1] + [0.0] * 8], np.float32))

    def throws(sampler: Sampler) -> list[int]:
        return [sampler.verify(decoded, 0, [300], q)[0] for _ in range(60)]

    with Sampler(llama, **settings) as sampler, Sampler(llama, **settings) as other:
        first = throws(sampler)
        state = sampler.state()
        other.set_state(state)
        second = throws(sampler)
        assert throws(other) == second
        assert second != first
        sampler.reset()
        assert throws(sampler) == first


def test_states_that_are_refused(llama: Model, decoded: Context) -> None:
    settings = SETTINGS["penalties"] | {"grammar": "root ::= [a-z]+ [0-9]"}
    with Sampler(llama, **settings) as sampler:
        sampler.accept(prompt_tokens(0, 30), generated=False)
        drawn(sampler, decoded, 3)
        state = sampler.state()
        for other, message in (
            ({"temperature": 1.4}, "other sampling settings"),
            ({"logit_bias": {3: 1.0}}, "other sampling settings"),
            ({"grammar": "root ::= [a-z]+ [1-9]"}, "another grammar"),
            ({"grammar": ""}, "another grammar"),
        ):
            with Sampler(llama, **(settings | other)) as foreign, pytest.raises(StateError, match=message):
                foreign.set_state(state)
        for length in range(len(state)):
            with pytest.raises(StateError, match="truncated"):
                sampler.set_state(state[:length])
        with pytest.raises(StateError, match="followed by 1 bytes"):
            sampler.set_state(state + b"\0")
        with pytest.raises(StateError, match="not the state of a sampler"):
            sampler.set_state(b"\1" * len(state))
        with pytest.raises(StateError, match="version 2, this library reads version 1"):
            sampler.set_state(state[:4] + b"\2" + state[5:])
        assert sampler.state() == state


def test_damaged_states_leave_a_sampler_that_works(llama: Model, decoded: Context) -> None:
    with Sampler(llama, **(SETTINGS["penalties"] | {"grammar": 'root ::= ("é" | [a-z] | "(" root ")")+'})) as sampler:
        sampler.accept(prompt_tokens(0, 5), generated=False)
        drawn(sampler, decoded, 3)
        state = sampler.state()
        refused = 0
        for place in range(len(state)):
            for bit in (0, 3, 7):
                damaged = bytearray(state)
                damaged[place] ^= 1 << bit
                sampler.set_state(state)
                try:
                    sampler.set_state(bytes(damaged))
                except StateError:
                    refused += 1
                    assert sampler.state() == state
                try:
                    assert 0 <= sampler.verify(decoded, ENTRY)[0] < 512
                except DecodeError:  # the damaged place in the grammar may be one from which nothing goes on
                    continue
        assert refused > len(state)


def test_accept_is_all_or_nothing(llama: Model) -> None:
    with Sampler(llama, repeat_penalty=1.5) as sampler:
        before = sampler.state()
        with pytest.raises(InvalidArgumentError, match=r"token 512 at place 2 is not in \[0, 512\)"):
            sampler.accept([300, 301, 512], generated=False)
        assert sampler.state() == before


def test_logprobs_are_the_log_softmax(llama: Model, decoded: Context) -> None:
    row = decoded.logits(ENTRY).astype(float)
    expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
    order = np.argsort(-row, kind="stable")
    found = logprobs(decoded, ENTRY, int(order[7]), 128)
    assert found.token == pytest.approx(expected[order[7]], abs=1e-5)
    assert [token for token, _ in found.top] == order[:128].tolist()
    assert [value for _, value in found.top] == pytest.approx(expected[order[:128]].tolist(), abs=1e-4)
    assert logprobs(decoded, ENTRY, 3).top == ()
    assert math.isnan(logprobs(decoded, ENTRY).token)


def test_logprobs_of_extreme_rows(llama: Model, decoded: Context) -> None:
    row = row_of(decoded)
    row[:] = -math.inf
    row[[9, 5]] = 3e38
    found = logprobs(decoded, ENTRY, 8, 3)
    assert found.token == -math.inf
    assert found.top[:2] == ((5, pytest.approx(math.log(0.5))), (9, pytest.approx(math.log(0.5))))
    assert found.top[2] == (0, -math.inf)
    for value, message in ((-math.inf, "no finite logit"), (math.nan, "the logit of token 0 .* is nan"), (math.inf, "is inf")):
        row[:] = value
        with pytest.raises(DecodeError, match=message):
            logprobs(decoded, ENTRY, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "batch entry 0 was decoded without logits"),
        ((ENTRY, 512, 1), r"token 512 is not in \[0, 512\)"),
        ((ENTRY, -2, 1), "token -2"),
        ((ENTRY, 0, 129), r"n_top 129 is not in \[0, 128\]"),
        ((ENTRY, 0, -1), "n_top -1"),
    ],
)
def test_impossible_logprobs(decoded: Context, arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        logprobs(decoded, *arguments)


def test_a_schema_in_a_sampler(llama: Model, decoded: Context) -> None:
    with Sampler(llama, grammar=grammar_from_json_schema({"enum": ["yes", "no"]})) as sampler:
        texts = []
        for _ in range(20):
            sampler.reset()
            text = b"".join(llama.piece(token) for token in drawn(sampler, decoded, 5) if token != llama.vocab.eos).decode()
            texts.append(text)
        assert all('"yes"'.startswith(text) or '"no"'.startswith(text) for text in texts)
