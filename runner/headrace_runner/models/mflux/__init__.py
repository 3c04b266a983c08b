"""Models for images that mflux runs: FLUX, Z-Image, Qwen-Image and others.

mflux is a package of its own, which an extra installs; `insides` and `loading` alone touch it.
"""
