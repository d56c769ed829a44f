"""The papers' experiments: which scenarios are played, how they are judged, what the report says.

Owns the eight experiments and the page they make, docs/measurements/scheduler.md. A run is
loadtest/simulate.py's, a scenario is a file in loadtest/scenarios, a bound is loadtest/bound's:
nothing here decides for a scheduler or changes what it is measured by. Text about figures is chosen
by the figures, never written beforehand.
"""
