"""One conversation in a context: prompts in, pieces of answers out."""
