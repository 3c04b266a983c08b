"""Grammars that an output has to follow, compiled by llguidance.

A grammar is compiled once for a model's vocabulary and kept; each output gets a matcher of its own,
which knows the tokens so far and says which may come next.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from headrace_runner.models.schema import (
    Schema,
    SchemaError,
    bounded,
    moved,
    place_of_error,
    read_schema,
)
from headrace_runner.models.tokenizer import Tokenizer

Kind: TypeAlias = Literal["json_schema", "regex", "lark_grammar", "choices"]
Schemas: TypeAlias = Mapping[str, Schema]

_KEPT = 32
"""Grammars that are remembered."""

# A model that has lost its way may go on with white space for ever.
_JSON: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,16}"}
_QUIET = 0


class GrammarError(ValueError):
    """What is wrong with a grammar, as a sentence without its subject."""


class Matcher:
    """Where one output is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)

    def take(self, token: int) -> None:
        """The output goes on with a token. One that the grammar forbids shows at the next mask."""
        self._matcher.consume_token(token)

    def may_take(self, token: int) -> bool:
        """Whether the output may go on with a token."""
        return bool(self._matcher.validate_tokens([token]))

    def mark(self, allowed: NDArray[np.bool_]) -> None:
        """Sets, in [vocabulary], whether each token may come next.

        Raises GrammarError for a grammar that came to need more than it may, or whose output did
        not follow it.
        """
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():  # It is not raised, and the mask allows the end alone.
            raise GrammarError(_first_line(self._matcher.get_error()))
        known = np.unpackbits(bits.view(np.uint8), count=self._vocabulary, bitorder="little")
        allowed[: self._vocabulary] = known
        allowed[self._vocabulary :] = False


class Grammar:
    """A compiled grammar. Safe to use from several threads."""

    def __init__(self, start: LLMatcher, vocabulary: int) -> None:
        self._start = start
        self._vocabulary = vocabulary

    def matcher(self) -> Matcher:
        """For an output that begins."""
        return Matcher(self._start.deep_copy(), self._vocabulary)


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[Kind, str], Grammar] = OrderedDict()

    def compile(self, kind: Kind, text: str | Sequence[str]) -> Grammar:
        """The grammar of a kind. Raises GrammarError saying what is wrong, and where."""
        key = kind, text if isinstance(text, str) else json.dumps(list(text))
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
            if self._vocabulary is None:  # Takes some 0.2 s; not every model is asked for it.
                self._vocabulary = _vocabulary(self._tokenizer)
        grammar = Grammar(self._compile(kind, text), self._tokenizer.vocab_size)
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _compile(self, kind: Kind, text: str | Sequence[str]) -> LLMatcher:
        match kind, text:
            case "json_schema", str():
                return self._of_schema(text)
            case "regex", str():
                source = LLMatcher.grammar_from_regex(text)
            case "lark_grammar", str():
                source = LLMatcher.grammar_from_lark(text)
            case _:
                source = _of_choices(text)
        if problem := self._problem(source):
            raise GrammarError(problem)
        return self._matcher(source)

    def calls(self, tools: Schemas) -> Grammar:
        """The grammar of a call, as a line of JSON, of one of some functions: the schemas of their
        arguments by name. Raises GrammarError naming the function."""
        for name, schema in tools.items():
            try:
                self.compile("json_schema", json.dumps(schema))
            except GrammarError as error:
                raise GrammarError(f"of {name}: {error}") from None
        defs = {
            str(number): moved(bounded(schema), f"#/$defs/{number}")
            for number, schema in enumerate(tools.values())
        }
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{number}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, name in enumerate(tools)
        ]
        schema = {"$defs": defs, "anyOf": calls, "x-guidance": _JSON}
        return self.compile(
            "lark_grammar", f'start: "\\n" call "\\n"\ncall: %json {json.dumps(schema)}'
        )

    def _of_schema(self, text: str) -> LLMatcher:
        def problem(part: Schema) -> str:
            return self._problem(LLMatcher.grammar_from_json_schema(part, overrides=_JSON))

        try:
            schema = read_schema(text)
            if found := problem(schema):
                place = place_of_error(schema, problem)
                raise GrammarError(f"at {place}: {found}" if place else found)
            source = LLMatcher.grammar_from_json_schema(bounded(schema), overrides=_JSON)
        except SchemaError as error:
            raise GrammarError(str(error)) from None
        except RecursionError:
            raise GrammarError("is nested too deeply") from None
        return self._matcher(source)

    def _problem(self, source: str) -> str:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(source, self._vocabulary)
        return " ".join(" ".join(messages).split()) if wrong else ""

    def _matcher(self, source: str) -> LLMatcher:
        assert self._vocabulary is not None
        matcher = LLMatcher(self._vocabulary, source, log_level=_QUIET)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return matcher


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        # Nothing of an output may be a control mark; what has no bytes is never allowed.
        self.tokens = [
            b"" if i in tokenizer.special_ids else tokenizer.token_bytes(i)
            for i in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode()
        return self._tokenizer.encode(text, add_special=False)


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(
        _Vocabulary(tokenizer),  # type: ignore[arg-type]  # by its shape
        n_vocab=tokenizer.vocab_size,
        eos_token=sorted(tokenizer.eos_ids) or None,
    )


def _of_choices(choices: str | Sequence[str]) -> str:
    words = [choices] if isinstance(choices, str) else choices
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, words)))


def _first_line(message: str) -> str:
    return message.partition("\n")[0]
