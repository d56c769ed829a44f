"""The process that listens: HTTP in front, the scheduler inside, workers behind.

It owns clock, timers, sockets and request payloads. It must never decide what runs where or when
(that is `scheduler`) and never import `gpuworker`: the two share only the scheduler's vocabulary.
"""
