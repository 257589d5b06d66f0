"""An event's way out: to its subscribers, live or from the backlog."""
