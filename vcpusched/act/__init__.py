"""Runs one control cycle: everything that pins, and everything that undoes a pin.

Rule: whatever changes an affinity goes through here, on a `host.hypervisor` that is passed in.
"""
