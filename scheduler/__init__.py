"""The deciding core of Remontoir: events in, commands out, `now` as an argument.

It owns every decision about requests, weights and devices. It must never read a clock, touch a
socket or a file, or start a thread: a shell (the gateway's dispatcher, or the simulation) does
that for it. `scheduler.spec`, `scheduler.actions` and `scheduler.wire` are also the vocabulary that
gateway and workers share.
"""

__version__ = "0.1.0"
