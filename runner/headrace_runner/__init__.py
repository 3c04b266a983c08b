"""The runner: one process that serves one model. Never imports headrace_server."""
