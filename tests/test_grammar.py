"""Grammars for JSON: what follows one parses, and is valid under the schema it was made from."""

import json
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gemcut.engine import Sampling
from gemcut.errors import UsageError
from gemcut.llama import Sampler, require
from gemcut.llama.candidates import Candidates
from gemcut.llama.constraint import Constraint
from gemcut.runtime.language.grammar import JSON_GRAMMAR, schema_grammar


@pytest.fixture(scope="module")
def closing(model):
    """What is added to the logits, so that random answers end: tokens that close something."""
    pieces = [model.piece(token) for token in range(model.n_vocab)]
    return np.array([6.0 if p in (b'"', b"}", b"]", b" ") else 0.0 for p in pieces], np.float32)


def follows(model, grammar: str, text: str) -> bool:
    """Whether llama.cpp's grammar takes a text, to the end."""
    candidates = Candidates(require(), model.n_vocab)
    tokens = [int(token) for token in model.tokenize(text, add_special=False)]
    with Constraint(model, grammar, None) as constraint:
        for token in [*tokens, model.eos]:
            if not constraint.allows(candidates, token):
                return False
            constraint.accept(token)
    return True


def written(model, closing, grammar: str, seed: int, most: int = 300) -> str | None:
    """An answer of random tokens that the grammar allows; None if it becomes too long."""
    random, text = np.random.default_rng(seed), b""
    with Sampler(model, Sampling(2, 0, 1, 0, seed=seed, grammar=grammar)) as sampler:
        for count in range(most):
            row = random.standard_normal(model.n_vocab, np.float32) * 3 + closing * (count > 20)
            token = sampler.sample(SimpleNamespace(logits=row[None]))
            if model.is_end(token):
                return text.decode(errors="replace")  # not every UTF-8 of byte tokens is Unicode
            text += model.piece(token, special=True)
    return None


# --- a family of schemas, and values that are valid under them ---

names = st.sampled_from(["a", "b", "name", "a b", 'q"', "é", "ab", ""])
texts_of = st.characters(max_codepoint=0x3FF)
texts = st.text(texts_of, max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), texts)


@st.composite
def limited(draw, low, high, least, most):
    """Two limits in order, either of which may be missing."""
    first, second = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    given = {least: first, most: second}
    return {key: given[key] for key in given if draw(st.booleans())}


def kind(name, limits=None):
    return (st.just({}) if limits is None else limits).map(lambda found: {"type": name, **found})


PATTERNS = {  # each with texts that it is found in
    "^a[b-d]*$": ["a", "abcd"],
    "x|yz": ["x", "a yz b", "zx"],
    "^\\d{2,3}[^q]$": ["12w", '123"', "99\\"],
    '"\\\\.': ['a"\\b'],
    "^(ab|c){2}$": ["abc", "cc"],
}
FORMATS = {
    "date": "2026-12-31",
    "time": "23:59:59.25Z",
    "date-time": "2024-02-29T00:00:00+01:30",
    "uuid": "0123abcd-0000-4000-8000-0123456789ab",
}
leaves = st.one_of(
    kind("string", limited(0, 5, "minLength", "maxLength")),
    st.sampled_from(sorted(PATTERNS)).map(lambda found: {"type": "string", "pattern": found}),
    st.sampled_from(sorted(FORMATS)).map(lambda found: {"type": "string", "format": found}),
    kind("integer", limited(-150, 150, "minimum", "maximum")),
    kind("integer", limited(-1200, 99999, "minimum", "maximum")),
    kind("number", limited(-20, 20, "minimum", "maximum")),
    kind("boolean"),
    kind("null"),
    st.lists(scalars, min_size=1, max_size=5).map(lambda found: {"enum": found}),
    scalars.map(lambda found: {"const": found}),
    st.just({}),
    st.sampled_from([["string", "null"], ["integer", "boolean"]]).map(lambda t: {"type": t}),
)


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    found = {"type": "object", "properties": properties, "required": required}
    more = draw(st.sampled_from([None, False, True, {"type": "integer"}]))
    return found if more is None else {**found, "additionalProperties": more}


def nested(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    arrays = st.tuples(inner, limited(0, 4, "minItems", "maxItems"))
    return st.one_of(
        objects(inner),
        arrays.map(lambda found: {"type": "array", "items": found[0], **found[1]}),
        several.map(lambda found: {"anyOf": found}),
        several.map(lambda found: {"type": "array", "prefixItems": found, "minItems": len(found)}),
    )


schemas = st.recursive(leaves, nested, max_leaves=6)


def value(draw, schema):
    """A value that is valid under a schema of this family, properties in the schema's order."""
    if "anyOf" in schema:
        return value(draw, draw(st.sampled_from(schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return draw(st.sampled_from(schema.get("enum") or [schema["const"]]))
    kinds = schema.get("type", ["string", "integer", "boolean", "null", "object", "array"])
    name = draw(st.sampled_from([kinds] if isinstance(kinds, str) else kinds))
    if name == "string":
        if "pattern" in schema:
            return draw(st.sampled_from(PATTERNS[schema["pattern"]]))
        if "format" in schema:
            return FORMATS[schema["format"]]
        least, most = schema.get("minLength", 0), schema.get("maxLength", 9)
        return draw(st.text(texts_of, min_size=least, max_size=max(least, most)))
    if name in ("integer", "number"):
        low, high = schema.get("minimum", -(10**9)), schema.get("maximum", 10**9)
        low, high = min(low, high), max(low, high)
        if name == "integer" or draw(st.booleans()):
            return draw(st.integers(low, high))
        return round(draw(st.floats(low, high)), 3) + 0.0
    if name == "array":
        first = [value(draw, each) for each in schema.get("prefixItems", [])]
        if first:
            return first
        least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
        size = draw(st.integers(least, max(least, most)))
        return [value(draw, schema.get("items", {"type": "null"})) for _ in range(size)]
    if name == "object":
        given = schema.get("properties", {})
        chosen = [n for n in given if n in schema.get("required", ()) or draw(st.booleans())]
        found = {each: value(draw, given[each]) for each in chosen}
        more = schema.get("additionalProperties", not given)
        if more is not False and draw(st.booleans()):
            found["more"] = 7
        return found
    return draw(st.booleans()) if name == "boolean" else None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.integers(0, 1000))
def test_what_a_grammar_makes_is_valid(model, closing, schema, seed):
    """Random tokens that the grammar allows are JSON, and valid under the schema."""
    text = written(model, closing, schema_grammar(schema), seed)

    assume(text is not None)
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_is_valid_can_be_made(model, data):
    """Valid values, properties in the schema's order, follow the grammar; in any usual layout."""
    schema = data.draw(schemas)
    found = value(data.draw, schema)
    jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    indent = data.draw(st.sampled_from([None, 2]))

    text = json.dumps(found, ensure_ascii=False, indent=indent)
    assert follows(model, schema_grammar(schema), text)


def test_any_object_is_json(model, closing):
    """The grammar for "some JSON" makes and takes objects, nested and escaped."""
    texts = [written(model, closing, JSON_GRAMMAR, seed) for seed in range(5)]
    assert {dict} == {type(json.loads(text)) for text in texts if text is not None}
    tricky = {"a": [1.5e-7, -0.25, 1e20, {'é\n"\\': [True, None, "\U0001f9ff"]}], "": {}}
    assert follows(model, JSON_GRAMMAR, json.dumps(tricky))
    assert follows(model, JSON_GRAMMAR, json.dumps(tricky, ensure_ascii=False, indent=4))
    for wrong in ("[1]", '{"a": 01}', '{"a": "\n"}', '{"a": "\\ud800"}', '{"a" 1}', "{} "):
        assert not follows(model, JSON_GRAMMAR, wrong)


@pytest.mark.parametrize(
    ("schema", "takes", "refuses"),
    [
        ({"type": "integer", "minimum": 10, "exclusiveMaximum": 100}, "10 99 57", "9 100 -10 010"),
        ({"type": "integer", "minimum": -105, "maximum": -7}, "-7 -105 -10", "-106 -6 7 0"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "0 1 0.5 1.0 0.999", "1.1 -0.1 2"),
        ({"type": "number", "exclusiveMinimum": 0}, "0.1 7 12.5", "0 0.0 -1"),
        ({"minimum": -2, "exclusiveMaximum": 3}, "-2 -1.5 2.9 0", "3 -2.1 3.0"),
        ({"type": "number", "minimum": 5, "exclusiveMinimum": 3}, "5 5.1", "4"),
        ({"maxItems": 2, "items": {"type": "null"}}, "[] [null] [null,null]", "[null,null,null]"),
        ({"minItems": 2, "maxItems": 2, "items": {}}, "[1,2]", "[1] [1,2,3]"),
        ({"items": [{"type": "null"}], "minItems": 2}, "[null,5]", "[null] [5,null]"),
        ({"type": ["integer", "null"], "maximum": 3}, "null 3", "4 true"),
        ({"enum": [1, "1", None, [], 11]}, '1 "1" null [] 11', "2 true 111"),
        ({"allOf": [{"type": "number"}, {"type": "integer", "minimum": 3}]}, "3", "2 3.5"),
        ({"required": ["z"]}, '{"z":1} {"z":[],"a":2}', "{} 5"),
        ({"properties": {"ab": {}}, "additionalProperties": {"type": "null"}},
         '{"ab":1} {"a":null,"abc":null,"b":null}', '{"a":1} {"b":null,"ab":2}'),
    ],
)  # fmt: skip
def test_limits_are_kept(model, schema, takes, refuses):
    """One schema, values that it allows and values that it does not."""
    grammar = schema_grammar(schema)

    for text in takes.split():
        assert follows(model, grammar, text), text
    for text in refuses.split():
        assert not follows(model, grammar, text), text


def test_references_may_go_round(model):
    """A tree, its parts by name; names with the characters that pointers escape."""
    leaf = {"type": "integer"}
    tree = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/a~1b%25"}, {"$ref": "#"}]}}
    grammar = schema_grammar({**tree, "$defs": {"a/b%": leaf}})

    assert follows(model, grammar, "[1, [2, [], [[3]]]]")
    assert not follows(model, grammar, "[1, [null]]")


def test_many_are_bounded_and_fast(model):
    """Long strings, long enums, many optional properties: exact, and quick to begin with."""
    long = schema_grammar({"type": "string", "minLength": 3, "maxLength": 2503})
    assert follows(model, long, '"' + "x = 1" * 500 + 'abc"')
    assert not follows(model, long, '"' + "x = 1" * 500 + 'abcd"')
    words = [f"word {number}" for number in range(3000)]
    assert follows(model, schema_grammar({"enum": words}), '"word 2999"')
    many = {f"p{number}": {"type": "null"} for number in range(300)}
    grammar = schema_grammar({"properties": many})
    assert follows(model, grammar, '{"p7": null, "p299": null}')
    assert not follows(model, grammar, '{"p7": null, "p6": null}')


def deep(depth):
    found: dict[str, object] = {"type": "null"}
    for _ in range(depth):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("text", "wanted an object"),
        ([{}], "wanted an object"),
        (False, "allows nothing"),
        ({"properties": {"a": False}, "required": ["a"]}, "allows nothing"),
        ({"type": "integers"}, "there is no type 'integers'"),
        ({"$ref": "https://example.com/schema.json"}, "wanted one within the schema"),
        ({"$ref": "other.json#/a"}, "wanted one within the schema"),
        ({"$ref": 5}, "wanted one within the schema"),
        ({"$ref": "#/$defs/none"}, "no such part"),
        ({"$ref": "#"}, "can never end"),
        ({"allOf": [{"$ref": "#"}, {}]}, "never ends|can never end"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "can never end"),
        ({"not": {}}, "uses not"),
        ({"if": {}, "then": {"type": "null"}}, "uses .*then"),
        ({"items": {}, "uniqueItems": True}, "uses uniqueItems"),
        ({"type": "number", "multipleOf": 0.01}, "uses multipleOf"),
        ({"type": "number", "minimum": 0.5}, "only keep whole"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no whole number"),
        ({"type": "integer", "minimum": 10**400}, "within 10"),
        ({"type": "string", "minLength": 10**9}, "wanted at least 0 to 2000"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "5 to 3 times"),
        ({"type": "string", "minLength": "3"}, "wanted a whole number"),
        ({"type": "string", "pattern": "(?=a)b"}, "assert"),
        ({"type": "string", "pattern": "(a)\\1"}, "groupref"),
        ({"type": "string", "pattern": "(?i)a"}, "sets flags"),
        ({"type": "string", "pattern": "("}, "not valid"),
        ({"type": "string", "pattern": "(a*)*"}, "may be empty"),
        ({"type": "string", "pattern": "((a{900}){900}){900}"}, "repeated 900 times"),
        ({"type": "string", "pattern": "(" * 900 + "a" + ")" * 900}, "nested|not valid"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "beside a length"),
        ({"enum": []}, "no list of anything"),
        ({"enum": ["a"], "type": "integer"}, "without a value"),
        ({"enum": [float("nan")]}, "without a value"),
        ({"anyOf": {}}, "no list"),
        ({"properties": ["a"]}, r'properties is \["a"\], wanted schemas by name'),
        ({"type": 5}, "type is 5, wanted a type or a list of them"),
        ({"items": 5}, "items is 5, wanted a schema"),
        ({"prefixItems": 5}, "prefixItems is 5, wanted a list of schemas"),
        ({"required": [5]}, r"required is \[5\], wanted names"),
        ({"pattern": 5}, "pattern is 5, wanted a regular expression"),
        ({"allOf": [{"minimum": "a"}, {"minimum": 3}]}, 'minimum is "a", wanted a number'),
        ({"required": "a", "properties": {}, "additionalProperties": False}, "a list of names"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "exclude each other"),
        (deep(200), "nested deeper"),
        ({"enum": ["x" * 90] * 30_000}, "more than 20000 parts"),
        ({"const": "🧿" * 600_000}, "more than|bytes"),
    ],
)
def test_what_cannot_be_kept_is_an_error(schema, why):
    """And so is what is no schema: the reason is said, nothing is fetched, nothing hangs."""
    with pytest.raises(UsageError, match=why):
        schema_grammar(schema)
