"""The words and codes by which headers of many countries name the chest, other body parts and projections.

Words are compared without case, accents and punctuation, and count only as whole words, digits beside them allowed
("PA1", "CHEST_2V"). Words of scripts without spaces are found anywhere in the text.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Final

from worker.setting_groups import ViewWords

# PS3.16 CID 4010 "DX View", by SNOMED CT code and by the SNOMED-RT code that devices wrote before 2017 (schemes SRT,
# SNM3). R-10214 (PA) was retired for R-40888; both are in use. The last row holds angled beams, as CID 4011 does.
_CODES_BY_VIEW: Final = {
    "AP": "399348003 R-10206",
    "PA": "272479007 R-40888 R-10214",
    "frontal": "399033003 R-10202",
    "lateral": """399067008 R-102CD 399173006 R-10236 399198007 R-10232 399352003 R-10228 399260004 R-10224
        30730003 G-A145""",
    "oblique": """399182000 R-102C1 399135007 R-10220 399356000 R-40985 399006002 R-10212 399038007 R-10210
        399059000 R-10216 399312000 R-10208 399160007 R-10204 399184004 R-10238 399236003 R-10234 260427002 R-40783
        260426006 R-40782""",
    "special": "399061009 R-10241 399162004 R-10242 399196006 R-10244 399132005 R-10252 399110001 R-102C2",
}
VIEW_CODES: Final = {code: view for view, codes in _CODES_BY_VIEW.items() for code in codes.split()}
"""Code value -> the projection it names: "AP", "PA", "frontal" (one of the two), "lateral", "oblique" or "special"."""

CHEST_CODES: Final = frozenset({"816094009", "51185008", "T-D3000", "39607008", "T-28000"})
"""Chest, thoracic structure (CID 4009, 4031) and lung, as SNOMED CT and SNOMED-RT codes."""


_LETTERS: Final = "[A-ZΑ-ΩА-Я]*"


def _pattern(alternatives: str) -> re.Pattern[str]:
    return re.compile(f"(?<![A-Z])(?:{alternatives})(?![A-Z])")


def _alternatives(table: str) -> str:
    """A table's words as parts of a pattern of normalised text; "_" stands for a space, "*" for any letters."""
    return "|".join(table.split()).replace("*", _LETTERS).replace("_", " ")


def _words(table: str) -> re.Pattern[str]:
    return _pattern(_alternatives(table))


_BUILT_IN: Final = {
    # "PA catheter" is one in the pulmonary artery
    "AP": "(?:CHEST|THORAX)?AP ANTERO_?POSTERI* ANTERIOR_POSTERIOR 前后位? 前後位?",
    "PA": "(?:CHEST|THORAX)?PA(?!_CATH) POSTERO_?ANTERI* POSTERIOR_ANTERIOR DORSO_?VENTRAL* 后前位? 後前位?",
    "frontal": "FRONTAL* FRENTE FACE NGUC_THANG 正位 正侧位 正側位 正面 정면 ПРЯМ*",
    # LL alone may be a lower lobe; beside the chest or another view it is latero-lateral
    "lateral": """(?:CHEST|THORAX)?LAT LATERAL(?:E|ES|IS|NA|NE|NI|NY)? LATERO_?LATERAL* ^[LR]L$ SEITL* PROFIL[EO]?
        PERFIL (?:CHEST|THORAX|TORAX|TORACE|PA|AP)_(?:E_|ED_|ET_|AND_|Y_)?[LR]L BOCZN* BOCNI* ZIJDELINGS NGHIENG
        侧位 側位 側面 측면 БОКОВ*""",
    "oblique": "OBLI? OBLIQ* OBLICU* OBLIKV* SCHRAE?G* [LR][AP]O [LR]LO 斜位",
    # in Spanish and Italian "decubito supino" is plain supine
    "special": """DECUB*(?![A-Z])(?!_SUPIN|_DORSAL) [LR]LD LORDO[ST]* AXIAL* SWIMMERS? LINDBLOM TANGENTIAL*
        CRANIO_?CAUD* CAUDO_?CRANI* CEPHALAD CAUDAD CC MLO 側臥位""",
    "bedside": """PORTABLES? PORT_CHEST CXR_PORT BEDSIDE MOBILE? SUPIN* RECUMBENT LIEGEN* IM_BETT BETTAUFNAHME
        A_?L?_LETTO CLINOSTAT* AU_LIT COUCHEE? EN_CAMA PORTATIL NO_LEITO LIGGEND* 床旁 床边 仰臥位 背臥位""",
    "chest": """CHEST* CXR THORA(?!CO)* TORAX TORACE TORACIC* TORAKS* LUNGS? LUNGEN? LUNGOR PULMO* PULM POLMON*
        POUMONS? LONGEN LONGFOTO BRUSTKORB MELLKAS* HRUDNIK* PLICE KLATK*_PIERS* KLP AKCIGER* GOGUS NGUC KEUHKO*
        BABYGRAM ГРУДН* ОГК ЛЕГК* ΘΩΡΑΚ* 胸部 胸片 흉부""",
    "other": r"""SKULL HEAD BRAIN CRANI(?:UM|O|AL) CRANE SCHAE?DEL SINUS(?:ES)? NNH ORBITA?S? NASAL NOSE MANDIBLE
        MAXILLA JAW TEETH TOOTH FACIAL NECK HALS [CTL]?SPINE CERVICAL* LUMBAR LUMBAL* LUMBO* THORACO(?:LUMB|COLUMN)*
        HWS BWS LWS WIRBEL* BRUSTWIRBEL* COLUMNA COLUNA COLONN[AE] RACHIS RACHIDE VERTEBRA* SACR(?:UM|AL) COCCYX
        SCOLIOSIS PELVIS BECKEN BACINO BASSIN HIPS? HUE?FTE* ANCA HANCHE CADERA QUADRIL FEMUR THIGH KNEES? KNIE
        GINOCCHI* GENOU* RODILLA JOELHO PATELLA LEGS? (?:LOWER|UPPER)_?(?:LEG|LIMB|EXTREMITY) TIBIA FIBULA ANKLES?
        CHEVILLE TOBILLO (?<!\d_)FOOT (?<!\d_)FEET FUSS PIEDE? TOES? CALCANE* HEELS? SHOULDERS? SCHULTER* SPALLA
        EPAULE HOMBRO OMBRO CLAVIC* SCAPULA AC_?JOINTS? ARM HUMERUS ELBOWS? ELLBOGEN COUDE CODO FOREARM RADIUS ULNA
        WRISTS? POIGNET MUNECA HANDS? MANO FINGERS? THUMB EXTREMIT* JOINTS? *ABD *ABDOM* KUB ADDOME CHESTABDPELVIS
        BREASTS? MAMMA RIBS? RIB_?CAGE RIPPEN COSTE COSTILLAS? STERNUM STERNO* WHOLE_?BODY LONG_?BONES? BABYGRAM
        ПОЗВОН* 腹部 복부 頭部 腰椎 頸椎 胸椎""",
    # Pictures made from a film to show bone or soft tissue alone, and planning pictures: the model has not seen such.
    "processed": "BONE_SUPPRESS* SOFT_TISSUE COMPANION SUBTRACT* LOCALIZER SCOUT TOPOGRAM",
}
"""Meaning of a word -> the words. The first six are the values of VIEW_CODES; a site may add to each of them."""
_VIEWS: Final = ("AP", "PA", "frontal", "lateral", "oblique", "special")

_TWO_VIEWS: Final = _words("(?:2|TWO|ZWEI|DEUX|DUE|DOS)_?(?:V|VW|VIEWS?|EBENEN|INCIDENCES|P|PROIEZ*|PROYEC*|PROJ*)")

# "thoracic spine" and its sisters name the spine; the adjective must not count as the chest.
_SPINE_PHRASE: Final = _words(
    """(?:TH?ORAC*|DORSAL*)_(?:SPINE|VERTEBRA*)
    (?:COLUMNA|COLUNA|COLONN[AE]|RACHIS|RACHIDE)(?:_VERTEBRAL*)?_(?:TH?ORAC*|DORSAL*)"""
)

_ANIMAL: Final = _words(
    """CANINE CANIS DOG FELINE FELIS CAT EQUINE EQUUS HORSE BOVINE BOS_TAURUS PORCINE SUS_SCROFA OVINE OVIS CAPRINE
    CAPRA AVIAN BIRD MURINE MUS_MUSCULUS RATTUS RABBIT ORYCTOLAGUS MUSTELA FERRET VETERINARY"""
)


@dataclass(frozen=True)
class Words:
    """The built-in words, and a site's own beside them as (what they say, words)."""

    own: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, view_words: ViewWords | None) -> "Words":
        """The words of the setting; their order in its file means nothing."""
        return cls(tuple((says, tuple(sorted(set(words)))) for says, words in view_words or () if words))

    def views_in(self, text: str) -> frozenset[str]:
        """Every projection the text names, as values of VIEW_CODES."""
        plain, patterns = _plain(text), _patterns(self.own)
        return frozenset(view for view in _VIEWS if patterns[view].search(plain))

    def body_part_in(self, text: str) -> str | None:
        """Give "chest", "other", "mixed" (the chest and another part), or None where no body part is named."""
        plain, patterns = _SPINE_PHRASE.sub("SPINE", _plain(text)), _patterns(self.own)
        chest, other = patterns["chest"].search(plain), patterns["other"].search(plain)
        if chest and other:
            return "mixed"
        return "chest" if chest else "other" if other else None

    def is_bedside(self, text: str) -> bool:
        """Whether the text tells of one film of a patient in bed or taken with a mobile unit."""
        plain = _plain(text)
        return bool(_patterns(self.own)["bedside"].search(plain)) and not _TWO_VIEWS.search(plain)

    def is_processed(self, text: str) -> bool:
        """Whether the text names an image computed from a film, or a localizer."""
        return bool(_patterns(self.own)["processed"].search(_plain(text)))


BUILT_IN: Final = Words()


@cache
def _patterns(own: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, re.Pattern[str]]:
    """A pattern for each thing that a word can say."""
    added = dict(own)
    return {
        says: _pattern("|".join([_alternatives(table), *map(_own_word, added.get(says, ()))]))
        for says, table in _BUILT_IN.items()
    }


def _own_word(word: str) -> str:
    """A site's word as a part of a pattern: as it is written, a star at its end for any letters."""
    return re.escape(_plain(word)) + (_LETTERS if word.endswith("*") else "")


def is_animal(text: str) -> bool:
    """Whether the text names an animal."""
    return bool(_ANIMAL.search(_plain(text)))


def _plain(text: str) -> str:
    """Upper case without accents, punctuation as single spaces, and "P.A.", "p-a" or "P/A" as "PA"."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = unicodedata.normalize("NFC", "".join(c for c in decomposed if not unicodedata.combining(c))).upper()
    joined = re.sub(r"(?<![A-Z])([AP])[./-]-?([AP])(?![A-Z])", r"\1\2", bare)
    return re.sub(r"[\W_]+", " ", joined).strip()
