"""What lasts: jobs and images in SQLite, pictures on disk. No HTTP, no torch."""
