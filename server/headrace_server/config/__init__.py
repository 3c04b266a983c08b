"""What the controller is told: by a file, the environment and the command line.

`settings` has the table of all there is; everything else here follows from it.
"""

from headrace_server.config.changes import Change, changes, taken_over
from headrace_server.config.problems import ConfigError
from headrace_server.config.settings import GENERAL, SETTINGS, ModelOptions, ServerConfig
from headrace_server.config.show import as_toml, reference
from headrace_server.config.sources import Effective, Sources, parse, read
from headrace_server.config.values import names_of

__all__ = [
    "GENERAL",
    "SETTINGS",
    "Change",
    "ConfigError",
    "Effective",
    "ModelOptions",
    "ServerConfig",
    "Sources",
    "as_toml",
    "changes",
    "names_of",
    "parse",
    "read",
    "reference",
    "taken_over",
]
