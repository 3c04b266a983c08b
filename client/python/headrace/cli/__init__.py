"""The command line. Each family of commands is a module, imported when it is asked for."""
