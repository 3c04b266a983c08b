"""The machine a runner starts on: what it is, what helps it, and how a runner reports back.

Everything here is found without importing mlx, so that the controller stays small.
"""
