"""A comparison for people and programs: table, JSON, CSV, model card, page and plots."""
