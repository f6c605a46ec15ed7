"""Runs the revisions, as Alembic asks, in the transaction that storage.schema opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
