"""From files and chunks of text to numbers per token, kept so that nothing is scored twice."""
