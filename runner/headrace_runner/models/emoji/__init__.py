"""`emoji:64`, the small image model that comes with the runner: text to emoji of 64×64 pixels."""
