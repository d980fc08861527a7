"""The native evaluator, against the table as Python reads it."""

from __future__ import annotations

import random
import re

import pytest

from pyllm import LLM, models
from pyllm._ffi import (
    benchmark_routes,
    block_route,
    decide_route,
    default_route_table,
    failing_conditions,
    force_route_on,
    route_counts,
    set_route_table,
)
from pyllm.errors import InvalidArgumentError, UnsupportedError
from pyllm.routes.axes import AXES, FLOAT_TYPES, INDEX, KV_TYPES
from pyllm.routes.check import check
from pyllm.routes.classes import dimensions
from pyllm.routes.condition import OPERATORS, Condition
from pyllm.routes.decision import TABLE, decide, first_match, force
from pyllm.routes.devices import DEVICES
from pyllm.routes.executors import ACCEPTS
from pyllm.routes.key import Key, Node
from pyllm.routes.row import Row
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table, dump
from tests.conftest import prompt_tokens

PRODUCT = dimensions((*ROWS, *ACCEPTS))


def random_codes(source):
    """A key from the product of classes, its numbers moved inside their classes where that is easy."""
    codes = [0] * len(AXES)
    for dimension in PRODUCT:
        for name, code in zip(dimension.axes, source.choice(dimension.classes), strict=True):
            codes[INDEX[name]] = code
    return codes


@pytest.fixture
def built_in():
    yield
    set_route_table(None)
    block_route(0, -1)


def test_the_built_in_table_is_the_one_of_python():
    assert default_route_table() == dump(Table(ROWS, ACCEPTS))


@pytest.mark.parametrize("seed", range(4))
def test_both_evaluators_agree(seed):
    source = random.Random(seed)
    for _ in range(500):
        codes = random_codes(source)
        number = first_match(ROWS, codes)
        assert decide_route(codes) == (number, ROWS[number].route, ROWS[number].ncols1, ROWS[number].ncols2)


HEADS = [AXES[INDEX["head"]].encode(dims) for dims in ("40/40", "64/64", "128/128", "192/128", "256/256", "512/512", "576/512")]
NUMBERS = {"n_q": range(20), "n_kv": (1, 63, 64, 65, 4095, 4096, 70000), "gqa": range(1, 9), "sparsity": range(5), "streams": (1, 2, 64, 128)}


def random_condition(source):
    """Any operator, with lists of one value and of many, repeated values, and values too large for a set of bits."""
    name = source.choice([*NUMBERS, "kv", "head"])
    operator = source.choice({"kv": OPERATORS[:2], "head": OPERATORS[:4]}.get(name, OPERATORS))
    values = {"kv": [k << 8 | v for k in range(9) for v in range(9)], "head": HEADS}.get(name) or list(NUMBERS[name])
    if operator.endswith("multiple_of"):
        return Condition(name, operator, (source.randint(1, 5),))
    return Condition(name, operator, tuple(source.choices(values, k=source.choice((1, 2, 40)))) if "in" in operator.split("_") else (source.choice(values),))


def test_both_evaluators_agree_on_any_table(built_in):
    source = random.Random(11)
    taken = 0
    for _ in range(60):
        rows = [
            Row(source.choice(("vec", "tile", "mma")), number, 0, "", tuple(random_condition(source) for _ in range(source.randint(1, 4))))
            for number in range(source.choice((3, 80)))
        ]
        # A table with a row that can never decide is refused: leave such rows out.
        while True:
            try:
                set_route_table(dump(Table((*rows, Row("reference", 0, 0, "")))))
                break
            except InvalidArgumentError as error:
                rows.pop(int(re.search(r"row (\d+) \(", str(error))[1]))
        taken += len(rows)
        for _ in range(200):
            codes = random_codes(source)
            for name, values in (NUMBERS | {"head": HEADS}).items():
                codes[INDEX[name]] = source.choice(values)
            number = first_match((*rows, Row("reference", 0, 0, "")), codes)
            assert decide_route(codes)[0] == number
    assert taken > 1000


def test_failing_conditions_agree():
    source = random.Random(7)
    for _ in range(5):
        codes = random_codes(source)
        expected = []
        for row in ROWS:
            failing = row.first_failing(codes, INDEX)
            expected.append(-1 if failing is None else row.conditions.index(failing))
        assert failing_conditions(codes) == expected


def test_a_decision_is_fast():
    node = [
        Node(d, d, 8 * ratio, 8, n_q, 4096, type_k=kind, type_v=kind)
        for d in (64, 128, 256, 512)
        for ratio in (1, 2, 4, 6)
        for n_q in (1, 4)
        for kind in ("f16", "q8_0")
    ]
    keys = [Key(DEVICES["sm_90"], one).codes for one in node]
    best = [min(numbers) for numbers in zip(*(benchmark_routes(keys) for _ in range(20)), strict=True)]
    assert best[0] <= 50, "nanoseconds for a key seen before"
    assert best[1] <= 200, "nanoseconds for a new key"


def test_forcing_runs_or_says_why():
    key = Key(DEVICES["sm_90"], Node(512, 512, 8, 4, 4, 4096))
    assert force(key, "reference").route == "reference"
    assert force(key, "tile").route == "tile"
    with pytest.raises(UnsupportedError, match="route `vec` cannot run this node: head dims K/V: 512/512, needs"):
        force(key, "vec")


@pytest.mark.parametrize("seed", range(2))
def test_a_forced_route_is_one_that_its_executor_accepts(seed):
    source = random.Random(seed)
    for _ in range(200):
        codes = random_codes(source)
        for route in ("vec", "tile", "mma", "sparse"):
            able = any(accept.route == route and accept.first_failing(codes, INDEX) is None for accept in ACCEPTS)
            if able:
                assert force_route_on(codes, route)[1] == route
            else:
                with pytest.raises(UnsupportedError):
                    force_route_on(codes, route)


def test_a_decision_gives_its_reasons():
    decision = decide(Key(DEVICES["sm_87"], Node(512, 512, 4, 2, 1, 256, type_k="q4_0")))
    assert decision.title == "mma 4x2"
    assert decision.reason == "two query heads share each K/V tile"
    assert {one.route: one.reason for one in decision.rejected} == {
        "vec": "head dims K/V: 512/512, needs 64/64 or 128/128 or 256/256",
        "sparse": "KV rows per row that a query may see: 0, needs at least 1",
        "verify": "the device's architecture: 870, needs 900",
    }


def test_another_table_is_put_in_force_and_out(built_in):
    key = Key(DEVICES["sm_90"], Node(128, 128, 8, 8, 1, 4096)).codes
    assert decide_route(key)[1] == "vec"
    set_route_table("pyllm-routes 1\nrow tile 0 0 because a test\n  when n_q max 4\nrow reference 0 0\n")
    assert decide_route(key) == (0, "tile", 0, 0)
    set_route_table(None)
    assert decide_route(key)[1] == "vec"


def test_a_blocked_row_is_passed_over(built_in):
    key = Key(DEVICES["sm_90"], Node(128, 128, 8, 8, 1, 4096)).codes
    first = decide_route(key)
    block_route(900, first[0])
    assert decide_route(key)[0] > first[0]
    assert decide_route(Key(DEVICES["sm_89"], Node(128, 128, 8, 8, 1, 4096)).codes) == first
    block_route(0, -1)
    assert decide_route(key) == first
    with pytest.raises(InvalidArgumentError, match="is not in"):
        block_route(900, len(ROWS) - 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pyllm-routes 2\nrow reference 0 0\n", "line 1: `pyllm-routes 2` is not `pyllm-routes 1`"),
        ("pyllm-routes 1\nrow mna 0 0\nrow reference 0 0\n", "did you mean `mma`?"),
        ("pyllm-routes 1\nrow mma 8 2\n  when hat in 64/64\nrow reference 0 0\n", "axis `hat` is not known"),
        ("pyllm-routes 1\nrow mma 8 2\n  when head inn 64/64\nrow reference 0 0\n", "did you mean `in`?"),
        ("pyllm-routes 1\nrow mma 8 2\n  when head in 64\nrow reference 0 0\n", "`64` is no value of axis `head`"),
        ("pyllm-routes 1\nrow mma 8 2\n  when kv in q9_0/f16\nrow reference 0 0\n", "`q9_0/f16` is no value of axis `kv`"),
        ("pyllm-routes 1\nrow mma 8 2\n  when n_kv multiple_of 0\nrow reference 0 0\n", "a divisor is at least 1"),
        ("pyllm-routes 1\nrow mma 8 2\n", "the last row does not take every node"),
        ("pyllm-routes 1\n", "the table has no rows"),
        (
            "pyllm-routes 1\nrow mma 8 2\n  when n_q max 8\nrow tile 0 0\n  when n_q max 4\n  when gqa min 2\nrow reference 0 0\n",
            "row 1 (tile) can never decide: row 0 (mma)",
        ),
        ("pyllm-routes 1\nrow reference 0 0\nrow reference 0 0\n", "can never decide"),
        ("pyllm-routes 1\nrows mma\n", "`rows` is not expected here"),
    ],
)
def test_a_table_that_is_refused_changes_nothing(text, says):
    key = Key(DEVICES["sm_90"], Node(128, 128, 8, 8, 1, 4096)).codes
    before = decide_route(key)
    with pytest.raises(InvalidArgumentError) as caught:
        set_route_table(text)
    assert says in f"{caught.value.message} {caught.value.hint}"
    assert decide_route(key) == before


def test_kv_types_have_the_same_codes():
    routes = {(k, v): decide_route(Key(DEVICES["sm_90"], Node(128, 128, 8, 8, 1, 4096, type_k=k, type_v=v)).codes)[1] for k in KV_TYPES for v in KV_TYPES}
    # On sm_90 our kernel reads what is quantised; it does not read f32.
    expected = {pair: "vec" if "f32" in pair or set(pair) <= set(FLOAT_TYPES) else "verify" for pair in routes}
    assert routes == expected


def test_draft_phase_is_counted():
    before = {(one.device, one.phase): one.nodes for one in route_counts()}
    with LLM(models.make("gemma4"), draft=models.make("gemma4-assistant"), spec="mtp", ctx=512) as llm:
        llm.generate(prompt_tokens(12, 1), max_tokens=8)
        attention = llm.stats()["attention"]
    after = {(one["device"], one["phase"]): one["nodes"] for one in attention}
    drafted = after["CPU", "draft"] - before.get(("CPU", "draft"), 0)
    assert drafted > 0
    assert after["CPU", "verify"] - before.get(("CPU", "verify"), 0) > 0
    assert {one["route"] for one in attention} == {"cpu"}


def test_the_table_of_python_is_the_proven_one():
    assert check(TABLE).ok


def test_a_key_that_was_seen_is_not_stale_after_a_change(built_in):
    key = Key(DEVICES["sm_90"], Node(128, 128, 8, 8, 1, 4096)).codes
    for _ in range(3):
        decide_route(key)
        set_route_table("pyllm-routes 1\nrow reference 0 0\n")
        assert decide_route(key)[1] == "reference"
        set_route_table(None)
        assert decide_route(key)[1] == "vec"


def test_what_python_calls_shadowed_is_refused(built_in):
    """Both sides have the same rule: a table whose second row is shadowed is refused, any other is taken."""
    source = random.Random(5)
    refused = 0
    for _ in range(400):
        first = tuple(random_condition(source) for _ in range(source.randint(1, 2)))
        second = tuple(random_condition(source) for _ in range(source.randint(1, 3))) + source.choice(((), first))
        rows = Row("mma", 1, 0, "", first), Row("tile", 0, 0, "", second)
        text = dump(Table((*rows, Row("reference", 0, 0, ""))))
        if rows[0].shadows(rows[1]):
            refused += 1
            with pytest.raises(InvalidArgumentError, match="can never decide"):
                set_route_table(text)
        else:
            set_route_table(text)
    assert 50 < refused < 350
