"""Telling others: what happened here is sent to the endpoints that operators registered."""
