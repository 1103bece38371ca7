"""Names of languages, for prompts, and the signs with which questions end.

The codes are those that `judges.text.languages.detect_language` gives: ISO 639-1, where there is one.
"""

import re

from judges.text.languages import detect_language

_CODES = """
    af Afrikaans; am Amharic; an Aragonese; ar Arabic; as Assamese; az Azerbaijani; be Belarusian; bg Bulgarian; bn
    Bengali; br Breton; bs Bosnian; ca Catalan; cs Czech; cy Welsh; da Danish; de German; dz Dzongkha; el Greek; en
    English; eo Esperanto; es Spanish; et Estonian; eu Basque; fa Persian; fi Finnish; fo Faroese; fr French; ga
    Irish; gl Galician; gu Gujarati; he Hebrew; hi Hindi; hr Croatian; ht Haitian Creole; hu Hungarian; hy Armenian;
    id Indonesian; is Icelandic; it Italian; ja Japanese; jv Javanese; ka Georgian; kk Kazakh; km Khmer; kn Kannada;
    ko Korean; ku Kurdish; ky Kyrgyz; la Latin; lb Luxembourgish; lo Lao; lt Lithuanian; lv Latvian; mg Malagasy; mk
    Macedonian; ml Malayalam; mn Mongolian; mr Marathi; ms Malay; mt Maltese; my Burmese; nb Norwegian Bokmål; ne
    Nepali; nl Dutch; nn Norwegian Nynorsk; no Norwegian; oc Occitan; or Odia; pa Punjabi; pl Polish; ps Pashto; pt
    Portuguese; qu Quechua; ro Romanian; ru Russian; rw Kinyarwanda; se Northern Sami; si Sinhala; sk Slovak; sl
    Slovenian; sq Albanian; sr Serbian; sv Swedish; sw Swahili; ta Tamil; te Telugu; th Thai; tl Tagalog; tr
    Turkish; ug Uyghur; uk Ukrainian; ur Urdu; uz Uzbek; vi Vietnamese; vo Volapük; wa Walloon; xh Xhosa; zh
    Chinese; zu Zulu; yue Chinese; wuu Chinese; arz Arabic; ary Arabic; fy Frisian; gd Scottish Gaelic; ha Hausa; ig
    Igbo; ln Lingala; lg Luganda; om Oromo; sa Sanskrit; sn Shona; so Somali; st Sotho; tg Tajik; tk Turkmen; tt
    Tatar; yo Yoruba
"""
LANGUAGES = dict(entry.split(" ", 1) for entry in " ".join(_CODES.split()).split("; "))

# What ends a question in the grammar of a language, as the inside of a character class. One class costs a grammar
# compiler no more than one character, but each sign more is one that a weak model may misuse, so English has only `?`.
_MARKS = {
    **dict.fromkeys(("ar", "ary", "arz", "fa", "ku", "ps", "ug", "ur"), "?؟"),
    **dict.fromkeys(("zh", "yue", "wuu"), "?？"),
    "ja": "?？。",  # 誰が勝ちましたか。
    "el": "?;\u037e",
    "hy": "?։՞",  # ՞ stands in the word that is asked about, and the sentence ends with ։
    "am": "?፧",
}
# What ends a question in the strict form, in the grammar of one language or another.
ANY_MARK = f"[?{''.join(sorted(set(''.join(_MARKS.values())) - {'?'}))}]"
# A text that ends so is a question, whatever its language. A semicolon is the mark of Greek only.
_ENDS = re.compile("(?:[?？؟\u037e⁇⁈⁉‽⸮፧՞꘏]|か。|(?<=[\u0370-\u03ff\u1f00-\u1fff]);)[\"'”’»)」』*_]*$|՞[^?]*[։:.]?$")


THE_ARTICLES_LANGUAGE = "the article's language"  # in place of a name that is not known


def article_language(text: str) -> str:
    """Return the code of a text's language; English if the text is too short to tell, or no language."""
    language = detect_language(text)
    return "en" if language in (None, "zxx") else str(language)


def language_name(code: str) -> str:
    """Return the English name of a language, for a prompt."""
    return LANGUAGES.get(code, THE_ARTICLES_LANGUAGE)


def question_end(language: str) -> str:
    """Return the regex of the sign that ends a question in a language."""
    return rf"[{_MARKS[language]}]" if language in _MARKS else r"\?"


def is_question(text: str) -> bool:
    """Return whether a text ends as a question does in some language."""
    return _ENDS.search(text.rstrip()) is not None
