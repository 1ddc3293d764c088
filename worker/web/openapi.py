"""The API's description for programs (OpenAPI 3.1), and the limits that it states."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from training.findings import FINDINGS
from worker.reasons import FLAG_SENTENCES

PER_PAGE, MOST_PER_PAGE = 50, 500  # studies

_TYPES: Mapping[str, Mapping[str, Any]] = {
    "priority_rank": {"type": "integer"},
    "study_id": {"type": "integer"},
    "policy_version": {"type": "integer"},
    "urgency": {"type": "number"},
    "top_probability": {"type": "number"},
    "top_lift": {"type": "number"},
    "top_share": {"type": "number"},
    "stat": {"type": "boolean"},
    "overdue": {"type": "boolean"},
    "acquired_at": {"type": "string", "format": "date-time"},
    "received_at": {"type": "string", "format": "date-time"},
}
_ERRORS = {"401": {"description": "no valid token"}, "503": {"description": "the database does not answer; try again"}}


def openapi(columns: list[str]) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1); `columns` are those of the view worklist."""

    def parameter(name: str, text: str, **schema: Any) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": text, "schema": schema}

    row = {name: _TYPES.get(name, {"type": "string"}) for name in columns}
    listed = {"type": "array", "items": {"type": "object", "properties": row}}
    counts = {name: {"type": "integer"} for name in ("page", "per_page", "total")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nightread", "version": version("nightread")},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": {
            "/api/worklist": {
                "get": {
                    "summary": "The unread studies in reading order; a study has the columns of the view worklist.",
                    "parameters": [
                        parameter("page", "from 1", type="integer"),
                        parameter("per_page", f"at most {MOST_PER_PAGE}", type="integer", default=PER_PAGE),
                        parameter("category", "only this one", enum=["A", "B", "C", "D"]),
                        parameter("finding", "only with this top finding", enum=list(FINDINGS)),
                        parameter("flag", "only with this flag", enum=list(FLAG_SENTENCES)),
                        parameter("stat", "1: only STAT", enum=["1"]),
                        parameter("overdue", "1: only overdue", enum=["1"]),
                        parameter("accession", "how the accession number begins", type="string"),
                    ],
                    "responses": {
                        "200": _ok({"type": "object", "properties": {**counts, "studies": listed}}),
                        "400": {"description": "per_page is out of range, or a filter may not be used here"},
                        **_ERRORS,
                    },
                }
            },
            "/api/studies/{study_instance_uid}": {
                "get": {
                    "summary": "One study: state, place, findings with their part of the urgency, reviews. A study of "
                    "the blind share has no findings; nor has one that a reader must review first.",
                    "parameters": [
                        parameter("study_instance_uid", "its UID (0020,000D)", type="string")
                        | {"in": "path", "required": True}
                    ],
                    "responses": {
                        "200": _ok({"type": "object"}),
                        "404": {"description": "no study has this UID"},
                        **_ERRORS,
                    },
                }
            },
        },
    }


def _ok(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": "done", "content": {"application/json": {"schema": schema}}}
