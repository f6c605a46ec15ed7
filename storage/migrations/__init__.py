"""The Alembic environment: how a database of any age becomes a database of today."""
