"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "account",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("login", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("login"),
    )
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "number"),
    )
    op.create_table(
        "class",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("properties", JSON, nullable=False),
        sa.Column("property_types", JSON, nullable=False),
        sa.Column("no_data_after_s", sa.Float(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "credential",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "event",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column(
            "xid",
            sa.BigInteger(),
            server_default=sa.text("pg_current_xact_id()::text::bigint" if postgresql else "0"),
            nullable=False,
        ),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("entity_id", sa.String(), nullable=True),
        sa.Column("data", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("event_position", "event", ["generation", "xid", "id"], unique=False)
    op.create_index(("ix_event_job_id"), "event", ["job_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope"),
    )
    op.create_index(("ix_idempotency_at"), "idempotency", ["at"], unique=False)
    op.create_table(
        "job",
        sa.Column("seq", COUNTER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=True),
        sa.Column("operation_name", sa.String(), nullable=True),
        sa.Column("operation_type", sa.String(), nullable=True),
        sa.Column("operation_version", sa.Integer(), nullable=True),
        sa.Column("transport", sa.String(), nullable=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("owner_type", sa.Integer(), nullable=False),
        sa.Column("owner_name", sa.String(), nullable=False),
        sa.Column("target_id", sa.String(), nullable=True),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("run_by_id", sa.String(), nullable=True),
        sa.Column("run_by_name", sa.String(), nullable=True),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("cause_key", sa.String(), nullable=True),
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("retry_of", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("pending_reason", sa.String(), nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.String(), nullable=True),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("delivery", sa.String(), nullable=True),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("begun_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("deadline_at", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("nonce", sa.String(), nullable=True),
        sa.Column("process_group", sa.Integer(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("lane", sa.String(), nullable=True),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("low_priority", sa.Boolean(), nullable=False),
        sa.Column("cancel", JSON, nullable=True),
        sa.Column("process_meta", JSON, nullable=True),
        sa.Column("data", JSON, nullable=False),
        sa.Column("results_count", sa.Integer(), nullable=False),
        sa.Column("output_bytes", sa.BigInteger(), nullable=False),
        sa.Column("output_truncated", sa.Boolean(), nullable=False),
        sa.Column("output_pruned_at", sa.BigInteger(), nullable=True),
        sa.Column("transient", sa.Boolean(), nullable=False),
        sa.Column("abortable", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("cause_key"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("job_created", "job", ["timestamp", "seq"], unique=False)
    op.create_index(
        "job_deadline_at",
        "job",
        ["deadline_at"],
        unique=False,
        sqlite_where=sa.text("deadline_at IS NOT NULL AND status IN ('RUNNING', 'STOPPING', 'CANCELING')"),
        postgresql_where=sa.text(
            "deadline_at IS NOT NULL AND status IN ('RUNNING', 'STOPPING', 'CANCELING')"
        ),
    )
    op.create_index(
        "job_expires_at",
        "job",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("expires_at IS NOT NULL AND status IN ('PENDING', 'STOPPED')"),
        postgresql_where=sa.text("expires_at IS NOT NULL AND status IN ('PENDING', 'STOPPED')"),
    )
    op.create_index("job_lane", "job", ["lane", "status"], unique=False)
    op.create_index(
        "job_held",
        "job",
        ["queue", "low_priority", "priority", "parent_id", "seq"],
        unique=False,
        sqlite_where=sa.text("pending_reason IN ('queue', 'drained') AND status = 'PENDING'"),
        postgresql_where=sa.text("pending_reason IN ('queue', 'drained') AND status = 'PENDING'"),
    )
    op.create_index(
        "job_parent",
        "job",
        ["parent_id", "seq"],
        unique=False,
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    output_kept = "ended_at IS NOT NULL AND output_bytes > 0 AND output_pruned_at IS NULL"
    op.create_index(
        "job_output",
        "job",
        ["ended_at", "output_bytes"],
        unique=False,
        sqlite_where=sa.text(output_kept),
        postgresql_where=sa.text(output_kept),
    )
    op.create_index("job_operation", "job", ["operation_id", "timestamp", "seq"], unique=False)
    op.create_index("job_owner", "job", ["owner_id", "timestamp", "seq"], unique=False)
    op.create_index("job_owner_status", "job", ["owner_id", "status", "timestamp", "seq"], unique=False)
    op.create_index("job_run_by", "job", ["run_by_id", "timestamp", "seq"], unique=False)
    op.create_index(
        "job_start_at",
        "job",
        ["start_at"],
        unique=False,
        sqlite_where=sa.text("start_at IS NOT NULL AND status = 'PENDING'"),
        postgresql_where=sa.text("start_at IS NOT NULL AND status = 'PENDING'"),
    )
    op.create_index("job_status", "job", ["status", "timestamp", "seq"], unique=False)
    op.create_table(
        "log_entry",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("additional_info", JSON, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(("ix_log_entry_job_id"), "log_entry", ["job_id"], unique=False)
    op.create_table(
        "operation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_kind", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner_id", "name", name="operation_name"),
    )
    op.create_index("operation_owner", "operation", ["owner_kind", "owner_id"], unique=False)
    op.create_table(
        "output",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt", "number"),
    )
    op.create_table(
        "plan",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("plan", JSON, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "result",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number"),
    )
    op.create_table(
        "script",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("interpreter", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "queue",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "site",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "object",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("class_id", sa.String(), nullable=True),
        sa.Column("thing", sa.String(), nullable=True),
        sa.Column("external_id", sa.String(), nullable=True),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("properties", JSON, nullable=False),
        sa.Column("property_types", JSON, nullable=False),
        sa.Column("no_data_after_s", sa.Float(), nullable=True),
        sa.Column("mqtt", JSON, nullable=True),
        sa.Column("ssh", JSON, nullable=True),
        sa.Column("mqtt_password", sa.String(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["class.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("external_id"),
        sa.UniqueConstraint("thing"),
    )
    op.create_index(("ix_object_name"), "object", ["name"], unique=False)
    op.create_table(
        "token",
        sa.Column("number", COUNTER, autoincrement=True, nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index(("ix_token_user_id"), "token", ["user_id"], unique=False)
    op.create_table(
        "link",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("class_id", sa.String(), nullable=True),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("properties", JSON, nullable=False),
        sa.Column("property_types", JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["class.id"],
        ),
        sa.ForeignKeyConstraint(
            ["source"],
            ["object.id"],
        ),
        sa.ForeignKeyConstraint(
            ["target"],
            ["object.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(("ix_link_source"), "link", ["source"], unique=False)
    op.create_index(("ix_link_target"), "link", ["target"], unique=False)
