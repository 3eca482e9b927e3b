"""Prompt sets: the templates and patterns through which formal languages and chat models take the same path."""
