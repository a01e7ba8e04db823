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
    files, words, engine, web
                the targets: files that gemcut reads itself; texts, rules and templates; files that
                llama.cpp loads; requests to the server
    worker      runs cases of one target, within limits
    __main__    starts workers, and keeps what they find
"""
