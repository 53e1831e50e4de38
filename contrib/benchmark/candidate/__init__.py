"""The next planner, measured beside the one in use until it takes its place.

Rule: what is wanted of a plan is one objective; how it is found is one neighbourhood, with exact
search on small groups; what must not be is a missing bit. Pure, as `vcpusched.plan`, and shipped to
nobody. `fairness` and `maxmin` are not joined to `planner` yet.
"""
