"""Turns what a cycle did into text, JSON, metrics and pictures.

Rule: pure. It changes nothing and asks nobody; every sentence that people read is worded here.
"""
