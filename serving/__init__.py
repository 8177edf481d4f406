"""Trained models that answer requests: a small HTTP service, and model repositories for other servers."""
