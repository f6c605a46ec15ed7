"""Revision 0006: webhooks, the events they are told of, and the deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("types", sa.JSON(), nullable=False),
        sa.Column("owner_id", sa.String()),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("trouble", sa.String()),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("former_secret", sa.String()),
        sa.Column("former_until", sa.Integer()),
        sa.Column("resume_at", sa.Integer()),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String()),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_index("ix_events_age", "events", ["created_at"])
    op.create_table("deliveries", *_delivery_columns())
    op.create_index("ix_deliveries_due", "deliveries", ["webhook_id", "status", "due_at", "number"])
    op.create_index("ix_deliveries_event_id", "deliveries", ["event_id"])


def _delivery_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("event_id", sa.String(), sa.ForeignKey("events.id", ondelete="CASCADE"), nullable=False),
        sa.Column("webhook_id", sa.String(), sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Integer(), nullable=False),
        sa.Column("attempted_at", sa.Integer()),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", sa.String()),
    ]
