"""Which images ride next. `policy` and `cost` decide and are pure; `queue` holds; `loop` acts."""
