"""Serves WatchModels: the recorder's journal as a stream that can be resumed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from headrace.errors import Draining
from headrace.v1.model_pb2 import Model as ModelMessage
from headrace.v1.model_pb2 import (
    ModelsSnapshot,
    WatchCheckpoint,
    WatchModelsRequest,
    WatchModelsResponse,
)
from headrace_server.events.recorder import Recorder
from headrace_server.events.views import ModelView
from headrace_server.scheduling.planner import Planner
from headrace_server.services.messages import model_message
from headrace_server.store import Manifest

_RETRY_AFTER = 1.0  # seconds, for one whose controller drains


class Watch:
    """Any number of readers of one recorder. Nothing is kept for a reader but its place."""

    def __init__(self, recorder: Recorder, planner: Planner, now: Callable[[], float]) -> None:
        """`now`: the scheduler's clock."""
        self._recorder = recorder
        self._planner = planner
        self._now = now

    async def responses(
        self, request: WatchModelsRequest
    ) -> AsyncGenerator[WatchModelsResponse, None]:
        """A snapshot, unless the request's token is known; then the changes.

        One who has fallen behind what is kept gets another snapshot. Ends with Draining.
        """
        recorder, journal = self._recorder, self._recorder.journal
        revision = journal.revision_of(request.resume_token)
        while not recorder.ended:
            changes = journal.since(revision)
            if changes is None:
                revision, models = journal.revision, dict(journal.values)
                yield WatchModelsResponse(snapshot=await self._snapshot(models))
            elif changes:
                for change in changes:
                    revision = change.revision
                    if change.value is None:
                        yield WatchModelsResponse(deleted=change.name)
                    else:
                        yield WatchModelsResponse(changed=await self._message(change.value))
            else:
                await recorder.news()
                continue
            checkpoint = WatchCheckpoint(resume_token=journal.token(revision))
            yield WatchModelsResponse(checkpoint=checkpoint)
        raise Draining(_RETRY_AFTER)

    async def _snapshot(self, models: Mapping[str, ModelView]) -> ModelsSnapshot:
        return ModelsSnapshot(models=[await self._message(models[name]) for name in sorted(models)])

    async def _message(self, model: ModelView) -> ModelMessage:
        return model_message(await self._planner.plan(model.manifest), model.runners, self._now())


def model_view(planner: Planner, manifest: Manifest) -> ModelView:
    """A model of the store, without its runners."""
    return ModelView(manifest, planner.options(manifest), planner.key(manifest))
