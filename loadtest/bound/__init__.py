"""How far from optimal: upper bounds on goodput that no scheduler can pass, clairvoyant or not.

Owns the bound on requests with known arrivals (`instance`, `shortest_path`), the same with weights
that must be loaded, ceilings for closed loops, and an exact solution of small instances. Must never
ask a scheduler anything: a bound knows arrivals, deadlines, batch times and devices, nothing else.
numba and scipy are needed (the extra `simulate`) and imported when a bound is asked for.
"""
