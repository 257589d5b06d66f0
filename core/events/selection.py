"""What a reader of the backlog gets of it: which events, and how they are written.

A store is told by topics what it need not look at, and asks about the path of the rest.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from core.events.subscription import Alternative
from core.events.topics import ByPath, PublishPath


class Selection:
    """Which events a reader gets, and their frames.

    public: sets of topics: a public event that is wanted has all topics of one of them.
    private: the same of private events, without `private`; empty for who may read none of them.
    wants: whether events of a path are wanted, and may be read.
    frames: makes the frames of events' lines, joined.
    """

    __slots__ = ("frames", "private", "public", "wanted")

    def __init__(
        self,
        public: Collection[Alternative],
        private: Collection[Alternative],
        wants: Callable[[PublishPath], bool],
        frames: Callable[[Sequence[bytes]], bytes],
    ) -> None:
        self.public: Final = public
        self.private: Final = private
        self.wanted: Final = ByPath(wants)
        self.frames: Final = frames

    @property
    def reads_private(self) -> bool:
        """Whether it may read any private events."""
        return bool(self.private)
