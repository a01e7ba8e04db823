"""Finished files at work: where their tensors go on a machine, how fast that is, and what is said.

machine     what this machine is and how fast it reads; other machines by name
memory      bytes: of tensors and the places where they live, of contexts, of computing
placement   the program that chooses places, and the run of a file that comes of it
speed       of runs: predicted, measured, and kept to correct later predictions
loading     a planned run loaded, or a smaller one where memory is short
experts     the library that runs files with types per expert, compiled apart
language    text around a model: templates, thoughts, calls of tools, grammars
chat        one conversation in a context
batching    many answers in one context at once
server      OpenAI's API over HTTP, and a page to chat on
"""
