"""Grammars and JSON schemas: what is refused, where, and that nothing hostile hangs or ends the process."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyllm._ffi import Batch, Context, Model, Sampler
from pyllm._ffi.door import check, ffi, lib
from pyllm._ffi.grammar import check_grammar, grammar_from_json_schema
from pyllm.errors import DecodeError, InvalidArgumentError, LimitError, PyllmError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = {character: 272 + place for place, character in enumerate(" " + "".join(chr(code) for code in range(33, 127)))}


@pytest.fixture(scope="module")
def decoded(llama: Model) -> Iterator[Context]:
    """A context whose batch entry 4 has logits, all of them equal."""
    with Context(llama, n_ctx=64, n_threads=1) as context, Batch(context) as batch:
        batch.add(0, 0, prompt_tokens(1, 5), "last")
        context.decode(batch)
        row, width = ffi.new("const float **"), ffi.new("int32_t *")
        check(lib.pyllm_context_get_logits(context._pointer, 4, row, width))
        np.frombuffer(ffi.buffer(ffi.cast("float *", row[0]), 4 * width[0]), np.float32)[:] = 0
        yield context


def write(model: Model, context: Context, grammar: str, seed: int, limit: int = 1000) -> str:
    """A text that the grammar allows, drawn from one row of logits; the end of text has the best chance where it may come."""
    bias = dict.fromkeys(range(16, 272), -math.inf) | {model.vocab.eos: 30.0}  # single bytes would not be text
    with Sampler(model, seed=seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, grammar=grammar, logit_bias=bias) as sampler:
        text = b""
        for _ in range(limit):
            token = sampler.verify(context, 4)[0]
            if token == model.vocab.eos:
                return text.decode()
            text += model.piece(token)
        raise AssertionError(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the grammar is empty"),
        ("# nothing", "the grammar is empty"),
        ('start ::= "a"', "no rule `root`"),
        ('root ::= foo "x"', "rule `foo` is used, but not defined"),
        ('root ::= "a"\nother ::= ("b" | "c"\n\n  last ::= "d"', r"line 4, column 8: expecting '\)', found `::= \"d\"`"),
        ('root = "a"', "line 1, column 6: expecting ::="),
        ('root ::= "a" "\\q"', "line 1, column 15: unknown escape"),
        ('root ::= "a', "unexpected end of input"),
        ('root ::= "a"{3,2}', "line 1, column 13: at least 3 and at most 2 repetitions"),
        ('root ::= "a" # ten\n  {1000000}', "line 2, column 3: more than 2000 repetitions"),
        ('root ::= "a"{1000000}', "line 1, column 13: more than 2000 repetitions"),
        ('root ::= "a"{0,99999999999999999999999}', "more than 2000 repetitions"),
        ("root ::= <[99999999999999999999]>", "a number of this rule is too large"),
        ("root ::= <think>", "without a model, a token cannot be named by its text"),
        ('root ::= root "a" | "b"', "left-recursive: rule `root` can begin with itself"),
        ('root ::= a "x"\na ::= b "y" | "q"\nb ::= a "z"', "left-recursive: rule `a`"),
        ('root ::= n root "x" | "y"\nn ::= e\ne ::= "" | "w"', "left-recursive: rule `root`"),
        ("root ::= " + "(" * 100_000, "line 1, column 522: more than 512 parentheses in each other"),
        ('root ::= "' + "a" * 3000 + '"  {2000}', "more than 1048576 elements"),
        ("root ::= " + '"aaaaaaaaaa"{2000} ' * 2000, "more than 1048576 elements"),
        ("#" * (1 << 21), "2097152 bytes, the limit is 1048576"),
        ('root ::= "\0"', "zero character at byte 10"),
        ('root ::= "\ud800"', "lone surrogate at character 10"),
    ],
)
def test_grammars_that_are_refused(llama: Model, text: str, message: str) -> None:
    before = time.process_time()
    with pytest.raises(InvalidArgumentError, match=message):
        check_grammar(text)
    if text and not message.startswith("without"):
        with pytest.raises(InvalidArgumentError, match=message):
            Sampler(llama, grammar=text)
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" | \n\n  "b" # either',
        'root ::= ("a"?)* "b"',
        'root ::= "a" root',
        'root ::= "x"{2000}',
        "root ::= " + "(" * 512 + '"a"' + ")" * 512,
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(2000)) + 'r2000 ::= "a"',
        'root ::= [^a-z"\\]] . <[3]> !<[4]> "é" [α-ω]',
    ],
)
def test_grammars_that_are_taken(text: str) -> None:
    check_grammar(text)


def test_a_token_named_by_its_text(llama: Model) -> None:
    check_grammar("root ::= <user>", llama)
    with pytest.raises(InvalidArgumentError, match="invalid token '<no such token>'"):
        check_grammar("root ::= <no such token>", llama)


def doubling(n: int, start: str = "") -> str:
    """``n`` rules each of which begins with the next in two ways: 2^n stacks."""
    return f"root ::= {start} r0\n" + "".join(f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"\n' for i in range(n)) + f'r{n} ::= "a"'


def test_ambiguity_is_bounded(llama: Model, decoded: Context) -> None:
    """Rules that can be read in exponentially many ways: refused at once, or at the token that is too much; then nothing has changed."""
    before = time.process_time()
    with pytest.raises(InvalidArgumentError, match="begin with each other in more than 20000000 ways"):
        check_grammar(doubling(40))
    with pytest.raises(LimitError, match="too ambiguous"):
        check_grammar(doubling(18))
    with Sampler(llama, temperature=1.0, grammar=doubling(18, '"q"')) as sampler, pytest.raises(LimitError, match="too ambiguous"):
        sampler.verify(decoded, 4)
    with Sampler(llama, temperature=0.0, grammar='root ::= s\ns ::= "x" s "y" | "x" s "z" | "x"', logit_bias={PIECE["x"]: 1e6}) as sampler:
        for _ in range(40):
            place = sampler.state()
            try:
                sampler.verify(decoded, 4)
            except LimitError:
                break
        else:
            pytest.fail("no limit was reached")
        assert sampler.state() == place
        sampler.accept([PIECE["z"]], generated=True)
    assert time.process_time() - before < 30


def test_a_dead_end(llama: Model, decoded: Context) -> None:
    with Sampler(llama, grammar='root ::= "a"', ignore_eos=True) as sampler:
        assert llama.piece(sampler.verify(decoded, 4)[0]) == b"a"
        state = sampler.state()
        with pytest.raises(DecodeError, match="no token is left at batch entry 4: the grammar allows none"):
            sampler.verify(decoded, 4)
        assert sampler.state() == state
        sampler.reset()
        assert llama.piece(sampler.verify(decoded, 4)[0]) == b"a"


def test_accepting_what_the_grammar_forbids(llama: Model) -> None:
    with Sampler(llama, grammar='root ::= "ab" "c"*') as sampler:
        before = sampler.state()
        for tokens in ([PIECE["b"]], [PIECE["a"], PIECE["c"]], [llama.vocab.eos], [PIECE["a"], llama.vocab.eos], [0]):
            with pytest.raises(InvalidArgumentError, match="the grammar does not allow token"):
                sampler.accept(tokens, generated=True)
            assert sampler.state() == before
        sampler.accept([PIECE["b"]], generated=False)
        sampler.accept([PIECE["a"], PIECE["b"], PIECE["c"], llama.vocab.eos], generated=True)


def test_a_named_token_after_its_own_beginning(llama: Model, decoded: Context) -> None:
    """Upstream's mask lets `<user>` through where `<` and then `<user>` are to come; its ``accept`` then has nothing left, and would stop there."""
    user = llama.tokenize("<user>", add_special=False, parse_special=True)
    assert llama.piece(user[0], special=True) == b"<user>"
    with Sampler(llama, temperature=0.0, grammar=f'root ::= "<" <[{user[0]}]> "c"', logit_bias={user[0]: 1e6}) as sampler:
        before = sampler.state()
        for attempt in (lambda: sampler.accept(user, generated=True), lambda: sampler.verify(decoded, 4)):
            with pytest.raises(InvalidArgumentError, match=f"the grammar does not allow token {user[0]} here"):
                attempt()
            assert sampler.state() == before
        sampler.accept([PIECE["<"], *user], generated=True)
        assert llama.piece(sampler.verify(decoded, 4)[0]) == b"c"


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 7, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["x", "y", 3, None]}, "minItems": 1, "maxItems": 3},
        "pet": {"$ref": "#/$defs/pet"},
    },
    "required": ["name", "age"],
    "$defs": {"pet": {"anyOf": [{"const": "none"}, {"type": "object", "properties": {"kind": {"type": "string", "maxLength": 4}}, "required": ["kind"]}]}},
}


def test_texts_meet_the_schema(llama: Model, decoded: Context) -> None:
    grammar = grammar_from_json_schema(PERSON)
    assert grammar_from_json_schema(json.dumps(PERSON)) == grammar
    optional = set()
    for seed in range(20):
        value = json.loads(write(llama, decoded, grammar, seed))
        assert {"name", "age"} <= set(value) <= {"name", "age", "tags", "pet"}
        assert value["name"].isalpha()
        assert 2 <= len(value["name"]) <= 9
        assert isinstance(value["age"], int)
        assert 7 <= value["age"] <= 130
        assert 1 <= len(value.get("tags", ["x"])) <= 3
        assert all(tag in ("x", "y", 3, None) for tag in value.get("tags", []))
        pet = value.get("pet", "none")
        assert pet == "none" or (set(pet) == {"kind"} and len(pet["kind"]) <= 4)
        optional |= set(value)
    assert optional == {"name", "age", "tags", "pet"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": ["array", "object"], "items": schema, "properties": {"a": {}}}
    return schema


def chain(n: int) -> dict[str, Any]:
    rules: dict[str, Any] = {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": rules | {f"a{n}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{"a":', "is not JSON: .*line 1, column 6"),
        ("[1]", "at #: a schema has to be an object"),
        ('{"items": ' * 100_000, "bytes, the limit is 262144"),
        ("[" * 100_000, "more than 64 brackets"),
        ('{"properties": {"a": {"type": "text"}}}', 'at #/properties/a: type "text" is not known'),
        ({"type": ["string", "string"]}, "named twice"),
        ({"type": []}, "nothing can meet it"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing can meet it: no integer is at least 5 and at most 3"),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, "nothing can meet it"),
        ({"type": "integer", "minimum": 10**17}, "is not a number between"),
        ({"type": "integer", "minimum": "1"}, "is not a number between"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "nothing can meet it: minLength 5 is over maxLength 3"),
        ({"type": "string", "maxLength": 1_000_000}, r"maxLength 1000000 is not an integer in \[0, 2000\]"),
        ({"type": "array", "items": {}, "minItems": 4, "maxItems": 1}, "nothing can meet it: minItems 4"),
        ({"type": "array", "prefixItems": [{}, {}], "minItems": 3}, "describes 2 items"),
        ({"type": "string", "enum": ["a", 1]}, "nothing can be value 1 of the enum"),
        ({"type": "null", "const": 0}, "nothing can meet it"),
        ({"enum": []}, "enum has to be a list that is not empty"),
        ({"anyOf": []}, "at #/anyOf: a list of schemas"),
        ({"allOf": [{"enum": [1, 2]}, {"enum": [3]}]}, "the enums have no value in common"),
        ({"allOf": [{"type": "string"}]}, "allOf combines only"),
        ({"anyOf": [{"type": "string"}], "properties": {}}, "`properties` beside `anyOf` cannot be enforced"),
        ({"type": "object", "required": ["x"]}, 'required names "x", which properties does not describe'),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to nothing but itself"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to nothing but itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}, "required": ["b"]}}}, "contain itself without end"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "https://example.org/s"}, "only `#/"),
        ({"not": {}}, "a grammar cannot enforce `not`"),
        ({"type": "array", "uniqueItems": True}, "a grammar cannot enforce `uniqueItems`"),
        ({"type": "number", "minimum": 1}, "a grammar cannot enforce `minimum` of numbers"),
        ({"type": "string", "pattern": "abc"}, r"does not begin with \^"),
        ({"type": "string", "pattern": r"^\d+$"}, r"`\\d` is not supported"),
        ({"type": "string", "pattern": "^.*$"}, "`.` also matches the quote"),
        ({"type": "string", "pattern": "^[ -~]$"}, "it matches quotes"),
        ({"type": "string", "pattern": "^(a$"}, "unbalanced parentheses"),
        ({"type": "string", "pattern": "^a{0,1000000}$"}, "more than 2000 repetitions"),
        (nested(30), "schemas, 91 levels deep, are more than 20000"),
        (chain(1100), "are more than 20000 or deeper than 500"),
        ({"properties": {f"p{i}": {} for i in range(3000)}}, "3000 properties may be absent"),
        ({"properties": {"!" * 100_000: {}}}, "name has 100000 bytes, the limit is 128"),
        ({"properties": {"]": {}}, "additionalProperties": {}}, "makes a grammar that cannot be used"),
        ({"const": {1, 2}}, "is not JSON"),
        ({"const": float("nan")}, "is not JSON"),
    ],
)
def test_schemas_that_are_refused(schema: dict[str, Any] | str, message: str) -> None:
    before = time.process_time()
    with pytest.raises(InvalidArgumentError, match=message):
        grammar_from_json_schema(schema)
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["integer", "null"], "minimum": -(10**14), "title": "n", "default": None},
        {"type": "array", "items": {"type": "array", "prefixItems": [{"type": "boolean"}, {}]}, "uniqueItems": False},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}}},
        {"type": "string", "format": "date-time"},
        {"properties": {f"p{i}": {"type": "null"} for i in range(200)}},
        chain(200),
        {"const": "x" * 100_000},
    ],
)
def test_schemas_that_are_taken(schema: dict[str, Any]) -> None:
    check_grammar(grammar_from_json_schema(schema))


def test_truncated_schemas() -> None:
    """Every beginning of a schema is refused or converted, and the error is one of ours."""
    text = json.dumps(PERSON)
    for length in range(0, len(text), 3):
        with pytest.raises(PyllmError, match="not JSON"):
            grammar_from_json_schema(text[:length])
