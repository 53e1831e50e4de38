"""A hypervisor in memory, workloads for it, and what comes of them.

Rule: nothing here decides about pins: the production cycle runs on it unchanged.
"""
