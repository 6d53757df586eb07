"""The page and its files as they are sent: package data, from this origin alone, with an ETag each. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from gzip import compress
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from byhand.server.problems import ApiError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its bytes, plain and packed, its type, and a name for these very bytes."""

    body: bytes
    packed: bytes
    type: str
    etag: str


def asset_of(body: bytes, content_type: str) -> Asset:
    """Bytes with their ETag."""
    return Asset(body, compress(body, mtime=0), content_type, sha256(body).hexdigest()[:20])


@lru_cache(maxsize=64)
def find(name: str) -> Asset | None:
    """The file of this name in byhand/web, read once; None where there is none, or none to be sent."""
    suffix = PurePosixPath(name).suffix
    if suffix not in TYPES or "/" in name or name.startswith("."):
        return None
    found = files("byhand.web").joinpath(name)
    return asset_of(found.read_bytes(), TYPES[suffix]) if found.is_file() else None


def send(found: Asset, request: Request) -> Response:
    """The file, or 304 where the browser has it. `no-cache`: it asks each time, which costs one small answer."""
    is_packed = "gzip" in request.headers.get("accept-encoding", "")
    etag = f'"{found.etag}-gzip"' if is_packed else f'"{found.etag}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", "Content-Security-Policy": POLICY}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if is_packed:
        return Response(found.packed, headers={**headers, "content-type": found.type, "content-encoding": "gzip"})
    return Response(found.body, headers={**headers, "content-type": found.type})


async def index(request: Request) -> Response:
    """The page: see and steer every token."""
    found = find("index.html")
    assert found is not None
    return send(found, request)


async def web(name: str, request: Request) -> Response:
    """A file of the page."""
    found = find(name)
    if found is None:
        raise ApiError(404, "the page has no file of this name", code="not_found")
    return send(found, request)
