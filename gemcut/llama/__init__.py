"""The C boundary to llama.cpp: models, contexts, samplers, devices and tensors at work.

Over `llama_cpp.llama_cpp` and the ggml libraries it loads, which are loaded at the first call.
Objects own what they hold: use them as context managers or `close` them; there is no finaliser.
llama.cpp ends the process where it is asked for the impossible, so every request is checked first.
Nothing here plans, scores or chats.

    library     the libraries, checked once; their log
    refusal     why llama.cpp refused, by its log
    owner       what every object that owns something of C's is
    devices     backends, devices, memory; RPC
    tensor      a tensor at work: read, replace
    backend     a device that computes, and memory on it
    head        from the last hidden states to logits, apart from a context
    steps       work on what lies in a memory, timed
    matmul      products of matrices and vectors, timed
    attention   attention to keys and values, timed
    loadable    what llama.cpp would not survive, refused
    params      options as llama.cpp's parameters
    report      how far it has loaded
    stock_view  a file with types per expert, as llama.cpp is shown it
    experts_library  what runs such files, compiled apart
    experts     such a file's experts, and their memory
    model       a loaded file: numbers, vocabulary
    architecture whether llama.cpp has one
    batch       tokens on their way in
    sequences   what a context holds of what it read
    session     a sequence in a file
    identity    which model it is
    context     tokens in, logits out
    embedder    texts as vectors
    watch       the evaluation callback: every result, shown as it is computed
    candidates  tokens that may come next, as samplers take them
    constraint  a grammar over an answer
    sampler     the next token
    memory      the memory a run would take
"""

from gemcut.llama.batch import Span
from gemcut.llama.context import Context
from gemcut.llama.devices import add_rpc, backends, buffer_name, devices, serve_rpc
from gemcut.llama.identity import identity
from gemcut.llama.library import last_error, require
from gemcut.llama.memory import probe
from gemcut.llama.model import Model
from gemcut.llama.sampler import Sampler
from gemcut.llama.sequences import Checkpoint
from gemcut.llama.tensor import Tensor

__all__ = [
    "Checkpoint",
    "Context",
    "Model",
    "Sampler",
    "Span",
    "Tensor",
    "add_rpc",
    "backends",
    "buffer_name",
    "devices",
    "identity",
    "last_error",
    "probe",
    "require",
    "serve_rpc",
]
