"""A planned run loaded, or a smaller one where memory is short."""
