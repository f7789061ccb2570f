"""The analytics copy on ClickHouse's real engine, in this process."""
