"""What a completion's output is held to: its grammar, and its budget for reasoning. Pure."""

from __future__ import annotations

from headrace.errors import FieldViolation, InvalidRequest, UnsupportedParameter
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_runner.engine.text.guide import Guidance, Stretch
from headrace_runner.models.grammar import Grammar, GrammarError, Grammars
from headrace_runner.models.markup import ModelMarkup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.prompt import Prompt


def guidance_of(
    request: StreamCompletionRequest,
    prompt: Prompt,
    tokenizer: Tokenizer,
    markup: ModelMarkup,
    grammars: Grammars,
) -> Guidance | None:
    """What guides the choices of a request; None where they are free.

    Raises InvalidRequest for a grammar that is wrong, naming the place, and UnsupportedParameter
    for what cannot be done with this model.
    """
    grammar = _grammar(request, grammars)
    budget = request.reasoning.max_tokens if request.reasoning.HasField("max_tokens") else None
    if grammar is None and budget is None:
        return None
    reasoning = calls = None
    if markup.reasons and (request.HasField("chat") or request.HasField("reasoning")):
        reasoning = Stretch.between(tokenizer, markup.reasoning_start, markup.reasoning_end)
    if budget is not None:
        _check_budget(reasoning, prompt)
    if prompt.markup.parse is not None:
        calls = Stretch.between(tokenizer, markup.call_start, markup.call_end)
        if grammar is not None and calls.start is None:
            raise UnsupportedParameter(
                "the beginning of this model's tool calls is no token of its own, so that it cannot"
                " be told from an answer; leave out the tools or the constraint",
                field=str(request.WhichOneof("constraint")),
            )
    return Guidance(tokenizer, grammar, reasoning, prompt.in_reasoning, budget, calls)


def _grammar(request: StreamCompletionRequest, grammars: Grammars) -> Grammar | None:
    kind = request.WhichOneof("constraint")
    if kind is None:
        return None
    if request.stop.ignore_eos:
        rule = f"does not go with {kind}, whose end is the model's own; leave it out"
        raise InvalidRequest(violations=[FieldViolation("stop.ignore_eos", rule)])
    text = list(request.choices.values) if kind == "choices" else getattr(request, kind)
    try:
        return grammars.compile(kind, text)
    except GrammarError as error:
        raise InvalidRequest(violations=[FieldViolation(kind, str(error))]) from None


def _check_budget(reasoning: Stretch | None, prompt: Prompt) -> None:
    if reasoning is None:
        raise UnsupportedParameter(
            "this model's reasoning is not known; leave it out", field="reasoning.max_tokens"
        )
    if reasoning.start is None and not prompt.in_reasoning:
        raise UnsupportedParameter(
            "the beginning of this model's reasoning cannot be told; leave it out",
            field="reasoning.max_tokens",
        )
