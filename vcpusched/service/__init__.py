"""The process: one loop, one worker thread, control files, journald and the run directory.

Rule: the main loop makes no libvirt call; how a connection is opened is passed in.
"""
