"""The engine: one thread that owns every MLX object."""
