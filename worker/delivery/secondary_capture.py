"""A DICOM Secondary Capture: the film under the heat map of its first finding, where that may have one, for eyes.

Viewers show pictures and not reports. So the words that a report would say are burnt in: whose opinion it is, what was
found and how probable, and that it is not for diagnosis.
"""

from datetime import UTC
from importlib.metadata import version
from typing import Final

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from db import registry
from db.delivery_content import FilmOfStudy
from db.session import read_scope
from training.checkpoint import Checkpoint, CheckpointError, build, load_checkpoint
from training.findings import FINDINGS
from training.imaging.preprocessing import Greys, Preprocessing, as_picture
from training.pointing import no_map_because, pointing_of
from worker.context import Context
from worker.delivery.errors import Refused
from worker.delivery.identifiers import series_uid
from worker.delivery.result import NOT_FOR_DIAGNOSIS, Result
from worker.delivery.structured_report import MANUFACTURER, describe
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, Failure

Picture = NDArray[np.uint8]

SERIES_NUMBER: Final = 9002
LONGER_SIDE: Final = 1024  # pixels of the film; the words stand above it
LINE: Final = 34
WORDS_SIZE: Final = 26
MARGIN: Final = 10


def secondary_capture(context: Context, result: Result) -> SCImage:
    """The picture of one result. Raises Refused where the film or the checkpoint cannot be read now."""
    number, first = FINDINGS.index(result.top_finding), result.first_finding
    film = max(result.films, key=lambda each: each.probabilities[number])
    checkpoint = _checkpoint(context, result)
    pointing = pointing_of(checkpoint.training)
    without = no_map_because(first.finding, probability=first.probability, threshold=first.threshold, pointing=pointing)
    with DecoderPool(DecodeOptions.of(context, checkpoint.preprocessing), decoders=1) as decoders:
        shown = _film_shown(decoders, checkpoint, film, heat_of=first.finding if without is None else None)
    words = words_of(result) if without is None else [*words_of(result), without]
    return as_dicom(with_words(shown, words), result, film)


def as_dicom(picture: Picture, result: Result, film: FilmOfStudy) -> SCImage:
    """A picture, uint8 (rows, columns, 3), as an object of the film's study."""
    patient, at = result.patient, result.published_at.astimezone(UTC)
    image = SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=result.study_instance_uid,
        series_instance_uid=series_uid("sc", result.study_instance_uid, checkpoint_digest=result.checkpoint_digest),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result.object_uid,
        instance_number=result.revision,
        manufacturer=MANUFACTURER,
        patient_id=patient.PatientID,
        patient_name=patient.PatientName,
        patient_birth_date=patient.PatientBirthDate or None,
        patient_sex=patient.PatientSex or None,
        accession_number=patient.AccessionNumber,
        study_id=patient.StudyID,
        study_date=patient.StudyDate or None,
        study_time=patient.StudyTime or None,
        referring_physician_name=patient.ReferringPhysicianName,
        manufacturer_model_name=result.network,
        software_versions=[version("nightread"), result.version],
        device_serial_number=result.checkpoint_digest,
        series_description=f"Nightread: {NOT_FOR_DIAGNOSIS}",
        specific_character_set="ISO_IR 192",
    )
    image.Laterality = ""  # type 2C of the General Series module, which highdicom leaves out
    image.PatientOrientation = []  # type 2C: none is known, for the film may be turned
    image.ContentDate, image.ContentTime = DA(at.date()), TM(at.time())
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.DerivationDescription = f"A film, under a heat map where one is shown; {NOT_FOR_DIAGNOSIS}"
    image.SourceImageSequence = [_source(film)]
    describe(image, result)
    return image


def _source(film: FilmOfStudy) -> Dataset:
    source, purpose = Dataset(), Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = UID(film.sop_class_uid), UID(film.sop_instance_uid)
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code.value, "DCM", code.meaning
    source.PurposeOfReferenceCodeSequence = [purpose]
    return source


def words_of(result: Result) -> list[str]:
    """The lines above the film."""
    finding = result.first_finding
    threshold = "no threshold" if finding.threshold is None else f"threshold {finding.threshold:.2f}"
    return [
        NOT_FOR_DIAGNOSIS,
        f"{finding.words}: probability {finding.probability:.2f} ({threshold})",
        f"Urgency category {result.category}; Nightread {result.network} {result.version}",
    ]


def with_words(film: Picture, words: list[str]) -> Picture:
    """A picture, uint8 (rows, columns, 3), under lines of words on black."""
    font = ImageFont.load_default(size=WORDS_SIZE)
    width = max(film.shape[1], *(round(font.getlength(line)) + 2 * MARGIN for line in words))
    above = 2 * MARGIN + LINE * len(words)
    page = Image.new("RGB", (width, above + film.shape[0]))
    page.paste(Image.fromarray(film), ((width - film.shape[1]) // 2, above))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(words):
        draw.text((MARGIN, MARGIN + number * LINE), line, fill="white", font=font)
    return np.asarray(page)


# --------------------------------------------------------------------------------------------------- film and heat


def _film_shown(decoders: DecoderPool, checkpoint: Checkpoint, film: FilmOfStudy, *, heat_of: str | None) -> Picture:
    """The film in its own shape, LONGER_SIDE at its longer side, under the heat map of a finding, or of none."""
    from training.explain import overlay

    size, grey = _size(film), _decoded(decoders, film, Preprocessing(size=LONGER_SIDE))
    shown = np.asarray(Image.fromarray(as_picture(grey)).resize(size, Image.Resampling.BICUBIC))
    if heat_of is None:
        return np.repeat(shown[..., None], 3, axis=2)
    heat = _heat(checkpoint, _decoded(decoders, film, checkpoint.preprocessing), heat_of)
    warm = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    return overlay(shown, warm)


def _heat(checkpoint: Checkpoint, network_input: Greys, finding: str) -> NDArray[np.float32]:
    """The heat map that `explain --heatmap` draws, float32 (size, size) in [0, 1]."""
    from training.explain import NoFeatureMaps, heatmaps

    output = [checkpoint.findings.index(finding)]
    try:
        (heat,) = heatmaps(build(checkpoint), network_input, preprocessing=checkpoint.preprocessing, outputs=output)
    except NoFeatureMaps:
        raise Refused("picture_impossible") from None
    return np.asarray(heat, dtype=np.float32)


def _checkpoint(context: Context, result: Result) -> Checkpoint:
    try:
        with read_scope(context.engine) as session:
            path = context.file_of(registry.by_digest(session, result.checkpoint_digest))
        return load_checkpoint(path, expected_digest=result.checkpoint_digest)
    except CheckpointError:
        raise Refused("picture_impossible") from None


def _decoded(decoders: DecoderPool, film: FilmOfStudy, preprocessing: Preprocessing) -> Greys:
    """The film as the preprocessing makes it, decoded as the scorer does: in a process of its own, within limits."""
    outcome = decoders.picture(film, preprocessing)
    if isinstance(outcome, Failure):
        raise Refused(outcome.reason)
    return outcome.image


def _size(film: FilmOfStudy) -> tuple[int, int]:
    """Width and height of the film in the picture."""
    longer = max(film.rows, film.columns)
    return max(1, LONGER_SIDE * film.columns // longer), max(1, LONGER_SIDE * film.rows // longer)
