"""Groups of tensors whose errors are believed to cost alike: one role, blocks next to each other.

A group is called "<role>/<first block>-<last block>", or "<role>" outside the blocks; a tensor that
is alone in its group keeps its own name where groups are single tensors.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from gemcut.roles import role_of

Groups = Mapping[str, tuple[str, ...]]  # group -> tensors


def group_tensors(names: Collection[str], width: int) -> Groups:
    """Groups of one role over `width` blocks each; the last of them may have fewer."""
    last = max((role_of(name).layer or 0 for name in names), default=0)

    def group(name: str) -> str:
        role = role_of(name)
        if role.layer is None:
            return role.name
        first = role.layer - role.layer % width
        return f"{role.name}/{first}-{min(first + width - 1, last)}"

    return _by(group, names)


def groupings(names: Collection[str]) -> Iterator[Groups]:
    """All groupings, from the finest to the coarsest.

    From every tensor alone, over one role and block, to one role over all blocks.
    """
    yield _by(str, names)
    for width in range(1, _blocks(names) + 1):
        yield group_tensors(names, width)


def first_block(names: Collection[str]) -> int | None:
    """The block of a group in which its errors begin; None: before or after all blocks."""
    layers = [role_of(name).layer for name in names]
    return min((layer for layer in layers if layer is not None), default=None)


def _blocks(names: Collection[str]) -> int:
    return 1 + max((role_of(name).layer or 0 for name in names), default=0)


def _by(group: Callable[[str], str], names: Collection[str]) -> Groups:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(group(name), []).append(name)
    return {group: tuple(members) for group, members in found.items()}
