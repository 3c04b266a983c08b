"""Which models are loaded, for whom, and when they go.

`state` and `core` decide without acting, `estimates` computes, `shell` acts.
"""
