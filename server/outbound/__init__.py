"""Requests that the server makes of its own accord, to addresses that somebody typed."""
