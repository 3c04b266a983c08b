"""Image files: written from pixels, with what they were made with, and read from anyone.

Knows neither MLX nor the engine. What it does takes time: call it in a thread.
"""
