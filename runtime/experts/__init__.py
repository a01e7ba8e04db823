"""The library that lets llama.cpp run files with types per expert: its source, and its building."""
