"""Generated code; see scripts/proto.py."""
