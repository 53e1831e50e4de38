"""The commands that `vcpusched` has, and how each gets what it needs.

Rule: turns a command line into calls, and errors into a line and an exit status. Everything is
imported where it is used.
"""
