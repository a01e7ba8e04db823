"""What the words of a JSON schema mean: types, limits, and two schemas as one.

Drafts 4 to 2020-12, as far as a grammar can keep them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemcut.errors import UsageError

_PYTHON: dict[str, Any] = {
    "object": Mapping,
    "array": list | tuple,
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
TYPES = tuple(_PYTHON)

# Keywords that limit one type; where no type is said, they tell which one is meant.
_LIMITS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_ALL = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const", "type", "format")
KEPT = frozenset((*_ALL, *(name for names in _LIMITS.values() for name in names)))
_NOT_KEPT = frozenset(
    "not if then else patternProperties dependentRequired dependentSchemas dependencies contains "
    "minContains maxContains uniqueItems propertyNames multipleOf minProperties maxProperties "
    "additionalItems unevaluatedItems $dynamicRef $recursiveRef".split()
)


_NUMBER = (int | float | None, "a number")  # that it is one is checked where it is used
_FORMS: Mapping[str, tuple[Any, str]] = {
    "type": (str | list, "a type or a list of them"),
    "properties": (Mapping, "schemas by name"),
    "required": (list, "a list of names"),
    "additionalProperties": (Mapping | bool, "a schema"),
    "items": (Mapping | bool | list, "a schema"),
    "prefixItems": (list, "a list of schemas"),
    "pattern": (str, "a regular expression"),
    "format": (str | None, "a name"),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
}


def check_words(schema: Mapping[str, Any]) -> None:
    """Raise UsageError for a word that is followed by what it never may be."""
    for word in schema.keys() & _FORMS.keys():
        form, wanted = _FORMS[word]
        if not isinstance(schema[word], form):
            raise UsageError(f"{word} is {json.dumps(schema[word])[:40]}, wanted {wanted}")
    if any(not isinstance(name, str) for name in schema.get("required", ())):
        raise UsageError(f"required is {json.dumps(schema['required'])[:40]}, wanted names")


def not_kept(schema: Mapping[str, Any]) -> list[str]:
    """The words of a schema that limit it in ways a grammar cannot keep."""
    always = ("not", "contains", "maxProperties")
    found = _NOT_KEPT & schema.keys()
    return sorted(each for each in found if each in always or schema[each] not in (False, {}))


def both(first: Mapping[str, Any], second: Any) -> Mapping[str, Any]:
    """A schema that allows what both allow."""
    if second is True:
        return first
    if not isinstance(second, Mapping):
        raise UsageError(f"{json.dumps(second)[:40]} allows nothing or is no schema")
    check_words(second)
    found = dict(first)
    for key in second.keys() & (KEPT | _NOT_KEPT):
        value: Any = second[key]
        mine: Any = found.get(key, value)
        if mine == value or key == "format":
            found[key] = mine
        elif key == "properties":
            pass  # below
        elif key == "required":
            found[key] = [*mine, *(name for name in value if name not in mine)]
        elif key == "type":
            found[key] = _both_types(kinds(first), kinds(second))
        elif key == "enum":
            found[key] = [each for each in mine if each in value]
        elif key.startswith(("min", "exclusiveMin")):
            found[key] = max(mine, value)
        elif key.startswith(("max", "exclusiveMax")):
            found[key] = min(mine, value)
        elif key in ("items", "additionalProperties"):
            found[key] = False if False in (mine, value) else {"allOf": [mine, value]}
        else:
            raise UsageError(f"{key} is said twice, differently")
    if "properties" in found:
        found["properties"] = _both_properties(first, second)
    return found


def _both_properties(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name in (*first.get("properties", ()), *second.get("properties", ())):
        parts = [
            each.get("properties", {}).get(name, each.get("additionalProperties", True))
            for each in (first, second)
        ]
        if False not in parts:
            parts = [part for part in parts if part is not True] or [True]
            found[name] = parts[0] if len(parts) == 1 else {"allOf": parts}
    return found


def _both_types(first: Sequence[str], second: Sequence[str]) -> list[str]:
    found = [kind for kind in first if kind in second]
    for one, other in ((first, second), (second, first)):
        if "integer" in one and "number" in other and "integer" not in other:
            found.append("integer")
    if not found:
        raise UsageError("two types that exclude each other")
    return found


def kinds(schema: Mapping[str, Any]) -> Sequence[str]:
    """The types a schema allows; where it says none, what its other words are about."""
    found = schema.get("type", [kind for kind in _LIMITS if schema.keys() & set(_LIMITS[kind])])
    found = [found] if isinstance(found, str) else list(found)
    if unknown := [kind for kind in found if kind not in TYPES]:
        raise UsageError(f"there is no type {unknown[0]!r}: {', '.join(TYPES)}")
    if not found:
        found = ["string"] if "format" in schema else list(TYPES)
    return found


def is_of(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a schema's type."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _PYTHON[kind])


def bound(
    schema: Mapping[str, Any], word: str, exclusive: str, tighter: Callable[..., Any]
) -> tuple[int | float | None, bool]:
    """The limit on one side, and whether it is excluded; draft 4 says the latter with true."""
    limit, other = schema.get(word), schema.get(exclusive)
    if isinstance(other, bool) or other is None:
        return _number(limit), bool(other)
    limit, other = _number(limit), _number(other)
    if limit is not None and tighter(limit, other) != other:
        return limit, False
    return other, True


def _number(value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 10**18:
        raise UsageError(f"a limit of {value!r}, wanted a number within 10^18")
    return value


def whole(limit: int | float | None) -> int | None:
    """A limit that has to be whole. Raises UsageError otherwise."""
    if limit is None or limit == int(limit):
        return limit if limit is None else int(limit)
    raise UsageError(f"a limit of {limit} for a number: a grammar can only keep whole ones")


def count(schema: Mapping[str, Any], word: str) -> int | None:
    """A limit that is a count, if there is one. Raises UsageError if it is anything else."""
    value = schema.get(word)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise UsageError(f"{word} is {value!r}, wanted a whole number from 0 up")
    return value


def listed(schema: Mapping[str, Any], word: str) -> list[Any]:
    """The list under a word. Raises UsageError if it is none, or empty where one is needed."""
    value = schema[word]
    if not isinstance(value, list | tuple) or not (value or word == "required"):
        raise UsageError(f"{word} is no list of anything")
    return list(value)
