"""JSON Schemas as a caller gives them: read, bounded, and searched for what is wrong. Pure."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

LONGEST_STRING = 16_384
"""Characters of a string of which a schema does not say how it ends."""

_MOST_PLACES = 256
"""Places of a schema that are looked at, one by one, for what is wrong with it."""
_MOST_CHARACTERS = 4 << 20
"""Read in doing so: each look takes the whole schema. Some half a second's worth."""

# Where schemas stand within a schema (JSON Schema 2020-12, sections 8 and 10).
_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")

_ENDS = frozenset({"maxLength", "pattern", "format", "enum", "const", "$ref"})
"""What says how long a string can be, or says it elsewhere."""


class SchemaError(ValueError):
    """What is wrong, and where."""


def read_schema(text: str) -> Schema:
    """The schema in `text`. Raises SchemaError for what is no JSON, or no schema."""
    try:
        schema = json.loads(text)
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SchemaError(f"is no JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise SchemaError("is nested too deeply") from None
    except ValueError:  # Python takes more for JSON than there is.
        raise SchemaError(
            "is no JSON: it holds a number without end, or half of a surrogate pair"
        ) from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise SchemaError("is no schema: a JSON object is one, or true")
    return schema


def bounded(schema: Schema) -> Schema:
    """The schema with a bound for strings that have none.

    A small model that has lost its way may go on within a string to the end of its context.
    """
    schema = copy.deepcopy(schema)
    for _, part in _parts("", schema):
        types = part.get("type")
        if (types == "string" or (isinstance(types, list) and "string" in types)) and (
            _ENDS.isdisjoint(part)
        ):
            part["maxLength"] = max(LONGEST_STRING, part.get("minLength", 0))
    return schema


def place_of_error(schema: Schema, problem: Callable[[Schema], str]) -> str:
    """The innermost part of a schema that is wrong by itself, as a JSON pointer (RFC 6901).

    `problem` says what is wrong with a schema; "" is nothing. Gives "" for the whole, and the part
    that was found so far where a schema is too large to go on.
    """
    most = min(_MOST_PLACES, _MOST_CHARACTERS // len(json.dumps(schema)))
    root = moved(schema, "#/$defs/root")
    found = ""
    for count, (pointer, _) in enumerate(_parts("", schema)):
        if count > most:  # The first one is the whole, which is not looked at.
            break
        # Outer parts come before inner ones, and within a part that is right nothing is wrong.
        if (
            pointer
            and pointer.startswith(found)
            and problem({"$defs": {"root": root}, "$ref": f"#/$defs/root{pointer}"})
        ):
            found = pointer
    return found


def _parts(pointer: str, schema: object) -> Iterator[tuple[str, Schema]]:
    """A schema and all that it is made of, each with its JSON pointer; outer ones first."""
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for key, value in schema.items():
        at = f"{pointer}/{_escaped(key)}"
        if key in _NAMED and isinstance(value, dict):
            for name, part in value.items():
                yield from _parts(f"{at}/{_escaped(name)}", part)
        elif key in _LISTED and isinstance(value, list):
            for index, part in enumerate(value):
                yield from _parts(f"{at}/{index}", part)
        elif key in _SINGLE:
            yield from _parts(at, value)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def moved(value: Any, to: str) -> Any:
    """A schema that is to stand under the JSON pointer `to` of another, with its references."""
    if isinstance(value, Mapping):
        return {
            key: to + part[1:]
            if key == "$ref" and isinstance(part, str) and part.startswith("#")
            else moved(part, to)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [moved(part, to) for part in value]
    return value
