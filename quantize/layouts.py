"""How a file's weights will lie on the host: as they are in it, or in the CPU's own layouts.

`gemcut run` takes for a file what makes a request sooner, and a plan counts on the speeds of that.
Which layout it is depends on the file's types, and which types are worth their time on the layout;
so a file is planned for either, and one counts for which a run would take the layout that it was
planned for. Beside cards that compute prompts with the host's weights these stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gemcut.profile import Profile
from gemcut.runtime.placement.candidates import Loading, loadings, preferred
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.workload import CHAT


@dataclass(frozen=True)
class Run:
    """A predicted run of a file: how its weights lie, and tokens per second."""

    loading: Loading
    prefill: float
    decode: float

    def cost(self, machine: Profile) -> float:
        """Seconds of a typical request, by which runs are compared."""
        return CHAT.seconds(self.prefill, self.decode) * self.loading.effort(machine)


def layouts(machine: Profile) -> list[Loading]:
    """The ways in which weights may lie that a plan is made for; one, where nothing is to choose.

    A run may also leave prompts to the CPU where a card could compute them: that is not planned.
    """
    return [each for each in loadings(Given(), machine) if not each.no_host]


def taken(runs: Sequence[Run], machine: Profile) -> Run:
    """The one that `gemcut run` would choose."""
    return preferred(runs, lambda run: run.cost(machine))
