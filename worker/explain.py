"""Why: a file's way through the view filter, and a study's place in the reading order."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydicom import Dataset
from sqlalchemy import RowMapping
from sqlalchemy.orm import Session

from db import lookup, worklist
from db.finding_rules import rules_of, shares_by_finding
from db.models import Instance, Study
from db.session import read_scope
from training.imaging.dicom import PixelHeader, UnusablePixels, element_value, open_dataset, read_header
from worker.context import Context
from worker.intake.header import INTAKE_TAGS
from worker.intake.receive import path_digest
from worker.intake.view_evidence import text_of
from worker.intake.view_rules import ViewRules
from worker.intake.views import Skipped, View, evidence_lines, frontal
from worker.ranking import policy, priority
from worker.ranking.priority import BLIND
from worker.reasons import sentence
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, Failure
from worker.wording import category_meaning, percent, times, unusual

TableOf: TypeAlias = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # heading, columns, rows

NAMING_HINT = "NIGHTREAD_VIEW_WORDS can name the words of this site's devices"


class NothingToExplain(LookupError):
    """Neither a file nor a UID or accession number that the database knows."""


@dataclass(frozen=True)
class Explained:
    """A heading, facts as (name, value) pairs, and tables as (heading, columns, rows)."""

    heading: str
    facts: list[tuple[str, str]]
    tables: list[TableOf]
    structured: dict[str, Any] = field(default_factory=dict)  # the same for programs, of a file


def explain_file(context: Context, path: Path) -> Explained:
    """The view filter's opinion of one file, by today's settings, and what the ledger made of it: two things, for a
    film that the filter keeps may be in quarantine, and one that it skips may have been scored under other settings."""
    facts = [("path", os.path.realpath(path))]
    try:
        header = read_header(path, limits=context.pixel_limits, specific_tags=list(INTAKE_TAGS))
    except UnusablePixels as error:
        facts += [("filter", "refused before the filter"), ("reason", error.reason), ("because", str(error))]
        held = _held(context, path, None)
        return Explained("A file", [*facts, *_ledger_facts(held)], [], _structured(facts, held))
    uid = text_of(header, "SOPInstanceUID")
    facts += [("SOP Instance UID", uid or "-"), ("Study Instance UID", text_of(header, "StudyInstanceUID") or "-")]
    rules = ViewRules.of(context.settings)
    found = frontal(header, rules=rules)
    if isinstance(found, Skipped):
        facts += [("filter", "would skip it"), ("reason", found.reason), ("evidence", found.evidence)]
        facts += [("setting", setting) for setting in allowing_settings(header, rules)]
        facts += [("setting", NAMING_HINT)] if found.reason in ("view_unknown", "body_part_unknown") else []
    else:
        facts += [("filter", "would keep it"), ("view", found.view), ("evidence", found.evidence)]
        facts += [("flag", flag) for flag in found.flags]
        facts += _pixel_objection(path, context)
    held = _held(context, path, uid)
    lines = [(line,) for line in evidence_lines(header, rules=rules)]
    tables: list[TableOf] = [("What the filter consulted", ("attribute",), lines)]
    return Explained("A file", [*facts, *_ledger_facts(held)], tables, _structured(facts, held))


def allowing_settings(header: Dataset, rules: ViewRules) -> list[str]:
    """The settings under which the filter would keep an object that it skips; none where no setting would."""
    modality = text_of(header, "Modality").upper()
    wider = {"modalities": (*rules.modalities, modality)} if modality not in ("", *rules.modalities) else {}
    capture = {} if rules.allow_secondary_capture else {"allow_secondary_capture": True}
    for change in (wider, capture, wider | capture):
        if change and isinstance(frontal(header, rules=replace(rules, **change)), View):
            names = {
                "modalities": f"NIGHTREAD_MODALITIES={','.join((*rules.modalities, modality))}",
                "allow_secondary_capture": "NIGHTREAD_ALLOW_SECONDARY_CAPTURE=true",
            }
            return [f"{names[name]} would keep it" for name in change]
    return []


def _held(context: Context, path: Path, uid: str | None) -> dict[str, Any]:
    """A file in the database: the instance with its SOP Instance UID, or why the file was rejected."""
    with read_scope(context.engine) as session:
        rejected = lookup.rejection_of(session, path_digest(path))
        found = lookup.instance_named(session, uid) if uid else None
        if found is None:
            return {"state": "rejected", **rejected} if rejected else {"state": "unknown"}
        instance, study = found
        held = {
            "state": instance.state,
            "reason": instance.reason,
            "evidence": instance.evidence,
            "path": instance.path,
            "study_instance_uid": study.study_instance_uid,
            "study_state": study.state,
        }
        return held | ({"rejected": rejected} if rejected else {})


def _ledger_facts(held: dict[str, Any]) -> list[tuple[str, str]]:
    if held["state"] == "unknown":
        return [("ledger", "not registered: neither received nor rejected")]
    facts = [("ledger", held["state"])]
    if held["reason"]:
        facts.append(("ledger's reason", f"{held['reason']}: {sentence(held['reason'])}"))
    if "study_state" in held:
        facts += [("its study", held["study_state"]), ("ledger's path", held["path"])]
    if rejected := held.get("rejected"):
        facts.append(("this file", f"rejected, {rejected['reason']}: {rejected['detail']}"))
    return facts


def _structured(facts: list[tuple[str, str]], held: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {name.replace(" ", "_").lower(): value for name, value in facts if name != "flag"}
    named["flags"] = [value for name, value in facts if name == "flag"]
    return {"file": named, "ledger": held}


def _pixel_objection(path: Path, context: Context) -> list[tuple[str, str]]:
    """The file's reason against decoding, if any."""
    try:
        PixelHeader.of(open_dataset(path, limits=context.pixel_limits), limits=context.pixel_limits)
    except UnusablePixels as error:
        return [("but", f"{error.reason}: {error}")]
    return []


def explain_named(context: Context, name: str) -> Explained:
    """A study's rank and what made it, by its Study Instance UID, the SOP Instance UID of one of its films, or its
    accession number. Raises NothingToExplain for an unknown one, or an accession number of several studies."""
    with read_scope(context.engine) as session:
        study = lookup.study_named(session, name)
        if study is None:
            raise NothingToExplain(
                "no such file, and no study or film in the database has this UID, nor exactly one this number: "
                "give the Study Instance UID of one that shares its number; `nightread worklist --wide` lists them"
            )
        return _explain_study(session, study)


def _explain_study(session: Session, study: Study) -> Explained:
    facts = [("study", study.study_instance_uid), ("state", study.state)]
    facts += [("reason", f"{study.reason}: {study.detail or sentence(study.reason)}")] if study.reason else []
    tables = [_instances_table(lookup.instances_of(session, study))]
    found = lookup.place_of(session, study)
    if found is None:
        return Explained("Not on the worklist", [*facts, ("why", "nothing in it can be a chest film")], tables)
    place, stored, checkpoint = found
    facts += _rank_facts(worklist.place(session, study.id))
    facts += [("flag", place.flag)] if place.flag else []
    facts += [("policy", f"version {stored.version}")] if stored else []
    facts += [("category", f"{place.category}: {sentence(place.flag)}")] if place.flag else []
    if place.flag == BLIND:
        return Explained("Blind", facts, tables)
    if stored is None or checkpoint is None:
        return Explained("Not scored", facts, tables)
    facts.append(("checkpoint", f"{checkpoint.network}, digest {checkpoint.short}"))
    rules = policy.from_rows(session, stored)
    films = lookup.film_probabilities(session, study, checkpoint)
    probabilities = [float(p) for p in priority.study_probabilities(films)]
    thresholds = policy.checkpoint_thresholds(checkpoint.header)
    because = _category_rule(probabilities, rules, thresholds)
    shares = shares_by_finding(rules_of(session, policy_id=stored.id, checkpoint_id=checkpoint.id), place.category)
    if place.flag:
        facts.append(("what was seen", f"category {priority.category(probabilities, rules, thresholds)}: {because}"))
    else:
        facts.append(("category", f"{place.category}: {because}"))
    facts.append((f"category {place.category} is", category_meaning(place.category, shares)))
    parts = worklist.parts(session, study.id)
    facts += [("first finding", _in_words(part)) for part in parts if part["finding"] == place.top_finding]
    tables.append(_parts_table(parts))
    return Explained("Why it stands where it stands", facts, tables)


def _rank_facts(own: RowMapping | None) -> list[tuple[str, str]]:
    if own is None:
        return [("rank", "none: it has been read")]
    facts = [("rank", f"{own['priority_rank']}"), ("urgency", f"{own['urgency']:.3f}")]
    facts.append(("has waited", f"{own['waited_minutes']:.0f} min"))
    facts += [("STAT", "yes, by a human")] if own["stat"] else []
    facts += [("overdue", "yes")] if own["overdue"] else []
    if (because := own["above_next_because"]) is not None:
        facts.append(("before the next", priority.RULES[because]))
    return facts


def _category_rule(probabilities: list[float], rules: priority.Policy, thresholds: dict[str, float]) -> str:
    deciding = priority.deciding_findings(probabilities, rules, thresholds)
    return f"{', '.join(deciding)} at or above threshold" if deciding else "no finding reaches its threshold"


def _instances_table(instances: Sequence[Instance]) -> TableOf:
    rows = [(i.view or "-", i.state, i.reason or "-", i.evidence or "-", i.flags or "-") for i in instances]
    return ("Its instances", ("view", "state", "reason", "evidence", "flags"), rows)


def _parts_table(parts: Sequence[RowMapping]) -> TableOf:
    columns = ("finding", "probability", "x usual", "top", "weight", "adds", "threshold")
    rows = [
        (
            part["finding"],
            f"{part['probability']:.3f}",
            times(part["lift"]),
            percent(part["share"]),
            f"{part['weight']:.2f}",
            f"{part['contribution']:.4f}",
            "-" if part["threshold"] is None else f"{part['threshold']:.3f}",
        )
        for part in parts
    ]
    return ("What adds to its urgency", columns, rows)


def _in_words(part: RowMapping) -> str:
    beside = unusual(part["lift"], part["share"])
    return f"{part['finding']}, probability {part['probability']:.3f}" + (f": {beside}" if beside else "")


# ------------------------------------------------------------------------------------------------------- heat maps


class NoFilm(LookupError):
    """There is no film to draw on; the text says why."""


def write_heatmaps(context: Context, what: str, folder: Path, *, layers: bool) -> list[Path]:
    """Heat maps of findings at their thresholds, and with `layers` every filter of every layer, as PNG files in
    `folder`; their paths.

    `what` is a file, a SOP Instance UID, or a Study Instance UID (its first film). Raises NoFilm.
    """
    from training.checkpoint import load_checkpoint
    from training.explain import write_pictures

    live = context.live()
    checkpoint = load_checkpoint(live.path, expected_digest=live.digest)
    options = DecodeOptions.of(context, checkpoint.preprocessing)
    if os.path.isfile(what):  # noqa: PTH113 - Path.is_file raises where a folder above is closed
        film, options = _film_in(context, Path(what)), replace(options, roots=())  # whoever names it may read it
    else:
        film = _film_named(context, what)
    with DecoderPool(options, decoders=1) as decoders:
        decoded = decoders.submit(*film).awaited()
    if isinstance(decoded, Failure):
        raise NoFilm(f"no picture can be drawn: {decoded.sentence}")
    thresholds = priority.thresholds_in_force(live.policy, live.thresholds)
    return write_pictures(checkpoint, decoded.image, folder, thresholds=thresholds, layers=None if layers else ())


def _film_in(context: Context, file: Path) -> tuple[str, str, str | None]:
    """Where a film lies, its SOP Instance UID, and no pixels that it must have."""
    try:
        header = read_header(file, limits=context.pixel_limits, specific_tags=["SOPInstanceUID"])
    except UnusablePixels as error:
        raise NoFilm(f"no picture can be drawn: {error}") from error
    return os.path.realpath(file), str(element_value(header, "SOPInstanceUID") or ""), None


def _film_named(context: Context, what: str) -> tuple[str, str, str | None]:
    """Where a registered film lies, and the SOP Instance UID and the pixels (None: any) that must still lie there."""
    with read_scope(context.engine) as session:
        study = lookup.study_named(session, what)
        films = [] if study is None else [i for i in lookup.instances_of(session, study) if i.view is not None]
    named = [film for film in films if film.sop_instance_uid == what] or films
    if not named:
        raise NoFilm("there is no frontal film here to draw on")
    return named[0].path, named[0].sop_instance_uid, named[0].pixel_digest
