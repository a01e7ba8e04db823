"""The chat of `gemcut run` at a terminal: what is typed, commands, settings, the screen."""
