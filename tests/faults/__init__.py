"""The fault matrix: what the server does when a client, the disk, the database, the clock or its own process fails."""
