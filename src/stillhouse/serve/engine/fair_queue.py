"""The line of a tier: whoever asks for much stands behind whoever asks for little.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, section 2): a job's tag is the virtual time at its
arrival, or the end of its key's work that is still in line, whichever is later; virtual time is the tag of the latest
job that was picked. A key that asks for a hundred pictures at once thus has them tagged one behind the other, and
another key's first picture comes before all but the first of them.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class FairQueue:
    """Tags of one tier. Seconds throughout."""

    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)

    def assign_tag(self, key: str, seconds: float) -> float:
        """The tag of a job that just arrived and takes so many seconds alone.

        >>> line = Line()
        >>> [line.tag("many", 5.0), line.tag("many", 5.0), line.tag("few", 5.0)]
        [0.0, 5.0, 0.0]
        """
        self.finish_tags = {name: end for name, end in self.finish_tags.items() if end > self.virtual_time}
        tag = self.peek_tag(key)
        self.finish_tags[key] = tag + seconds
        return tag

    def peek_tag(self, key: str) -> float:
        """The tag that a job of that key would get if it arrived now."""
        return max(self.virtual_time, self.finish_tags.get(key, self.virtual_time))

    def advance(self, tag: float) -> None:
        """A job with that tag was picked."""
        self.virtual_time = max(self.virtual_time, tag)
