"""Traces, metrics and logs of both services and the SDK.

Nothing is exported without an OTLP endpoint, and nothing is imported here.
"""
