"""Interprets the words of ViewPosition, BodyPartExamined and Modality in the languages of films.

The standard has defined terms for all three. Technicians and devices write others: German, French, Spanish,
Italian, Portuguese, Dutch, Polish, Czech, Scandinavian, Finnish, Hungarian, Romanian, Turkish.
"""

import re
import unicodedata
from enum import Enum

# Letters that do not decompose into a letter and an accent.
_LETTERS = str.maketrans({"Ø": "O", "Ł": "L", "Đ": "D", "Æ": "AE", "Œ": "OE", "ß": "SS", "ı": "I"})


class Meaning(Enum):
    """Whether a word is used for frontal chest films."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


# The form of a code in DICOM, less what begins a formula or breaks a table.
_CODE = re.compile(r"[A-Z][A-Z0-9 _/-]{0,15}")

# Lateral, oblique and decubitus: the defined terms, the spellings of vendors, and words of other languages.
_NOT_FRONTAL = re.compile(
    r"^(L|R|LT|RT|LEFT|RIGHT)$|\b[LR][ /]?L[OD]?\b|\b[LR][AP]O\b|(?<!BI)LAT|OBL|DECUB"
    r"|\bPROF|PERFIL|SEIT[LE]|ANLIEGEND|SCHRAG|SCHRAEG|DWARS|\b(VAN)?ZIJ|SCHUIN|\bBO[CK]|SKOS|SIKM"
    r"|\bSID[AEOL]|SKRA|\bSNED|SIVU|VIISTO|OLDAL|FERDE|STRANSK|POSTRANI|\bYAN\b|YANDAN"
)
_FRONTAL = re.compile(
    r"\b(P[ /]?A|A[ /]?P|DV|VD)\b|FRONT|\bFACE\b|FRENTE"
    r"|(POSTER|ANTER|DORS|VENTR|HINTE|VORDE)\w*[ /]?\w*(POSTER|ANTER|DORS|VENTR|HINTE|VORDE)|TYLNO ?PRZED|PRZEDNIO ?TYL"
    r"|ZADOPRED|PREDOZAD|LORDOT"
)
_CHEST = re.compile(
    r"CHEST|\bCHST|\bCXR\b|THORA[CXK]|TORA[CXK]|\bTHX\b|LUNG|PULM|POUMON|POLMON|PLUC|PLIC\b|PLICE|PLJUC"
    r"|BRUST|POITRINE|PECHO|PEITO|PETTO|\bBORST|BROST|BRYST|KLATK|PIERS|HRUD|GRUDN|PRSNI|RINTAKEH|KEUHKO"
    r"|MELLKAS|\bPIEPT|GOGUS|AKCIGER"
)
_SPINE = re.compile(
    r"SPINE|VERTEBR|WIRBEL|\bWS\b|\b[BHL]WS\b|COLUMN|COLUNA|COLONN|RACHI|WERVEL|KREGOS|KREGOV|RYGG|RYGS|PATER|SELKARAN"
    r"|GERINC|OMURGA|LUMB|LOMB|SACR"
)
# Other parts whose names contain words for the chest: the breast in some languages, the sternum.
_NO_CHEST = re.compile(r"BRUSTDRUSE|MAMM|BREAST|\bSEINS?\b|BRUSTBEIN|BROSTBEN|BRYSTBEN|BORSTBEEN|BROSTKORGSRYGG")
_OTHER = re.compile(
    # head and neck
    r"SKULL|HEAD|BRAIN|CRAN[IE]|SCHADEL|SCHAEDEL|KOPF|TETE|CABEZA|CABECA|TESTA|HOOFD|SCHEDEL|CZASZK|GLOW|LEBK|HLAV"
    r"|KRANIE|KALLO|HUVUD|\bHODE\b|HOVED|KOPONYA|KAFA|NECK|CERVI|\bHALS|\bCOU\b|CUELLO|COLLO|PESCOCO|SZYJ|NYAK|\bFACE\b|FACIAL|ORBIT|SINUS"
    r"|NASAL|NASE|NOSE|NARIZ|JAW|MANDIB|MAXIL|KIEFER|TEETH|TOOTH|\bDENT|ZAHN|\bTMJ|ZYGOM|EYE|\bEAR\b|MASTOID"
    r"|TONGUE|PHARYN|LARYN|THYR|SELLA"
    # belly and pelvis
    r"|ABDOM|\bABD\b|BAUCH|BELLY|VENTRE|BUIK|BRZUCH|BRICH|\bBUK\b|RUCKEN|VATSA|\bHAS\b|KARIN|\bKUB\b|PELVI|BECKEN|BASSIN|BACINO"
    r"|BACIA|BEKKEN|BAEKKEN|BACKEN|MIEDNIC|PANEV|PANEW|LANTIO|KISMEDENCE|\bHIP|HUFT|HUEFT|HANCHE|CADERA|\bANCA|QUADRIL|\bHEUP"
    r"|BIODR|KYCEL|HOFT|HOFTE|LONKKA|CSIPO|KALCA|BLADDER|BLASE|KIDNEY|NIERE|\bURET|\bUTER|PROSTAT|\bCOLON\b|\bRECT"
    r"|STOMACH|MAGEN|ESOPH|OESOPH|LIVER|LEBER|SPLEEN|GALLB|BOWEL|COCCY|ILIUM|BREAST|MAMM"
    # arms
    r"|SHOULDER|SCHULTER|EPAULE|HOMBRO|SPALLA|OMBRO|SCHOUDER|\bBARK|RAMENO|\bAXEL|SKULDER|OLKAPAA|\bVALL|OMUZ|SCAPUL"
    r"|CLAVIC|SCHLUSSELB|KLAVIK|ACJOINT|\bARM\b|UPPERARM|FOREARM|UNTERARM|OBERARM|\bBRAS\b|BRAZO|BRACCIO|BRACO"
    r"|HUMER|RADIUS|\bULNA|ELBOW|ELLBOG|ELLENBOG|COUDE|\bCODO|GOMITO|COTOVELO|ELLEBOOG|LOKIEC|LOKET|ARMBAG|ALBUE"
    r"|WRIST|HANDGELENK|POIGNET|MUNECA|POLSO|PULSO|PUNHO|\bPOLS|NADGARST|ZAPEST|HAND|\bMAIN\b|\bMANO|\bMAO\b|DLON|RUKA"
    r"|FINGER|DOIGT|\bDEDO|\bDITO|VINGER|PALEC|THUMB|DAUMEN|POUCE"
    # legs
    r"|\bLEG\b|BEIN\b|JAMBE|PIERNA|GAMBA|PERNA|\bBEEN|NOGA|NOHA|FEMUR|THIGH|OBERSCHENKEL|CUISSE|MUSLO|\bUDO\b|\bLAR\b|COSCIA|COXA"
    r"|KNEE|\bKNIE|GENOU|RODILLA|GINOCCHIO|JOELHO|KOLAN|KOLEN|\bKNA\b|\bKNAE|POLVI|\bTERD|DIZ\b|PATELL|\bTIB|FIBUL"
    r"|CALF|UNTERSCHENKEL|ANKLE|SPRUNGGELENK|KNOCHEL|CHEVILLE|TOBILLO|CAVIGLIA|TORNOZELO|ENKEL|KOSTK|KOTNIK|\bFOOT"
    r"|\bFUSS|\bPIED|\bPIE\b|PIEDE|\bVOET|STOPA|NOHY|\bFOT\b|\bFOD\b|JALKA|\bLAB\b|AYAK|HEEL|FERSE|CALCAN|\bTOE"
    r"|\bZEHE|ORTEIL|EXTREM|\bEXM\b|\bLIMB"
    # bones of the chest, imaged separately
    r"|\bRIBS?\b|RIPPE|COSTILL|\bCOSTA|COSTEL?\b|COTES\b|COSTOLE|RIBBEN|ZEBR|REVBEN|BORDA|STERN"
    r"|WHOLE ?BODY|SKELET"
)
RADIOGRAPHS = frozenset({"", "CR", "DX", "DR", "RG", "XR", "SC", "OT", "HC"})
# Defined terms of Modality (PS3.3 C.7.3.1.1.1) other than radiographs of the trunk, including retired terms.
_NO_RADIOGRAPH = re.compile(
    r"AR|AS|ASMT|AU|BDUS|BI|BMD|CD|CF|CFM|CP|CS|CT|CTPROTOCOL|DD|DF|DG|DM|DMS|DOC|DS|EC|ECG|EEG|EMG|EOG|EPS|ES"
    r"|FA|FID|FS|GM|HD|IO|IOL|IVOCT|IVUS|KER|KO|LEN|LP|LS|M3D|MA|MG|MR|MS|NM|OAM|OCT|OP|OPM|OPR|OPT|OPTBSV"
    r"|OPTENF|OPV|OSS|PA|PLAN|POS|PR|PT|PX|REG|RESP|RF|RTDOSE|RTIMAGE|RTINTENT|RTPLAN|RTRAD|RTRECORD|RTSEGANN"
    r"|RTSTRUCT|RWV|SEG|SM|SMR|SR|SRF|ST|STAIN|TEXTUREMAP|TG|US|VA|VF|XA|XAPROTOCOL|XC"
)


def plain(word: str) -> str:
    """Return a word in capitals without accents; points, commas, dashes and underscores become spaces."""
    letters = unicodedata.normalize("NFKD", word.upper().translate(_LETTERS))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[^\w/]|_", " ", bare).split())


def view_meaning(view: str) -> Meaning:
    """Return whether a view is frontal. A lateral word takes precedence over a frontal one."""
    word = plain(view)
    if _NOT_FRONTAL.search(word):
        return Meaning.NO
    return Meaning.YES if _FRONTAL.search(word) else Meaning.UNKNOWN


def part_meaning(part: str) -> Meaning:
    """Return whether a body part is the chest. A chest word takes precedence over another body part."""
    word = plain(part)
    if _SPINE.search(word) or _NO_CHEST.search(word):
        return Meaning.NO
    if _CHEST.search(word):
        return Meaning.YES
    return Meaning.NO if _OTHER.search(word) else Meaning.UNKNOWN


def known_words(text: str) -> str:
    """Return the words of a view or body part that this module knows, empty if there are none.

    Other words may be anything, a patient's name too. Nothing that cannot be in a table or on a terminal is left.
    """
    word = plain(text)
    spans = [
        match.span()
        for pattern in (_NOT_FRONTAL, _FRONTAL, _CHEST, _SPINE, _NO_CHEST, _OTHER)
        for match in pattern.finditer(word)
    ]
    known = [
        each[0]
        for each in re.finditer(r"\S+", word)
        if any(start < each.end() and end > each.start() for start, end in spans)
    ]
    own = text.strip().upper()
    return own if len(known) == len(word.split()) and _CODE.fullmatch(own) else " ".join(known)


def modality_meaning(modality: str) -> Meaning:
    """Return whether a modality can be a radiograph of the chest."""
    word = modality.strip().upper()
    if _NO_RADIOGRAPH.fullmatch(word):
        return Meaning.NO
    return Meaning.YES if word in RADIOGRAPHS else Meaning.UNKNOWN
