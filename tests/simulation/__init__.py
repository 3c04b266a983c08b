"""The scheduling core in a world of its own: random schedules on a virtual clock.

`python -m tests.simulation` runs them, and replays one by its seed.
"""
