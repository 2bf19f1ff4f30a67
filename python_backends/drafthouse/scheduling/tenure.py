"""How long a request keeps its slot at least: evicting it must not waste more than a small part of the service it has had."""

from dataclasses import dataclass

TENURE = 4.0  # service since it got its slot over what computing its cache took; evicting it then wastes at most a fifth


@dataclass(slots=True)
class Tenure:
    """What one request has had of its slot. To be made anew whenever it gets one."""

    attained_ns: int = 0  # rounds it took part in
    computing_ns: int = 0  # of them those up to its first token out of this slot; 0 = none yet

    def had(self, service_ns: int, has_got_token: bool) -> None:
        """A round of this length served it; has_got_token: it has got a token since it has this slot."""
        self.attained_ns += service_ns
        if has_got_token and not self.computing_ns:
            self.computing_ns = self.attained_ns

    @property
    def is_earned(self) -> bool:
        """See `Schedulable.has_earned_slot`."""
        return self.computing_ns > 0 and self.attained_ns >= TENURE * self.computing_ns
