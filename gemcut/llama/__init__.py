"""The C boundary to llama.cpp: models, contexts, samplers, devices and tensors at work.

Over `llama_cpp.llama_cpp` and the ggml libraries it loads, which are loaded at the first call.
Objects own what they hold: use them as context managers or `close` them; there is no finaliser.
llama.cpp ends the process where it is asked for the impossible, so every request is checked first.
Nothing here plans, scores or chats.

    library   the libraries, checked once; their log
    devices   backends, devices, memory; RPC
    tensor    a tensor at work: read, replace
    matmul    products of matrices and vectors, timed
    params    options as llama.cpp's parameters
    model     a loaded file: numbers, vocabulary
    batch     tokens on their way in
    context   tokens in, logits out; the evaluation callback
    sampler   the next token
    memory    the memory a run would take
"""

from gemcut.llama.context import Context
from gemcut.llama.devices import add_rpc, backends, devices, serve_rpc
from gemcut.llama.library import last_error, require
from gemcut.llama.memory import probe
from gemcut.llama.model import Model
from gemcut.llama.sampler import Sampler
from gemcut.llama.tensor import Tensor

__all__ = [
    "Context",
    "Model",
    "Sampler",
    "Tensor",
    "add_rpc",
    "backends",
    "devices",
    "last_error",
    "probe",
    "require",
    "serve_rpc",
]
