"""Pages for a person: / to try the model, /memory to look after a memory, /docs to read the interface.

Nothing on them comes from another server.
"""

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from jinja2 import DictLoader, Environment

from .service import Service


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def page_routes(app: FastAPI, service: Service) -> APIRouter:
    """The pages of one application."""
    router = APIRouter(include_in_schema=False)
    names = ("page.html", "memory.html", "docs.html")
    templates = Environment(loader=DictLoader({name: _template(name) for name in names}), autoescape=True)

    async def page() -> Response:
        html = templates.get_template("page.html").render(
            name=service.settings.name,
            needs_key=bool(service.settings.api_keys),
            ready=service.ready,
            has_memory=service.settings.memory is not None,
        )
        return Response(html, media_type="text/html")

    async def memory() -> Response:
        html = templates.get_template("memory.html").render(strengths=service.settings.memory_strengths)
        return Response(html, media_type="text/html")

    async def docs() -> Response:
        schema = app.openapi()
        html = templates.get_template("docs.html").render(
            name=service.settings.name, about=schema["info"], groups=_groups(schema)
        )
        return Response(html, media_type="text/html")

    router.add_api_route("/", page, methods=["GET"])
    router.add_api_route("/docs", docs, methods=["GET"])
    assets = [("page.js", "text/javascript"), ("page.css", "text/css")]
    if service.settings.memory is not None:
        router.add_api_route("/memory", memory, methods=["GET"])
        assets.append(("memory.js", "text/javascript"))
    for name, kind in assets:
        router.add_api_route(f"/{name}", _asset(_template(name), kind), methods=["GET"])
    return router


def _asset(text: str, kind: str):
    async def asset() -> Response:
        return Response(text, media_type=kind)

    return asset


def _groups(schema: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The endpoints of an OpenAPI file by tag, each with the fields of its body."""
    groups: dict[str, list[dict[str, Any]]] = {}
    schemas = schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            named = schemas.get(str(body.get("$ref", "")).rpartition("/")[2], {})
            fields = [
                {"name": name, "kind": _kind(field), "required": name in named.get("required", ())}
                for name, field in named.get("properties", {}).items()
            ]
            groups.setdefault(about["tags"][0], []).append(
                {"method": method.upper(), "path": path, "about": about.get("description", ""), "fields": fields}
            )
    return groups


def _kind(field: dict[str, Any]) -> str:
    """The type of a field in a few words."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_kind(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(repr(choice) for choice in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", "anything"))
