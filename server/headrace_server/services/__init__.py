"""Thin servicers: each turns a call into a few steps of the relay, the scheduler or the store."""
