"""Names and codes of human languages, as data sets write them."""

from functools import lru_cache

# Codes of ISO 639-1.
_CODES = set(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee "
    "el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is "
    "it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms "
    "mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk "
    "sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi "
    "yo za zh zu".split()
)
# English names and codes of three letters, each with its code of two.
_OTHERS = (
    "english eng en; german deu ger de; french fra fre fr; spanish spa castilian es; italian ita it; portuguese "
    "por pt; dutch nld dut nl; russian rus ru; ukrainian ukr uk; polish pol pl; czech ces cze cs; slovak slk slo "
    "sk; hungarian hun hu; romanian ron rum ro; bulgarian bul bg; greek ell gre el; turkish tur tr; arabic ara "
    "arb ar; hebrew heb he; persian farsi fas per fa; hindi hin hi; bengali ben bn; urdu urd ur; tamil tam ta; "
    "telugu tel te; marathi mar mr; gujarati guj gu; punjabi pan pa; chinese mandarin zho chi cmn zh; japanese "
    "jpn ja; korean kor ko; vietnamese vie vi; thai tha th; indonesian ind id; malay msa may zsm ms; tagalog tgl "
    "tl; swedish swe sv; danish dan da; norwegian nor no; finnish fin fi; icelandic isl ice is; estonian est et; "
    "latvian lav lv; lithuanian lit lt; croatian hrv hr; serbian srp sr; slovenian slv sl; bosnian bos bs; "
    "macedonian mkd mac mk; albanian sqi alb sq; catalan cat ca; basque eus baq eu; galician glg gl; irish gle "
    "ga; welsh cym wel cy; latin lat la; esperanto epo eo; swahili swa swh sw; yoruba yor yo; igbo ibo ig; hausa "
    "hau ha; zulu zul zu; xhosa xho xh; afrikaans afr af; amharic amh am; somali som so; armenian hye arm hy; "
    "georgian kat geo ka; azerbaijani aze az; kazakh kaz kk; uzbek uzb uz; mongolian mon mn; nepali nep ne; "
    "sinhala sin si; burmese mya my; khmer khm km; lao lao lo; malayalam mal ml; kannada kan kn; odia ori or; "
    "belarusian bel be; javanese jav jv; tibetan bod bo; uyghur uig ug; pashto pus ps; kurdish kur ku; maltese "
    "mlt mt; luxembourgish ltz lb; cebuano ceb ceb; cantonese yue yue; filipino fil fil"
)
_BY_NAME = {name: names.split()[-1] for names in _OTHERS.split(";") for name in names.split()}


def language_tag(text: str) -> str:
    """A language as a tag with a code of two letters where there is one: "English" is en, "ENG_us" is en-us.

    What is no human language ("python") becomes "".
    """
    primary, *rest = text.strip().lower().replace("_", "-").split("-")
    code = _BY_NAME.get(primary) or (primary if primary in _CODES else "")
    return "-".join([code, *rest]) if code else ""


def is_other_language(given: str, wanted: str) -> bool:
    """Whether `given` is a human language other than `wanted`. A region of the wanted language is not."""
    return _is_other(given[:100], wanted)


@lru_cache(1000)  # most rows of a file name the same one
def _is_other(given: str, wanted: str) -> bool:
    tag, wanted_tag = language_tag(given), language_tag(wanted) or wanted.lower().replace("_", "-")
    return bool(tag) and tag != wanted_tag and not tag.startswith(f"{wanted_tag}-")
