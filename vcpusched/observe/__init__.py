"""Turns samples into a host with loads, and says who may be placed where.

Rule: pure. It knows no other room, and reads no clock and no file.
"""
