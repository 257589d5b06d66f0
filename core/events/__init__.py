"""An event's way in, and the order of events."""
