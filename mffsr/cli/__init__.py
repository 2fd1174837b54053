"""The command line: a file or a few for each command."""
