"""Runner processes: starting one, hearing from it, watching its health, explaining its death.

Never imports mlx and never decides which model runs; that is the scheduler's.
"""
