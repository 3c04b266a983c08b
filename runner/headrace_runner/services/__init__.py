"""Thin servicers: requests become values of the engine, events become messages."""
