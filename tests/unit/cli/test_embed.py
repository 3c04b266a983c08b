"""`headrace embed` against a scripted controller."""

from __future__ import annotations

import json

import pytest

from headrace.cli.embed import cosine
from tests.unit.cli.running import Run, let_arrive
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


def test_texts_are_compared(fake: Fake, headrace: Run) -> None:
    code, out, _ = headrace("embed", "m", "a", "b  \n b", "x" * 50)
    assert code == 0
    assert out.splitlines() == [
        "   TEXT                                      1     2     3",
        "1  a                                         1.00  0.81  0.72",
        "2  b b                                       0.81  1.00  0.99",
        f"3  {'x' * 39}…  0.72  0.99  1.00",
    ]
    assert len(fake.requests) == 1


def test_a_single_text_gives_its_vector(fake: Fake, headrace: Run) -> None:
    assert headrace("embed", "m", "abc")[1] == "[3.0, 1.0]\n"
    assert headrace("embed", "m", stdin="abcd\n\n")[1] == "[4.0, 1.0]\n"


def test_many_lines_give_a_line_each_in_several_requests(fake: Fake, headrace: Run) -> None:
    lines = "".join("x" * (1 + n % 9) + "\n" for n in range(600))
    code, out, _ = headrace("embed", "m", "--vectors", stdin=lines)
    assert code == 0
    assert [json.loads(line)[0] for line in out.splitlines()] == [1 + n % 9 for n in range(600)]
    assert [len(request.inputs) for request in fake.requests] == [256, 256, 88]


def test_options_are_sent_and_json_is_the_whole_answer(fake: Fake, headrace: Run) -> None:
    options = ("--dimensions", "2", "--no-normalize", "--truncate", "--json")
    answer = json.loads(headrace("embed", "m", "abc", *options)[1])
    assert (answer["vectors"], answer["normalized"]) == ([[3.0, 1.0]], False)
    assert answer["usage"]["prompt_tokens"] == 3
    (request,) = fake.requests
    assert (request.dimensions, request.normalize, request.truncate) == (2, False, True)


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ((), "\n", "no text"),
        (("--json", "--vectors", "a"), "", "cannot go together"),
        (tuple("abcdefghijklmnopq"), "", "--vectors"),
        (("--dimensions", "0", "a"), "", "dimensions"),
    ],
)
def test_wrong_usage(
    fake: Fake, headrace: Run, arguments: tuple[str, ...], stdin: str, says: str
) -> None:
    code, _, err = headrace("embed", "m", *arguments, stdin=stdin)
    assert code == 2
    assert says in err
    assert fake.requests == []


def test_a_model_that_is_missing_is_pulled(fake: Fake, headrace: Run) -> None:
    let_arrive(fake, "minilm:l6")
    code, out, _ = headrace("embed", "minilm", "abc")
    assert (code, out) == (0, "[3.0, 1.0]\n")


def test_show_says_how_long_vectors_are(fake: Fake, headrace: Run) -> None:
    fake.models["e:1"] = say.model("e:1", embedding_dimensions=384)
    assert "vectors       384 numbers unless told\n" in headrace("show", "e:1")[1]


def test_a_vector_without_direction_is_near_to_none() -> None:
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0
    assert cosine([3.0, 4.0], [6.0, 8.0]) == pytest.approx(1)
