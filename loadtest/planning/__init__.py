"""Planning in virtual time: how many devices, how much cache, which settings, when to scale.

`remontoir plan` and `remontoir tune`; what they find is found by playing, with the scheduler that
serves. docs/planning.md.
"""
