"""Checkpoints that mflux's own classes load, small enough to build while tests run.

Their weights are random: what they draw means nothing, yet it goes through every layer, cast and
scheduler that a real model goes through.
"""

from tests.mflux_models.build import build_flux2, build_z_image

__all__ = ["build_flux2", "build_z_image"]
