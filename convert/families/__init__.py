"""The architectures that gemcut converts, one module each."""

from gemcut.convert.families import gemma4
from gemcut.convert.family import Family

FAMILIES: tuple[Family, ...] = (gemma4.FAMILY,)
