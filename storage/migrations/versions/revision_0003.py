"""Revision 0003: jobs that outlive their client, come back later and are asked for by a client's own key."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("attached", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("jobs", sa.Column("due_at", sa.Integer()))
    op.add_column("jobs", sa.Column("moved_at", sa.Integer()))
    op.add_column("jobs", sa.Column("outcome", sa.JSON()))
    op.create_index("ix_jobs_list", "jobs", ["owner_id", "created_at", "id"])
    op.create_table(
        "client_keys",
        sa.Column("owner_id", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_index("ix_client_keys_age", "client_keys", ["created_at"])
    op.create_table(
        "switches",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
    )
