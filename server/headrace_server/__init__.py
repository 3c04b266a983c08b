"""The controller: keeps models, starts a runner for each that is wanted, and relays streams.

Never imports mlx: what touches a model's weights runs in a child process.
"""
