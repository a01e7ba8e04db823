"""The page to chat on: one file without anything from elsewhere, which its headers enforce."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def page() -> Response:
    """GET /."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(text, media_type="text/html", headers=headers)


@cache
def _page() -> tuple[str, str]:
    """The page and its policy: what is in it runs, and talks to this server alone."""
    text = resources.files("gemcut.runtime.server").joinpath("page.html").read_text("utf-8")
    hashes = {kind: f"'sha256-{_hash(content)}'" for kind, content in _INLINE.findall(text)}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _hash(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
