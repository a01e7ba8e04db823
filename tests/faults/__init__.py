"""Faults on purpose, under real commands: kills, signals, full disks, sources that change.

    python -m tests.faults [--kills N] [--only GROUP,...] [--commands NAME;...] [--folder FOLDER]

    running   a command in a process of its own, and what it leaves
    commands  the commands, small ones on the embedded model, and what each has to write
    kills     killed again and again, at any moment, each result is the same
    signals   Ctrl-C and SIGTERM: the right exit code, no traceback
    places    outputs and caches that cannot be written, full disks, few descriptors, two at once
    sources   sources that are cut short or change while they are read
    clocks    sources and unfinished work from 1970 and 2035

A group is a function of a `Workshop`; it raises AssertionError, or returns counts.
"""
