"""The view filter: each rule is a row, each row a header as real devices and converters write it."""

import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import IGNORE
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID

from worker.intake.view_rules import ViewRules
from worker.intake.view_words import BUILT_IN, VIEW_CODES, Words
from worker.intake.views import FLAGS, HEADER_TAGS, Skipped, View, evidence_lines, frontal
from worker.reasons import VIEW_SENTENCES
from worker.setting_groups import ViewWords

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
DX_RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CAPTURES_ALLOWED = ViewRules(allow_secondary_capture=True)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")  # the garbage below is meant to be garbage


def code(value: str, meaning: str = "", *, modifier: Dataset | None = None) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    if modifier is not None:
        item.ViewModifierCodeSequence = Sequence([modifier])
    return item


def header(**attributes: Any) -> Dataset:
    """A CR chest film with ViewPosition PA, changed by `attributes`; None takes an attribute away."""
    dataset = Dataset()
    usual = {"SOPClassUID": CR, "Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    for keyword, value in (usual | attributes).items():
        if value is not None:
            vr = dictionary_VR(keyword)
            dataset.add(DataElement(Tag(keyword), vr, Sequence(value) if vr == "SQ" else value, validation_mode=IGNORE))
    return dataset


def chest(**attributes: object) -> Dataset:
    """A CR chest film whose View Position is empty, as in about 4 % of real ones."""
    return header(**{"ViewPosition": ""} | attributes)


KEPT = [
    # explicit view
    (header(), "PA", "ViewPosition=PA; BodyPartExamined=CHEST"),
    (header(SOPClassUID=DX, Modality="DX", PresentationIntentType="FOR PRESENTATION", ViewPosition="AP"), "AP", "=AP"),
    (header(Modality="DR"), "PA", "ViewPosition=PA"),
    (header(ViewPosition=" pa\0"), "PA", "ViewPosition=pa"),
    (header(ViewPosition="AP SUPINE"), "AP", "ViewPosition=AP SUPINE"),
    (header(ViewPosition="P.A."), "PA", "ViewPosition=P.A."),
    (header(ViewPosition=["AP", "AP"]), "AP", "ViewPosition=AP\\AP"),
    # coded view
    (chest(ViewCodeSequence=[code("R-10206")]), "AP", "ViewCodeSequence=R-10206"),
    (chest(ViewCodeSequence=[code("399348003", "antero-posterior")]), "AP", "ViewCodeSequence=399348003"),
    (chest(ViewCodeSequence=[code("R-10214", "postero-anterior")]), "PA", "ViewCodeSequence=R-10214"),
    (chest(ViewCodeSequence=[code("272479007")]), "PA", "ViewCodeSequence=272479007"),
    (chest(ViewCodeSequence=[code("LOCAL7", "Postero-anterior")]), "PA", "ViewCodeSequence=LOCAL7"),
    (chest(ViewCodeSequence=[code("R-10206", modifier=code("111069", "Crosstable"))]), "AP", "R-10206"),
    (header(ViewCodeSequence=[]), "PA", "ViewPosition=PA"),
    # what converters and consoles write instead
    (chest(PatientPosition="AP"), "AP", "PatientPosition=AP"),
    (chest(AcquisitionDeviceProcessingDescription="CHEST,P-A"), "PA", "AcquisitionDeviceProcessingDescription="),
    (chest(SeriesDescription="W033 Chest a.p."), "AP", "SeriesDescription="),
    (chest(ProtocolName="Thorax PA stehend"), "PA", "ProtocolName="),
    (chest(PerformedProtocolCodeSequence=[code("77", "Chest PA")]), "PA", "PerformedProtocolCodeSequence="),
    (chest(SeriesDescription="Tórax póstero-anterior"), "PA", "SeriesDescription=Tórax"),
    (chest(SeriesDescription="胸部 前后位"), "AP", "SeriesDescription="),
    # body part from elsewhere
    (header(BodyPartExamined="PORT CHEST"), "PA", "BodyPartExamined=PORT CHEST"),
    (header(BodyPartExamined="chest "), "PA", "BodyPartExamined=chest"),
    (header(BodyPartExamined="THORAX"), "PA", "BodyPartExamined=THORAX"),
    (header(BodyPartExamined="LUNG"), "PA", "BodyPartExamined=LUNG"),
    (header(BodyPartExamined="", StudyDescription="RX Torace 2 pr."), "PA", "StudyDescription="),
    (header(BodyPartExamined=None, AnatomicRegionSequence=[code("51185008")]), "PA", "AnatomicRegionSequence=51185008"),
    (header(BodyPartExamined=None, AnatomicRegionSequence=[code("T-D3000")]), "PA", "AnatomicRegionSequence="),
    (header(BodyPartExamined="", SeriesDescription="Poumon face"), "PA", "SeriesDescription=Poumon face"),
    (header(BodyPartExamined="BUCKY 1", ProtocolName="Lunge"), "PA", "ProtocolName=Lunge"),
    # re-encoded films call themselves derived
    (header(ImageType=["DERIVED", "PRIMARY"], DerivationDescription="JPEG 2000 lossy 10:1"), "PA", "ViewPosition=PA"),
    # study texts that list several views say nothing of this one
    (header(StudyDescription="XR CHEST PA AND LATERAL"), "PA", "ViewPosition=PA"),
    (header(StudyDescription="CHEST AND LEFT HIP"), "PA", "BodyPartExamined=CHEST"),
    (header(StudyDescription="No Finding"), "PA", "ViewPosition=PA"),
    (header(SeriesDescription="Chest PA bilateral apical pneumothorax"), "PA", "ViewPosition=PA"),
    (header(SeriesDescription="Chest 6 feet PA"), "PA", "ViewPosition=PA"),
    (header(PatientOrientation=["L", "F"]), "PA", "ViewPosition=PA"),
]

FLAGGED = [
    (header(PatientOrientation=["A", "F"]), "PA", {"view_contradicted"}),
    (header(SeriesDescription="CHEST LAT"), "PA", {"view_contradicted"}),
    (header(SeriesDescription="Chest AP"), "PA", {"ap_or_pa_contradicted"}),
    (header(StudyDescription="XR ABDOMEN"), "PA", {"body_part_contradicted"}),
    (header(Modality=""), "PA", {"modality_missing"}),
    (header(SOPClassUID=None), "PA", {"sop_class_missing"}),
    (header(ImageType=["DERIVED", "SECONDARY"]), "PA", {"image_type_secondary"}),
    (header(PatientOrientation=["R", "F"]), "PA", {"not_upright"}),
    (header(PatientOrientation=["L", "H"]), "PA", {"not_upright"}),
    (chest(SeriesDescription="Thorax face"), "frontal", {"ap_or_pa_unknown"}),
    (chest(SeriesDescription="胸部正位"), "frontal", {"ap_or_pa_unknown"}),
    (chest(ViewCodeSequence=[code("399033003", "frontal")]), "frontal", {"ap_or_pa_unknown"}),
    (chest(SeriesDescription="CHEST AP/PA"), "frontal", {"ap_or_pa_unknown"}),
    (chest(SeriesDescription="Chest frontal", StudyDescription="CXR AP"), "AP", set()),
    (chest(StudyDescription="CHEST (PORTABLE AP)"), "AP", {"view_from_study_text"}),
    (chest(StudyDescription="Thorax Bettaufnahme"), "AP", {"ap_inferred"}),
    (chest(SeriesDescription="Chest portable"), "AP", {"ap_inferred"}),
    (chest(ProtocolName="Thorax liegend"), "AP", {"ap_inferred"}),
    (chest(SeriesDescription="Tórax decúbito supino"), "AP", {"ap_inferred"}),
]

SKIPPED = [
    # kind of object; what it plainly is comes before how it was made
    (header(SOPClassUID=CT, Modality="CT"), "modality_not_accepted", "Modality=CT", False),
    (header(SOPClassUID=SECONDARY_CAPTURE, Modality="CT"), "modality_not_accepted", "Modality=CT", False),
    (header(Modality="PR"), "modality_not_accepted", "Modality=PR", False),
    (header(SOPClassUID=CT, Modality="DX"), "sop_class_not_accepted", "SOPClassUID=CT Image Storage", False),
    (header(SOPClassUID="1.2.3", Modality="CR"), "sop_class_not_accepted", "SOPClassUID=1.2.3", False),
    (header(SOPClassUID=None, Modality=None), "modality_unknown", "Modality=(empty)", True),
    (Dataset(), "modality_unknown", "Modality=(empty)", False),
    # animals
    (header(PatientSpeciesDescription="Canine"), "not_human", "PatientSpeciesDescription=Canine", False),
    (
        header(PatientSpeciesCodeSequence=[code("388490000", "Canis")]),
        "not_human",
        "PatientSpeciesCodeSequence=",
        False,
    ),
    (header(AnatomicalOrientationType="QUADRUPED"), "not_human", "AnatomicalOrientationType=QUADRUPED", False),
    (header(SeriesDescription="FELINE THORAX VD"), "not_human", "SeriesDescription=FELINE THORAX VD", False),
    # body part
    (
        header(BodyPartExamined="EXTREMITY", ViewPosition="AP"),
        "body_part_not_chest",
        "BodyPartExamined=EXTREMITY",
        False,
    ),
    (header(BodyPartExamined="RIBCAGE"), "body_part_not_chest", "BodyPartExamined=RIBCAGE", False),
    (header(BodyPartExamined="TSPINE"), "body_part_not_chest", "BodyPartExamined=TSPINE", False),
    (header(BodyPartExamined="THORACIC SPINE"), "body_part_not_chest", "BodyPartExamined=THORACIC SPINE", False),
    (
        header(BodyPartExamined="", StudyDescription="Rachis thoracique"),
        "body_part_not_chest",
        "StudyDescription=",
        False,
    ),
    (header(BodyPartExamined="HAND", SOPClassUID=SECONDARY_CAPTURE), "body_part_not_chest", "BodyPart", False),
    (
        header(BodyPartExamined=None, AnatomicRegionSequence=[code("T-D8700", "Hand")]),
        "body_part_not_chest",
        "",
        False,
    ),
    (header(BodyPartExamined="CHESTABDOMEN"), "body_part_mixed", "BodyPartExamined=CHESTABDOMEN", True),
    (header(BodyPartExamined="", SeriesDescription="Babygram"), "body_part_mixed", "SeriesDescription=Babygram", True),
    (header(SeriesDescription="RIBS LEFT"), "body_part_contradictory", "CHEST but SeriesDescription=RIBS LEFT", True),
    (header(BodyPartExamined="ABDOMEN", SeriesDescription="Chest PA"), "body_part_contradictory", "but Series", True),
    (header(BodyPartExamined=""), "body_part_unknown", "BodyPartExamined=(empty)", True),
    (header(BodyPartExamined="BUCKY 1"), "body_part_unknown", "BodyPartExamined=BUCKY 1", True),
    # view
    (header(ViewPosition="LL"), "lateral_view", "ViewPosition=LL", True),
    (header(ViewPosition="LATERAL", PatientOrientation=["L", "F"]), "lateral_view", "ViewPosition=LATERAL", True),
    (header(ViewPosition="RL", SOPClassUID=SECONDARY_CAPTURE), "lateral_view", "ViewPosition=RL", True),
    (chest(ViewCodeSequence=[code("R-10236")]), "lateral_view", "ViewCodeSequence=R-10236", True),
    (chest(ViewCodeSequence=[code("399173006", "left lateral")]), "lateral_view", "ViewCodeSequence=399173006", True),
    (chest(AcquisitionDeviceProcessingDescription="CHEST,LATERAL"), "lateral_view", "AcquisitionDevice", True),
    (chest(SeriesDescription="Thorax seitlich"), "lateral_view", "SeriesDescription=Thorax seitlich", True),
    (chest(SeriesDescription="Torace LL"), "lateral_view", "SeriesDescription=Torace LL", True),
    (chest(SeriesDescription="Thorax profil"), "lateral_view", "SeriesDescription=Thorax profil", True),
    (chest(SeriesDescription="Chest lateral portable"), "lateral_view", "SeriesDescription=", True),
    (chest(PatientOrientation=["A", "F"]), "lateral_view", "PatientOrientation=A\\F", True),
    (chest(PatientOrientation=["P", "F"]), "lateral_view", "PatientOrientation=P\\F", True),
    (header(ViewPosition="LAO"), "oblique_view", "ViewPosition=LAO", True),
    (chest(SeriesDescription="Chest PA oblique"), "oblique_view", "SeriesDescription=Chest PA oblique", True),
    (chest(PatientOrientation=["LA", "F"]), "oblique_view", "PatientOrientation=LA\\F", True),
    (header(ViewPosition="AP LLD"), "special_view", "ViewPosition=AP LLD", True),
    (header(ViewPosition="AP AXIAL"), "special_view", "ViewPosition=AP AXIAL", True),
    (chest(SeriesDescription="AP lordotic chest"), "special_view", "SeriesDescription=AP lordotic chest", True),
    (chest(SeriesDescription="Chest left lateral decubitus"), "special_view", "SeriesDescription=", True),
    (chest(ViewCodeSequence=[code("R-10206", modifier=code("399196006"))]), "special_view", "R-10206", True),
    (header(ViewCodeSequence=[code("R-10236")]), "view_contradictory", "PA but ViewCodeSequence=R-10236", True),
    (header(SeriesDescription="Chest LAT", PatientOrientation=["A", "F"]), "view_contradictory", "PA but Series", True),
    (chest(SeriesDescription="Chest PA", ProtocolName="Chest LAT"), "view_contradictory", "but ProtocolName", True),
    (chest(), "view_unknown", "ViewPosition=(empty)", True),
    (chest(PatientPosition="XX"), "view_unknown", "PatientPosition=XX", True),
    (chest(PatientPosition="HFS"), "view_unknown", "PatientPosition=HFS", True),
    (chest(PatientOrientation=["L", "F"]), "view_unknown", "PatientOrientation=L\\F", True),
    (chest(SeriesDescription="CHEST PA/LAT"), "view_unknown", "ViewPosition=(empty)", True),
    (chest(StudyDescription="CHEST PA AND LATERAL PORTABLE"), "view_unknown", "ViewPosition=(empty)", True),
    (chest(StudyDescription="CHEST 2 VIEWS PORTABLE"), "view_unknown", "ViewPosition=(empty)", True),
    (chest(SeriesDescription="胸部正侧位"), "view_unknown", "ViewPosition=(empty)", True),
    (chest(StudyDescription="Chest PA catheter placement"), "view_unknown", "ViewPosition=(empty)", True),
    (chest(StudyDescription="LL pneumonia, chest"), "view_unknown", "ViewPosition=(empty)", True),
    # kind of image
    (header(SOPClassUID=DX_RAW, Modality="DX"), "for_processing", "SOPClassUID=Digital X-Ray Image", True),
    (header(PresentationIntentType="FOR PROCESSING"), "for_processing", "PresentationIntentType=FOR PROCESSING", True),
    (header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "processed_image", "ImageType=ORIGINAL", True),
    (header(DerivationDescription="Bone suppressed"), "processed_image", "DerivationDescription=Bone", True),
    (header(SeriesDescription="Chest PA soft tissue"), "processed_image", "SeriesDescription=Chest", True),
    (header(SOPClassUID=SECONDARY_CAPTURE), "secondary_capture", "SOPClassUID=Secondary Capture", True),
    (header(SOPClassUID=f"{SECONDARY_CAPTURE}.2"), "secondary_capture", "Multi-frame Grayscale Byte", True),
]


def named(row: tuple[Any, ...]) -> str:
    return " ".join(f"{e.keyword}={e.value!r:.40}" for e in row[0] if e.keyword not in {"SOPClassUID", "Modality"})


@pytest.mark.parametrize(("film", "view", "evidence"), KEPT, ids=map(named, KEPT))
def test_a_frontal_chest_film_is_kept_with_its_evidence_and_no_flag(film: Dataset, view: str, evidence: str) -> None:
    decision = frontal(film)
    assert isinstance(decision, View), decision
    assert decision.view == view
    assert evidence in decision.evidence
    assert decision.flags == ()


@pytest.mark.parametrize(("film", "view", "flags"), FLAGGED, ids=map(named, FLAGGED))
def test_a_doubt_that_does_not_refuse_a_film_is_flagged(film: Dataset, view: str, flags: set[str]) -> None:
    decision = frontal(film)
    assert isinstance(decision, View), decision
    assert decision.view == view
    assert set(decision.flags) - {"view_from_study_text"} == flags - {"view_from_study_text"}
    assert flags <= set(decision.flags) <= FLAGS.keys()


@pytest.mark.parametrize(("film", "reason", "evidence", "in_scope"), SKIPPED, ids=map(named, SKIPPED))
def test_everything_else_is_skipped_with_its_reason(film: Dataset, reason: str, evidence: str, in_scope: bool) -> None:
    decision = frontal(film)
    assert isinstance(decision, Skipped), decision
    assert (decision.reason, decision.in_scope) == (reason, in_scope)
    assert evidence in decision.evidence


def test_the_table_has_a_row_for_every_reason_and_every_flag() -> None:
    assert {reason for _, reason, _, _ in SKIPPED} == VIEW_SENTENCES.keys()
    allowed = frontal(header(SOPClassUID=SECONDARY_CAPTURE), rules=CAPTURES_ALLOWED)
    assert isinstance(allowed, View)
    assert set().union(allowed.flags, *(flags for _, _, flags in FLAGGED)) == FLAGS.keys()


def exercise(**attributes: object) -> Dataset:
    """NIH films as a well-known course converted them: a secondary capture, and the view in Patient Position."""
    usual = {"SOPClassUID": SECONDARY_CAPTURE, "Modality": "DX", "ViewPosition": None, "PatientPosition": "PA"}
    return header(**usual | attributes)


@pytest.mark.parametrize(
    ("film", "by_default", "with_captures_allowed"),
    [
        (exercise(StudyDescription="No Finding"), "secondary_capture", "PA"),
        (exercise(StudyDescription="Cardiomegaly", PatientPosition="AP"), "secondary_capture", "AP"),
        (exercise(StudyDescription="Effusion"), "secondary_capture", "PA"),
        (exercise(BodyPartExamined="RIBCAGE"), "body_part_not_chest", "body_part_not_chest"),
        (exercise(Modality="CT"), "modality_not_accepted", "modality_not_accepted"),
        (exercise(PatientPosition="XX"), "secondary_capture", "view_unknown"),
    ],
)
def test_secondary_captures_are_read_only_where_a_setting_allows_them(
    film: Dataset, by_default: str, with_captures_allowed: str
) -> None:
    assert outcome(frontal(film)) == by_default
    assert outcome(frontal(film, rules=CAPTURES_ALLOWED)) == with_captures_allowed


def outcome(decision: View | Skipped) -> str:
    return decision.view if isinstance(decision, View) else decision.reason


def test_a_site_chooses_its_modalities_and_may_trust_patient_orientation() -> None:
    assert outcome(frontal(header(Modality="RG"), rules=ViewRules(modalities=("RG",)))) == "PA"
    assert outcome(frontal(header(), rules=ViewRules(modalities=("RG",)))) == "modality_not_accepted"
    trusting = ViewRules(trust_patient_orientation=True)
    assert outcome(frontal(chest(PatientOrientation=["L", "F"]), rules=trusting)) == "frontal"
    assert outcome(frontal(header(ViewPosition="LL", PatientOrientation=["L", "F"]), rules=trusting)) == "lateral_view"


def test_a_dicomdir_is_named_by_its_file_meta_information() -> None:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    assert outcome(frontal(film)) == "sop_class_not_accepted"


def test_the_trace_names_what_each_attribute_says_and_ends_with_the_outcome() -> None:
    kept = evidence_lines(header(SeriesDescription="Chest LAT"))
    assert "ViewPosition=PA says PA" in kept
    assert "SeriesDescription=Chest LAT says lateral" in kept
    assert any(line.startswith("view_contradicted: ") for line in kept)
    assert kept[-1] == "kept as PA"
    assert evidence_lines(header(ViewPosition="LL"))[-1].startswith("skipped, lateral_view: ")


@pytest.mark.parametrize(
    ("text", "views"),
    [
        ("PAIN, APPARENT, LATENT, BILATERAL, LATERALITY, PANORAMA", set()),
        ("chest_pa-1", {"PA"}),
        ("ThoraxAP", {"AP"}),
        ("posteroanterior", {"PA"}),
        ("ТОРАКС боковая проекция", {"lateral"}),
        ("側臥位", {"special"}),
        ("chest p/a & lat", {"PA", "lateral"}),
    ],
)
def test_views_are_whole_words(text: str, views: set[str]) -> None:
    assert BUILT_IN.views_in(text) == views


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(
            (word, "chest")
            for word in ("TÓRAX", "Lungenübersicht Lunge", "органы грудной клетки", "Akciğer", "胸部", "흉부")
        ),
        *((word, "other") for word in ("Brustwirbelsäule", "Colonna dorsale", "Hüfte", "épaule", "C SPINE", "XR ABD")),
        *((word, None) for word in ("", "UNKNOWN", "HANDED OVER", "RIBBON", "\N{REPLACEMENT CHARACTER}")),
    ],
)
def test_body_parts_are_known_in_many_languages(text: str, part: str | None) -> None:
    assert BUILT_IN.body_part_in(text) == part


@pytest.mark.parametrize(
    ("attributes", "without", "outcome_with"),
    [
        ({"ViewPosition": None, "SeriesDescription": "Chest Rö-Kassette"}, "view_unknown", "AP"),
        ({"ViewPosition": None, "SeriesDescription": "Chest Standaufnahmen"}, "view_unknown", "PA"),
        ({"BodyPartExamined": None, "SeriesDescription": "Herzfernaufnahme"}, "body_part_unknown", "PA"),
        ({"SeriesDescription": "Chest Hartstrahl/Stufe"}, "PA", "processed_image"),
        ({"ViewPosition": None, "SeriesDescription": "Chest Querlage"}, "view_unknown", "special_view"),
        ({"ViewPosition": None, "SeriesDescription": "Chest Standbein"}, "view_unknown", "view_unknown"),
        ({"ViewPosition": None, "SeriesDescription": "Chest lateral"}, "lateral_view", "lateral_view"),
    ],
)
def test_a_sites_words_are_added_to_the_built_in_ones(attributes, without, outcome_with) -> None:
    own = ViewWords(AP=["rö kassette"], PA=["Standauf*"], chest=["HERZFERN*"], processed=["hartstrahl-stufe"],
                    special=["Querlage"])  # fmt: skip
    assert outcome(frontal(header(**attributes))) == without
    assert outcome(frontal(header(**attributes), rules=ViewRules(words=Words.of(own)))) == outcome_with


def test_rules_with_other_words_have_another_digest_and_their_order_does_not_matter() -> None:
    one, other = ViewWords(AP=["BETT", "LIEGE"], PA=["STAND"]), ViewWords(PA=["STAND"], AP=["LIEGE", "BETT", "BETT"])
    assert ViewRules(words=Words.of(one)).digest == ViewRules(words=Words.of(other)).digest
    assert ViewRules(words=Words.of(one)).digest != ViewRules().digest == ViewRules(words=Words.of(ViewWords())).digest


@pytest.mark.slow
def test_view_codes_are_those_of_the_standard() -> None:
    from pydicom.sr.codedict import codes

    standard = {concept.value: concept.meaning.lower() for concept in codes.cid4010.concepts.values()}
    ours = {code for code in VIEW_CODES if code.isdigit()}
    assert ours <= standard.keys()
    assert {code: VIEW_CODES[code] for code in ours} == {code: projection_of(standard[code]) for code in ours}
    left_out = {projection_of(meaning) for code, meaning in standard.items() if code not in ours}
    assert not left_out & {"AP", "PA", "frontal", "lateral"}, "no plain view of the chest is missing"


def projection_of(meaning: str) -> str | None:
    """The projection that a meaning of CID 4010 names; None for those of skull and foot, and angled obliques."""
    plain = {"antero-posterior": "AP", "postero-anterior": "PA", "frontal": "frontal", "sagittal": "lateral"}
    angled = {"axial", "cranio-caudal", "caudo-cranial", "frontal-oblique axial", "tangential"}
    if meaning in plain or meaning in angled:
        return plain.get(meaning, "special")
    if meaning.endswith(" oblique") or meaning in {"oblique", "medial oblique"}:
        return "oblique"
    return "lateral" if set(meaning.replace("-", " ").split()) <= {"lateral", "medial", "left", "right"} else None


@pytest.mark.slow
def test_older_view_codes_name_the_projection_of_the_code_that_took_their_place() -> None:
    from pydicom.sr.coding import Code

    newer = [code for code in VIEW_CODES if code.isdigit()]
    for old in VIEW_CODES.keys() - newer - {"R-10214"}:  # retired before SNOMED CT's codes came in
        same = [VIEW_CODES[code] for code in newer if Code(code, "SCT", "") == Code(old, "SRT", "")]
        assert same == [VIEW_CODES[old]], old


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(HEADER_TAGS),
        st.tuples(
            st.sampled_from(["CS", "LO", "UI", "US", "FD", "UN", "SQ", "PN", "DS", "AT", "??"]),
            st.binary(max_size=24),
        ),
    )
)
def test_no_garbage_makes_the_filter_raise(elements: dict[str, tuple[str, bytes]]) -> None:
    film = Dataset()
    for keyword, (vr, value) in elements.items():
        film[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decision = frontal(film)
        assert evidence_lines(film)
    assert decision.evidence.isprintable()


@pytest.mark.parametrize("keyword", ["ViewPosition", "BodyPartExamined", "PatientOrientation", "ViewCodeSequence"])
@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("SQ", []),
        ("SQ", [Dataset()]),
        ("OB", b"\xff\xfe"),
        ("US", 7),
        ("LO", None),
        ("LO", ["", "\0", "\udcff"]),
        ("LO", "PA" * 5000),
    ],
)
def test_values_of_any_type_are_survived(keyword: str, vr: str, value: object) -> None:
    film = header()
    film.add(DataElement(Tag(keyword), vr, value, validation_mode=IGNORE))
    assert len(frontal(film).evidence) < 500


@pytest.mark.parametrize(("name", "expected"), [("RG1_UNCR.dcm", "PA"), ("RG3_UNCR.dcm", "body_part_not_chest")])
def test_the_chest_film_of_pydicom_data_is_kept_and_its_extremity_refused(name: str, expected: str) -> None:
    path = str(get_testdata_file(name, download=False))
    assert outcome(frontal(pydicom.dcmread(path, specific_tags=list(HEADER_TAGS), stop_before_pixels=True))) == expected


REAL = {
    "chest_xray_cr_dx/fo-dicom__CR-MONO1-10-chest": "PA",
    "chest_xray_cr_dx/pydicom-data__RG1_J2KI.dcm": "PA",
    "chest_xray_cr_dx/pylibjpeg-data__RG1_JLSN.dcm": "PA",
    "chest_xray_cr_dx/pydicom__chrJapMulti.dcm": "PA",
    "chest_xray_cr_dx/torchxrayvision__Fake_MONOHR1.dcm": "secondary_capture",
    "chest_xray_cr_dx/fo-dicom.Codecs__test8bits.dcm": "secondary_capture",
    "chest_xray_cr_dx/highdicom__dx_image.dcm": "not_human",
    "other_projection/dicom-test-files__jpeg-baseline.dcm": "not_human",
    "other_projection/dicom-test-files__RG2_J2KI": "body_part_not_chest",
    "other_projection/dicom-test-files__RG3_RLE": "body_part_not_chest",
    "other_projection/pydicom__6154": "body_part_not_chest",
    "other_projection/pydicom__6247": "body_part_not_chest",
    "other_projection/pylibjpeg-data__JPEG2KLossless_1s_1f_u_16_16.dcm": "body_part_unknown",
    "other_projection/fo-dicom__OutOfBoundsOverlay.dcm": "modality_not_accepted",
    "other_projection/dicom-test-files__XA1_UNC": "modality_not_accepted",
}


@pytest.mark.parametrize(("name", "expected"), REAL.items())
def test_real_headers_are_decided_as_a_radiologist_would(name: str, expected: str, shared: Path) -> None:
    path = shared / "data" / "dicom" / name
    film = pydicom.dcmread(path, specific_tags=list(HEADER_TAGS), stop_before_pixels=True, force=True)
    assert outcome(frontal(film)) == expected
