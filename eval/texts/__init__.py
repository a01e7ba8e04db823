"""Texts to be scored: where they come from, how they are framed, and how they are cut."""
