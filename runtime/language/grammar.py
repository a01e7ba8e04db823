"""Grammars (GBNF) for answers in JSON: any object, or what a JSON schema describes.

An answer that follows the grammar is valid under the schema. The other way round not every valid
one is among them: properties come in the schema's order, and none that it does not name unless
`additionalProperties` asks for them. What a grammar cannot keep is an error, not left out.
"""

import json
from collections.abc import Iterable, Mapping
from math import ceil, floor
from typing import Any
from urllib.parse import unquote

from gemcut.errors import UsageError
from gemcut.gbnf import check_grammar
from gemcut.runtime.language.regular import Add, choice, integers, literal, numbers, pattern, times
from gemcut.runtime.language.schema import (
    KEPT,
    TYPES,
    both,
    bound,
    check_words,
    count,
    is_of,
    kinds,
    listed,
    not_kept,
    whole,
)

_MOST_NODES, _MOST_DEPTH, _MOST_TEXT = 20_000, 100, 1 << 19
# The rules have names that no generated rule has: those end in a number.
_BASE = r"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" space (string ":" space value ("," space string ":" space value)* space)? "}"
array ::= "[" space (value ("," space value)* space)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" (unit | pair))
unit ::= [0-9a-cA-Ce-fE-F] hex hex hex | [dD] [0-7] hex hex
pair ::= [dD] [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex
hex ::= [0-9a-fA-F]
number ::= "-"? natural ("." [0-9]{1,20})? ([eE] [+-]? [12]? [0-9]? [0-9])?
natural ::= "0" | [1-9] [0-9]{0,19}
space ::= "" | " " | "\n" [ \t]{0,20}
date ::= [0-9]{4} "-" (long "-" (day | "3" [01]) | short "-" (day | "30") | "02-" day)
long ::= "0" [13578] | "1" [02]
short ::= "0" [469] | "11"
day ::= "0" [1-9] | [12] [0-9]
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,9})? zone
zone ::= "Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
"""
JSON_GRAMMAR = "root ::= object\n" + _BASE
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def schema_grammar(schema: Mapping[str, Any] | bool) -> str:
    """A grammar whose every answer is JSON that is valid under the schema.

    Raises:
        UsageError: the schema is none, too large, refers to another document, allows nothing, or
            asks for what a grammar cannot keep.
    """
    if not isinstance(schema, Mapping | bool):
        raise UsageError(f"the schema is {type(schema).__name__}, wanted an object")
    _check_size(schema)
    writer = _Writer(schema)
    try:
        writer.write()
        check_grammar(text := writer.text())
    except UsageError as error:
        raise UsageError(f"the schema cannot be made a grammar: {error}") from error
    except (RecursionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the schema is malformed: {error}") from error
    return text


def _check_size(schema: Any) -> None:
    nodes, layer = 0, [schema]
    for _ in range(_MOST_DEPTH):
        layer = [each for node in layer for each in _children(node)]
        nodes += len(layer)
        if not layer or nodes > _MOST_NODES:
            break
    if layer:
        raise UsageError(
            f"the schema has more than {_MOST_NODES} parts or is nested deeper than {_MOST_DEPTH}"
        )


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


class _Writer:
    """Writes the rules, one for each part of the schema."""

    def __init__(self, schema: Mapping[str, Any] | bool) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._size = 0
        self._references: dict[str, str] = {}  # the rule of a $ref, known before it is written

    def write(self) -> None:
        self._rules["root"] = ""
        self._rules["root"] = self._rule(self._schema)

    def text(self) -> str:
        return "".join(f"{name} ::= {rule}\n" for name, rule in self._rules.items()) + _BASE

    def _add(self, rule: str) -> str:
        self._size += len(rule)
        if self._size > _MOST_TEXT:
            raise UsageError(f"it would have more than {_MOST_TEXT} characters")
        name = f"r{len(self._rules)}"
        self._rules[name] = rule
        return name

    def _named(self, schema: Any) -> str:
        return self._add(self._rule(schema))

    def _rule(self, schema: Any) -> str:
        """What is on the right of a rule for a schema."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise UsageError(f"{json.dumps(schema)[:40]} allows nothing or is no schema")
        check_words(schema)
        if unkept := not_kept(schema):
            raise UsageError(f"it uses {', '.join(unkept)}, which a grammar cannot keep")
        schema = {key: value for key, value in schema.items() if key in KEPT}
        if "$ref" in schema and len(schema) == 1:
            return self._reference(schema["$ref"])
        if "allOf" in schema and len(schema) == 1 and len(listed(schema, "allOf")) == 1:
            return self._rule(schema["allOf"][0])
        if "allOf" in schema or "$ref" in schema:
            return self._rule(self._merged(schema))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                rest = {key: value for key, value in schema.items() if key != word}
                found = [both(rest, each) if rest else each for each in listed(schema, word)]
                return " | ".join(map(self._named, found))
        if "const" in schema or "enum" in schema:
            return self._values(schema)
        return " | ".join(self._typed(kind, schema) for kind in kinds(schema))

    def _reference(self, reference: Any) -> str:
        if reference not in self._references:
            name = self._references[reference] = self._add("")
            self._rules[name] = self._rule(self._target(reference))
        return self._references[reference]

    def _target(self, reference: Any) -> Any:
        """The part of this document that a reference points to; no other document is read."""
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            raise UsageError(f"$ref {reference!r}: wanted one within the schema, as #/$defs/name")
        found: Any = self._schema
        for part in unquote(reference).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise UsageError(f"$ref {reference!r}: the schema has no such part")
        return found

    def _merged(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema with what its allOf and $ref say, in one."""
        found: Mapping[str, Any] = {}
        parts: list[Any] = [schema]
        for _ in range(_MOST_DEPTH):
            if not parts:
                return found
            part = parts.pop(0)
            if isinstance(part, Mapping):
                parts += listed(part, "allOf") if "allOf" in part else []
                parts += [self._target(part["$ref"])] if "$ref" in part else []
                part = {key: part[key] for key in part if key not in ("allOf", "$ref")}
            found = both(found, part)
        raise UsageError("an allOf never ends")

    def _values(self, schema: Mapping[str, Any]) -> str:
        if schema.keys() - {"const", "enum", "type", "format"}:
            raise UsageError("an enum beside other limits: leave its values out instead")
        values = listed(schema, "enum") if "enum" in schema else [schema["const"]]
        allowed = kinds(schema) if "type" in schema else TYPES
        fitting = [
            value
            for value in values
            if any(is_of(value, kind) for kind in allowed) and value == schema.get("const", value)
        ]
        if not fitting:
            raise UsageError("an enum without a value that is allowed")
        texts = (json.dumps(value, ensure_ascii=False, allow_nan=False) for value in fitting)
        return choice(texts, self._add)

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(schema)
        if kind == "boolean":
            return '"true" | "false"'
        if kind == "null":
            return '"null"'
        least, open_least = bound(schema, "minimum", "exclusiveMinimum", max)
        most, open_most = bound(schema, "maximum", "exclusiveMaximum", min)
        if kind == "integer":
            return integers(
                None if least is None else floor(least) + 1 if open_least else ceil(least),
                None if most is None else ceil(most) - 1 if open_most else floor(most),
            )
        if least is None and most is None:
            return "number"
        return numbers(whole(least), whole(most), open_least, open_most)

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = count(schema, "minLength") or 0, count(schema, "maxLength")
        limited = bool(least) or most is not None
        if "pattern" in schema:
            if limited or not isinstance(schema["pattern"], str):
                raise UsageError("a pattern beside a length: say the length in the pattern")
            return f'"\\"" ({pattern(schema["pattern"])}) "\\""'
        if not limited and schema.get("format") in _FORMATS:
            return f'"\\"" {_FORMATS[schema["format"]]} "\\""'
        return f'"\\"" {times("char", least, most, self._add)} "\\""' if limited else "string"

    def _array(self, schema: Mapping[str, Any]) -> str:
        least, most = count(schema, "minItems") or 0, count(schema, "maxItems")
        items = schema.get("items", True)
        first = schema.get("prefixItems", items if isinstance(items, list) else [])
        first = first if most is None else first[:most]
        least = max(least - len(first), 0)
        if most is not None:
            most -= len(first)
        if items is False or (first and not least and not isinstance(items, Mapping)):
            most = 0  # others may follow, but need not
        if most is not None and most < least:
            raise UsageError(f"an array of {least} items or more, and of {most} or fewer")
        written = [self._named(each) for each in first]
        if most != 0:
            more = self._named(True if isinstance(items, list) else items)
            after = self._add(f'"," space {more}')
            if first:
                written.append(times(after, least, most, self._add))
                return '"[" space ' + ' "," space '.join(written[:-1]) + f' {written[-1]} space "]"'
            rest = times(after, max(least - 1, 0), None if most is None else most - 1, self._add)
            body = f"{more} {rest} space"
            return f'"[" space {body} "]"' if least else f'"[" space ({body})? "]"'
        return '"[" space ' + ' "," space '.join(written) + (" space" * bool(written)) + ' "]"'

    def _object(self, schema: Mapping[str, Any]) -> str:
        """Two rules per property: one where it comes first, one after another and a comma."""
        properties = dict(schema.get("properties", {}))
        required = listed(schema, "required") if "required" in schema else []
        others = schema.get("additionalProperties", not properties)
        for name in required:
            if name not in properties and others is False:
                raise UsageError(f"a required property {name!r} that is not allowed")
            properties.setdefault(name, others)
        first = after = self._add('space "}"')
        if others is not False:
            other = f'{self._add(_other_names(set(properties), self._add))} ":" space '
            other += self._named(others)
            self._rules[after] += f' | "," space {other} {after}'
            first = self._add(f'"}}" | {other} {after}')
        else:
            first = self._add('"}"')
        for name, found in reversed(properties.items()):
            key = literal(json.dumps(name, ensure_ascii=False) + ":")
            value = f"{key} space {self._named(found)} {after}"
            skip = "" if name in required else " | "
            first, after = (
                self._add(value + (skip and skip + first)),
                self._add(f'"," space {value}' + (skip and skip + after)),
            )
        return f'"{{" space {first}'


def _other_names(names: set[str], add: Add) -> str:
    """A property's name with its quotes, other than any of these."""
    return f'"\\"" {add(_other_rest(names, add))}'


def _other_rest(rests: set[str], add: Add) -> str:
    """The rest of a name that must not be one of `rests`."""
    if not rests:
        return 'char* "\\""'
    following = sorted({rest[0] for rest in rests if rest} - {'"', "\\", *map(chr, range(32))})
    excluded = "".join(f"\\U{ord(each):08X}" for each in following)
    found = [f'[^"\\\\\\x00-\\x1F{excluded}] [^"\\\\\\x00-\\x1F]* "\\""']
    for each in following:
        rest = {rest[1:] for rest in rests if rest.startswith(each)}
        found.append(f"{literal(each)} {add(_other_rest(rest, add))}")
    return " | ".join([*found, *([] if "" in rests else ['"\\""'])])
