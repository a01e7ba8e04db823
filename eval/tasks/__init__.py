"""Questions with answers to choose from: accuracy, and which answers changed."""
