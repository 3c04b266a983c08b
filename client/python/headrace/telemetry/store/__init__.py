"""The local store: the last log lines and spans in one SQLite file.

`schema` says what the file has and what stays in it, `writer` fills it, `reader` looks into it for
`headrace logs` and `headrace trace`.
"""
