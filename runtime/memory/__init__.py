"""The memory ledger: bytes of tensors, contexts and computing, place by place."""
