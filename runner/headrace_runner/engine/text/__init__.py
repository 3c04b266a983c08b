"""Text generation: batch, sampling, output."""
