"""From numbers per token to estimates with intervals, and to what can be told apart."""
