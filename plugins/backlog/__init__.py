"""The newest events, kept in memory or in a file."""
