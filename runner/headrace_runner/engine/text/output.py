"""The host's side of one choice: drawn tokens become parts of the answer, and the end is noticed.

Tokens become text, the stop strings are looked for in it, and what is left is split into text,
reasoning and tool calls. Each of these holds back what it cannot know yet, and the tokens wait
with their text. What is sent is always all that the tokens sent so far give by themselves: so an
output that is restored from them goes on exactly where it was. Pure: no device, clock or thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from headrace_runner.engine.text.calls import ToolCallPart, join
from headrace_runner.engine.text.detokenizer import Detokenizer
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.parts import Parts, Splitter
from headrace_runner.engine.text.request import ChoiceEnd, Delta, Finish, GenerationRequest
from headrace_runner.engine.text.stop import StopMatcher
from headrace_runner.models.tokenizer import Tokenizer

_PATIENCE = 16
"""Tokens for which text that is free waits for the tokens behind it."""


class Output:
    """The output of one choice of a request so far."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, choice: int = 0) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._choice = choice
        self._detokenizer = Detokenizer(tokenizer, request.markup.special_ids)
        self._stop = StopMatcher(request.stop_strings, include_stop=request.include_stop)
        self._splitter = Splitter(request.markup)
        self._unsent = Delta(choice)
        self.tokens = 0
        """Tokens generated so far, restored ones included."""

    def push(
        self, token: int, logprobs: Logprobs | None = None
    ) -> tuple[Delta | None, ChoiceEnd | None]:
        """Takes the next token; gives what is to be sent, and how the choice ends if it does.

        A token leaves with the first character of its text, and with the end all that is left
        leaves. Nothing may be pushed after the end.
        """
        piece, end = self._take(token)
        unsent = self._unsent
        unsent.token_ids.append(token)
        if logprobs is not None:
            unsent.logprobs.append(logprobs)
        if end is None and not self._is_due(piece):
            return None, None
        unsent.output_tokens = self.tokens
        self._unsent = Delta(self._choice)
        return unsent, end

    def restore(self, tokens: Iterable[int]) -> ChoiceEnd | None:
        """Takes the tokens that an earlier attempt has sent, with all that they give.

        Gives the end if they hold it: then everything was sent but that it is the end.
        """
        for token in tokens:
            _, end = self._take(token)
            self._unsent = Delta(self._choice)
            if end is not None:
                return end
        return None

    def _is_due(self, piece: str) -> bool:
        """Whether to send, after a token that completed the text `piece`."""
        held = self._stop.held + self._splitter.held
        if held < len(piece):
            return True
        if not held:
            return not self._detokenizer.pending
        # A run such as "-----" always holds the beginning of the stop "--x", and frees with each
        # token the text of an earlier one. Then a reader gets tokens before their text.
        unsent = self._unsent
        waits = unsent.text or unsent.reasoning or unsent.tool_calls
        patient = self._splitter.in_call or len(unsent.token_ids) < _PATIENCE
        return bool(waits) and not patient

    def _take(self, token: int) -> tuple[str, ChoiceEnd | None]:
        """Sends a token through; gives the text that it completed, and the end."""
        self.tokens += 1
        ended = self._ended_by(token)
        piece = ""
        if ended is None or (self._request.include_stop and ended[0] is Finish.STOP):
            piece = self._detokenizer.push(token)
        if ended is None and self.tokens >= self._request.max_tokens:
            ended = Finish.LENGTH, None
        if ended is not None:
            piece += self._detokenizer.finish()
        # A stop string that the last token completes is why the output ends, and comes first.
        text, stop = self._stop.push(piece)
        if stop is not None:
            ended = Finish.STOP, stop
        elif ended is not None:
            text += self._stop.finish()
        self._add(self._splitter.push(text))
        if ended is None:
            return piece, None
        reason, matched = ended
        cut = reason is Finish.LENGTH or stop is not None
        self._add(self._splitter.finish(cut=cut))
        if reason is Finish.END_OF_TEXT and self._splitter.calls:
            reason, matched = Finish.TOOL_CALLS, None
        return piece, ChoiceEnd(reason, matched, self.tokens)

    def _ended_by(self, token: int) -> tuple[Finish, str | int | None] | None:
        if token in self._request.stop_token_ids:
            return Finish.STOP, token
        if token in self._tokenizer.eos_ids and not self._request.ignore_eos:
            return Finish.END_OF_TEXT, token
        return None

    def _add(self, parts: Parts) -> None:
        unsent = self._unsent
        unsent.text += parts.text
        unsent.reasoning += parts.reasoning
        join(unsent.tool_calls, [self._with_id(part) for part in parts.tool_calls])

    def _with_id(self, call: ToolCallPart) -> ToolCallPart:
        """Names a call that has no id, in its first part, always by the same one: it may come again
        in a resumed stream."""
        if call.id is not None or call.name is None:
            return call
        name = f"{self._request.id}/{self._choice}/{call.index}"
        return replace(call, id=f"call_{hashlib.sha256(name.encode()).hexdigest()[:24]}")
