"""A runner in which each request called `FAULTY` fails at its third token."""

import sys

from headrace_runner.__main__ import main

FAULTY = "faulty"


def _sabotage() -> None:
    from headrace_runner.engine.text.logprobs import Logprobs
    from headrace_runner.engine.text.output import Output
    from headrace_runner.engine.text.request import ChoiceEnd, Delta

    push = Output.push

    def failing(
        self: Output, token: int, logprobs: Logprobs | None = None
    ) -> tuple[Delta | None, ChoiceEnd | None]:
        if self._request.id == FAULTY and self.tokens == 2:
            raise ZeroDivisionError("a bug")
        return push(self, token, logprobs)

    Output.push = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    _sabotage()
    sys.exit(main())
