"""Stands in for the controller: the command line starts it as it would the real one."""
