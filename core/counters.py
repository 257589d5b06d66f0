"""What this process has done since its start, counted where it happens.

A process runs one server, so there is one object, and no question whether anybody reads it: an addition costs
less than the question. A stop tells a few of the numbers; most are there for a plugin to show. All of them
only grow. Words are a fixed few, never what a client has sent. Times are nanoseconds, as integers.
"""

from collections import Counter, defaultdict


class Counters:
    """The numbers. Whoever reads them computes rates and averages."""

    def __init__(self) -> None:
        # events that were brought, by result: "accepted", "repeated" (a known Idempotency-Key), "refused"
        # (no Counter: to add to one takes three times as long, and this is done for every event)
        self.events: defaultdict[str, int] = defaultdict(int)
        self.deliveries = 0  # an event, to one subscriber, live or from the backlog
        self.deliveries_from_backlog = 0
        self.delivered_bytes = 0  # the frames of these events; pings are not counted
        self.fanout_ns = 0  # that turns of the loop took in which live subscribers were written to
        self.subscribers = 0  # streams that were begun
        self.ends: Counter[str] = Counter()  # streams that ended, by core.delivery.subscriber.EndWord
        self.replays: Counter[str] = Counter()  # by verdict: "complete", "partial", "unknown", "none"
        self.log_ins: Counter[str] = Counter()  # by result: "right", "wrong", "unanswered", "too_many"
        self.commits = 0  # transactions of a backlog in a file
        self.commit_ns = 0  # that they took, all together
        self.failed_commits = 0
        self.loop_lag_ns = 0  # that the event loop was late, all together
        self.loop_looks = 0  # how often that was looked at
        self.longest_loop_lag_ns = 0

    def note_lag(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
        lag = max(0, int(seconds * 1e9))
        self.loop_looks += 1
        self.loop_lag_ns += lag
        self.longest_loop_lag_ns = max(self.longest_loop_lag_ns, lag)

    def summary(self) -> str:
        """The numbers that an operator would look for first, as one line."""
        ends = ", ".join(f"{number} {word}" for word, number in sorted(self.ends.items()))
        return (
            f"{self.events['accepted']} events accepted, {self.events['repeated']} repeated, "
            f"{self.events['refused']} rejected; "
            f"{self.deliveries} deliveries of {self.delivered_bytes} bytes; "
            f"{self.subscribers} streams, ended: {ends or 'none'}"
        )


counters = Counters()
