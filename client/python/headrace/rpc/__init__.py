"""What both services and the SDK need of gRPC: options, health, error and validation interceptors.

Nothing is imported here, so that a client pays for `options` alone.
"""
