"""The host's side of one row: drawn tokens become text, and the end is noticed.

Pure: no device, no clock, no thread.
"""

from __future__ import annotations

from headrace_runner.engine.text.batch import Logprobs
from headrace_runner.engine.text.detokenizer import Detokenizer
from headrace_runner.engine.text.request import Delta, Finish, GenerationRequest
from headrace_runner.engine.text.stop import StopMatcher
from headrace_runner.models.tokenizer import Tokenizer


class Output:
    """The output of one request so far."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopMatcher(request.stop_strings, include_stop=request.include_stop)
        self.tokens = 0

    def push(
        self, token: int, logprobs: Logprobs | None
    ) -> tuple[Delta, tuple[Finish, str | int | None] | None]:
        """Takes the next token; gives what can be sent, and why the output ends if it does."""
        self.tokens += 1
        text, end = self._text(token)
        delta = Delta(text, [token], [] if logprobs is None else [logprobs], self.tokens)
        return delta, end

    def _text(self, token: int) -> tuple[str, tuple[Finish, str | int | None] | None]:
        request = self._request
        ended: tuple[Finish, str | int | None] | None = None
        if token in request.stop_token_ids:
            ended = Finish.STOP, token
        elif token in self._tokenizer.eos_ids and not request.ignore_eos:
            ended = Finish.END_OF_TEXT, token
        piece = ""
        if ended is None or (request.include_stop and ended[0] is Finish.STOP):
            piece = self._detokenizer.push(token)
        if ended is None and self.tokens >= request.max_tokens:
            ended = Finish.LENGTH, None
        if ended is not None:
            piece += self._detokenizer.finish()
        # A stop string that the last token completes is why the output ends, and comes first.
        text, matched = self._stop.push(piece)
        if matched is not None:
            return text, (Finish.STOP, matched)
        if ended is not None:
            text += self._stop.finish()
        return text, ended
