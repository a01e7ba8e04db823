"""Fuzzing: every reader of foreign bytes is fed with damaged real files, in a process of its own.

    .venv/bin/python -m tests.fuzz --minutes 60

What is wanted of a reader is that it returns, or raises a GemcutError, within bounds of time and
memory. Anything else is a finding: another exception, a warning, a signal, a process that hangs or
grows. The input of a finding stays in build/fuzz/findings, with what happened.

    mutate      damage to bytes, to texts, to JSON
    headers     damage to a GGUF's metadata and table of tensors
    archives    damage to zip archives, to arrays within, and to headers of safetensors
    seeds       the real files, made of the embedded model
    target      what a target is
    files, kept, texts, engine, web
                the targets: models, importance and results; what gemcut or its user wrote once;
                texts, rules and templates; what llama.cpp gets to see; requests to the server
    targets     all of them
    worker      runs cases of one target, within limits
    apart       a case in a process of its own
    __main__    starts workers, and keeps what they find
"""
