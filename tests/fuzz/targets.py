"""All targets, by kind."""

from tests.fuzz import engine, files, kept, texts, web
from tests.fuzz.target import Target

TARGETS: tuple[Target, ...] = (
    *files.TARGETS,
    *kept.TARGETS,
    *texts.TARGETS,
    *engine.TARGETS,
    *web.TARGETS,
)
