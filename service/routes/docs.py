"""GET /openapi.json and /docs: every route described, for machines and for people.

The page is Swagger UI out of the package `fastapi_swagger`, of which nothing but its files is used:
FastAPI's own page has a browser fetch them from elsewhere, which behind a firewall shows nothing.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response

router = APIRouter(include_in_schema=False)

LIBRARY, STYLE, ICON = FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
START_FILE = "start.js"
# Paths are relative, so that the page works under a proxy's prefix, too.
PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Test-Time Clustering</title>
<link rel="stylesheet" href="docs/{STYLE}">
<link rel="icon" href="docs/{ICON}">
</head>
<body>
<div id="routes"></div>
<script src="docs/{LIBRARY}"></script>
<script src="docs/{START_FILE}"></script>
</body>
</html>
"""
# Without `validatorUrl` the page would have swagger.io look at the description.
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#routes",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""
# Swagger UI writes styles into the page, and has its icons as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff"}


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """The description of every route."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The same as a page, which loads nothing from elsewhere."""
    return HTMLResponse(PAGE, headers={**HEADERS, "Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def page_file(name: str) -> Response:
    """What the page is made of."""
    if name == START_FILE:
        return Response(START, headers=HEADERS, media_type="text/javascript")
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(Path(str(files("fastapi_swagger.resources") / name)), headers=HEADERS)
