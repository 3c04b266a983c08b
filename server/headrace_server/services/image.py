"""Serves ImageService by relaying to the model's runner."""

from __future__ import annotations

import grpc.aio

from headrace.rpc.images import check_image_request
from headrace.telemetry.generation import request_attributes
from headrace.v1.image_pb2 import StreamImageRequest
from headrace_server.relay import ImageRecord, Relay, Terms
from headrace_server.scheduling.planner import Planner
from headrace_server.services.raw import Context, Raw, add_to, seconds, stream, time_remaining

SERVICE = "headrace.v1.ImageService"


class ImageServicer:
    """Images by whichever runner has the model."""

    def __init__(self, planner: Planner, relay: Relay) -> None:
        self._planner = planner
        self._relay = relay

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        add_to(server, SERVICE, {"StreamImage": stream(StreamImageRequest, self.stream_image)})

    async def stream_image(self, request: Raw[StreamImageRequest], context: Context) -> None:
        """Draw images."""
        message = request.message
        model = await self._planner.model(message.model, "image")
        if (traits := model.manifest.image) is not None:
            check_image_request(message, traits)
        terms = Terms(
            model,
            keep_alive=seconds(message.keep_alive) if message.HasField("keep_alive") else None,
            priority=message.priority,
            time_remaining=time_remaining(context),
            # No prompt's bytes: what tokens take is not to be learnt from pictures.
            attributes=request_attributes(message),
        )
        await self._relay.stream(ImageRecord, request.data, terms, context.write)
