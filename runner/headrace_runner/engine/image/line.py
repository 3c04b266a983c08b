"""The line of requests for images, and which of their drawings go together. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace_runner.engine.image.request import ImageRequest
from headrace_runner.models.pipeline import Drawing

Alike: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One drawing of a request."""

    uid: int
    index: int
    drawing: Drawing
    alone: bool = False
    """Whether it is drawn with no other: with others it has failed."""


@dataclass(slots=True)
class _Place:
    uid: int
    request: ImageRequest
    rank: tuple[int, int]
    pieces: deque[Piece]


class Line:
    """Requests by priority, and in their order where that is the same."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._known: dict[int, tuple[ImageRequest, tuple[int, int]]] = {}
        """Requests of which a drawing may yet be put back."""
        self._arrivals = 0

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, uid: int, request: ImageRequest) -> None:
        """Puts a request in line with all its drawings."""
        rank = (-request.priority, self._arrivals)
        self._arrivals += 1
        self._known[uid] = request, rank
        pieces = deque(Piece(uid, i, drawing) for i, drawing in enumerate(request.drawings))
        self._insert(_Place(uid, request, rank, pieces))

    def drop(self, uid: int) -> None:
        """Forgets a request, if it is here."""
        if self._known.pop(uid, None) is not None:
            self._places = [place for place in self._places if place.uid != uid]

    @property
    def first(self) -> Piece | None:
        """The next drawing."""
        return self._places[0].pieces[0] if self._places else None

    def take(self, most: int) -> list[Piece]:
        """The next drawing, and those after it that can go with it: `most` in all."""
        first = self._places[0].pieces[0]
        if first.alone:
            most = 1
        alike = _alike(first.drawing)
        taken: list[Piece] = []
        for place in self._places:
            pieces = place.pieces
            while pieces and len(taken) < most and _alike(pieces[0].drawing) == alike:
                if taken and pieces[0].alone:
                    break
                taken.append(pieces.popleft())
        self._places = [place for place in self._places if place.pieces]
        return taken

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Has drawings that failed together drawn anew, each alone, where their requests were."""
        for piece in reversed(pieces):
            if piece.uid not in self._known:
                continue
            again = Piece(piece.uid, piece.index, piece.drawing, alone=True)
            place = next((p for p in self._places if p.uid == piece.uid), None)
            if place is None:
                request, rank = self._known[piece.uid]
                self._insert(_Place(piece.uid, request, rank, deque([again])))
            else:
                place.pieces.appendleft(again)

    def waiting(self) -> Iterator[tuple[int, Drawing, int]]:
        """In their order: the requests, what they want, and how many of it wait."""
        for place in self._places:
            yield place.uid, place.pieces[0].drawing, len(place.pieces)

    def _insert(self, place: _Place) -> None:
        self._places.append(place)
        self._places.sort(key=lambda place: place.rank)


def _alike(drawing: Drawing) -> Alike:
    """What drawings have in common that are drawn together."""
    return (
        drawing.width,
        drawing.height,
        drawing.steps,
        drawing.guidance,
        drawing.negative_prompt is None,
        len(drawing.input_images),
        drawing.strength,
        drawing.loras,
    )
