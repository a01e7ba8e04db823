"""Text around a model: chat templates, thoughts, calls of tools, grammars for answers."""
