"""Turns what a cycle did into text, JSON, metrics and pictures.

Rule: decides nothing and asks nobody; every sentence that people read is worded here.
"""
