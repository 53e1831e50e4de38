"""Turns a host into a plan: which affinities to change, in which order, and why no others.

Rule: pure. It knows no other room; the same host and policy give the same plan.
"""
