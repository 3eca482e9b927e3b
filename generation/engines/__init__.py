"""Engines: what turns requests into completions."""
