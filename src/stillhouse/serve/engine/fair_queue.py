"""Fair queueing between the keys of one tier.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, section 2): the start tag of a job is the virtual time at
its arrival or the finish tag of its key's previous job, whichever is later. Virtual time is the start tag of the latest
job in service. A key that submits a hundred jobs at once gets increasing tags, so another key's first job precedes all
but the first of them.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class FairQueue:
    """Start and finish tags of one tier, in seconds of work.

    Args:
        virtual_time: start tag of the latest job in service.
        finish_tags: finish tag of the last job, by key.
    """

    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)

    def assign_tag(self, key: str, seconds: float) -> float:
        """Return the start tag of an arriving job and update the finish tag of its key.

        Args:
            key: API key.
            seconds: isolated latency of the job.

        >>> queue = FairQueue()
        >>> [queue.assign_tag("many", 5.0), queue.assign_tag("many", 5.0), queue.assign_tag("few", 5.0)]
        [0.0, 5.0, 0.0]
        """
        self.finish_tags = {name: end for name, end in self.finish_tags.items() if end > self.virtual_time}
        tag = self.peek_tag(key)
        self.finish_tags[key] = tag + seconds
        return tag

    def peek_tag(self, key: str) -> float:
        """Return the start tag that a job of this key would get now."""
        return max(self.virtual_time, self.finish_tags.get(key, self.virtual_time))

    def advance(self, tag: float) -> None:
        """Advance the virtual time to the tag of a job that was served."""
        self.virtual_time = max(self.virtual_time, tag)
