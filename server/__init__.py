"""The process: HTTP, decisions and people."""
