"""The worklist on the screen: fifty studies a page, in the order of the view worklist."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import RowMapping
from sqlalchemy.orm import Session
from starlette.responses import Response

from db import claims, lookup, worklist
from db.models import CATEGORIES, ReadingClaim
from db.session import read_scope
from db.worklist import Filter
from training.findings import FINDINGS
from worker.reasons import FLAG_SENTENCES
from worker.web.requests import Visit, is_refresh, whole_number
from worker.web.visibility import hidden_from

PAGE = 50  # studies
LAST_PAGE = 9_999_999  # more than any list has
LONGEST_NUMBER = 64  # characters of an accession number


@dataclass(frozen=True)
class Row:
    """One study of the list, as the page shows it. `scores`: whether this reader may see them now."""

    study: RowMapping
    film: int | None
    claim: ReadingClaim | None
    scores: bool

    @property
    def signature(self) -> str:
        """Changes when something of the row does that a reader should notice; its rank is none of it."""
        noticed = (self.study["category"], self.study["stat"], self.study["overdue"], self.study["flag"])
        return "|".join(map(str, (*noticed, self.claim.reader if self.claim else "")))


def show(visit: Visit) -> Response:
    """The page, or for a page that is open only the part that changes."""
    query = visit.request.query_params
    wanted, page = filter_of(query), page_of(query)
    if visit.settings.web.review_first:
        wanted = Filter(**{**vars(wanted), "finding": None})  # the filter alone would tell
    with read_scope(visit.engine) as session:
        part = worklist.part(session, wanted, offset=(page - 1) * PAGE, limit=PAGE)
        if part.total and not part.rows:  # the list has become shorter than this page's place in it
            page = -(-part.total // PAGE)
            part = worklist.part(session, wanted, offset=(page - 1) * PAGE, limit=PAGE)
        rows = _rows(session, visit, part.rows)
        read = _just_read(session, whole_number(query.get("read"))) if visit.me.may("reader") else None
    names: dict[str, Any] = {
        "rows": rows,
        "total": part.total,
        "page": page,
        "pages": max(1, -(-part.total // PAGE)),
        "wanted": wanted,
        "filtered": wanted != Filter(),
        "address": lambda number: address_of(wanted, page=number),
        "updated": datetime.now(UTC),
        "can_read": visit.me.may("reader"),
    }
    if is_refresh(visit.request):
        return visit.page("worklist_part.html.j2", **names)
    choices: dict[str, Any] = {"categories": CATEGORIES, "findings": FINDINGS, "flags": FLAG_SENTENCES}
    return visit.page("worklist.html.j2", read=read, **choices, **names)


def _rows(session: Session, visit: Visit, studies: Any) -> list[Row]:
    ids = [study["study_id"] for study in studies]
    films, held = lookup.first_films(session, ids), claims.holders(session, ids)
    hidden = hidden_from(session, visit, ids)
    return [Row(study, films.get(i), held.get(i), i not in hidden) for i, study in zip(ids, studies, strict=True)]


def _just_read(session: Session, study_id: int | None) -> Any:
    """The study that this reader has just marked as read, to undo it; None once it is not read any more."""
    study = None if study_id is None else lookup.study_of(session, study_id)
    found = None if study is None else lookup.place_of(session, study)
    return study if found and found[0].read_at is not None else None


def filter_of(query: Mapping[str, str]) -> Filter:
    """The filter that an address asks for; what it cannot mean is left out."""

    def known(name: str, choices: Any) -> str | None:
        return query[name] if query.get(name) in choices else None

    number = query.get("accession", "").strip()[:LONGEST_NUMBER]
    return Filter(
        category=known("category", CATEGORIES),
        finding=known("finding", FINDINGS),
        flag=known("flag", FLAG_SENTENCES),
        stat=query.get("stat") == "1",
        overdue=query.get("overdue") == "1",
        accession_number=number or None,
    )


def page_of(query: Mapping[str, str]) -> int:
    """The page's number, from 1."""
    number = whole_number(query.get("page"))
    return min(max(1, number or 1), LAST_PAGE)


def address_of(wanted: Filter, *, page: int = 1, path: str = "/") -> str:
    """The list's address with this filter."""
    pairs = {
        "category": wanted.category,
        "finding": wanted.finding,
        "flag": wanted.flag,
        "stat": "1" if wanted.stat else None,
        "overdue": "1" if wanted.overdue else None,
        "accession": wanted.accession_number,
        "page": str(page) if page > 1 else None,
    }
    query = urlencode({name: value for name, value in pairs.items() if value is not None})
    return f"{path}?{query}" if query else path
