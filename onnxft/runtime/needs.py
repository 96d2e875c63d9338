"""What a provider needs and lacks on this machine, as values."""

from __future__ import annotations

from dataclasses import dataclass

from onnxft.errors import ProviderError


@dataclass(frozen=True)
class Need:
    """One thing that must be on the machine: which version is wanted, which is there."""

    what: str
    wanted: str
    found: str
    """Version and place; `none` where it is not there."""
    problem: str = ""
    """Why what was found does not do; empty where it does."""
    step: str = ""
    """What to get, where there is a problem."""


@dataclass(frozen=True)
class Lack:
    """Why a provider does not load."""

    reasons: tuple[str, ...]
    steps: tuple[str, ...]
    """What would make it work: all of them."""
    needs: tuple[Need, ...] = ()
    """Wanted and found versions, where the provider wants certain ones."""


class LackError(ProviderError):
    """A provider that was asked for does not load, and it is known what is missing."""

    def __init__(self, what: str, lack: Lack) -> None:
        """`what` failed; the message gives the reasons and the steps."""
        super().__init__(f"{what}: {'; '.join(lack.reasons)}. It needs {'; '.join(lack.steps)}.")
        self.lack = lack
