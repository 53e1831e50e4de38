"""The verbs of the command line.

Rule: turns a command line into calls, and errors into a line and an exit status. Everything is
imported where it is used.
"""
