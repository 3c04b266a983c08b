"""Turns model files into directories that mlx-lm loads.

Runs as a child process: it may use much memory for a while, and the controller, which starts it,
never imports MLX.
"""
