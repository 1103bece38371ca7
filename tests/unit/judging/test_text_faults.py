"""Tests of the faults of a text on examples with known answers, and of the limits that `pairs` sets on them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.judging import Pairs
from pipeline.judging.scoring.text_faults import OFF_TOPIC, describe_faults, exceeded_limits, measure_faults

ARTICLE = (
    "The harbour of Nordholm was closed on Tuesday after a ferry hit the northern pier. Nobody was hurt, the coast "
    "guard said. Divers found a hole of two metres in the hull of the ferry, which carried 212 passengers. The company "
    "Lundby Lines cancelled all departures until Friday. Repairs of the pier will cost 1.5 million crowns, according "
    "to the mayor, Ida Strand. She wants the company to pay for them."
)
SUMMARY = "A ferry with 212 people on board damaged a pier in Nordholm. All trips are off until Friday."
OTHER_END = "The striker scored twice as Real Madrid beat Valencia."
BOILERPLATE = "In conclusion, this text highlights the importance of effective communication in modern society."

# The same story in six languages: an article, a summary of it, and a sentence about something else.
STORIES = {
    "de": (
        "Der Hafen von Nordholm wurde am Dienstag gesperrt, nachdem eine Fähre gegen die Mole gefahren war. Verletzt "
        "wurde niemand, teilte die Küstenwache mit. Taucher fanden ein Loch im Rumpf der Fähre.",
        "Eine Fähre hat die Mole von Nordholm gerammt. Die Küstenwache meldet keine Verletzten.",
        "Der Stürmer schoss beide Tore beim Sieg gegen Valencia.",
    ),
    "ru": (
        "Порт Нордхольма закрыли во вторник после того, как паром врезался в северный причал. Никто не пострадал, "
        "сообщила береговая охрана. Водолазы нашли пробоину в корпусе парома.",
        "Паром повредил причал в порту Нордхольма. По данным береговой охраны, пострадавших нет.",
        "Нападающий забил дважды в матче против Валенсии.",
    ),
    "ar": (
        "أغلق ميناء نوردهولم يوم الثلاثاء بعد أن اصطدمت عبارة بالرصيف الشمالي. وقال خفر السواحل إن أحدا لم يصب بأذى. "
        "وعثر الغواصون على ثقب في هيكل العبارة.",
        "اصطدمت عبارة بالرصيف في ميناء نوردهولم. وقال خفر السواحل إن أحدا لم يصب.",
        "سجل المهاجم هدفين في مباراة كرة القدم أمام فالنسيا.",
    ),
    "hi": (
        "मंगलवार को एक नौका उत्तरी घाट से टकरा गई, जिसके बाद नॉर्डहोम का बंदरगाह बंद कर दिया गया। तटरक्षक बल ने कहा कि कोई "
        "घायल नहीं हुआ। गोताखोरों को नौका के ढांचे में एक छेद मिला।",
        "नॉर्डहोम के बंदरगाह में एक नौका घाट से टकरा गई। तटरक्षक बल के अनुसार कोई घायल नहीं हुआ।",
        "खिलाड़ी ने क्रिकेट मुकाबले में शानदार शतक लगाकर टीम को जीत दिलाई।",
    ),
    "zh": (
        "星期二，一艘渡轮撞上北部码头，诺德霍姆港随后关闭。海岸警卫队表示，没有人受伤。潜水员在渡轮船体上发现一个两米长的破洞。",
        "一艘渡轮撞上诺德霍姆港的码头。海岸警卫队表示没有人受伤。",
        "这位前锋在足球比赛中踢进两球，帮助球队获胜。",
    ),
    "ja": (
        "火曜日、フェリーが北側の桟橋に衝突し、ノルドホルム港は閉鎖された。沿岸警備隊によると、けが人はいなかった。"
        "ダイバーはフェリーの船体に二メートルの穴を見つけた。",
        "フェリーがノルドホルム港の桟橋に衝突した。沿岸警備隊によるとけが人はいなかった。",
        "その選手はサッカーの試合で得点を決めてチームを優勝に導いた。",
    ),
}
in_six_languages = pytest.mark.parametrize("language", STORIES)


def test_a_good_summary_has_no_fault():
    faults = measure_faults(SUMMARY, ARTICLE)
    assert (faults["repeated"], faults["copied"], faults["lead_copied"], faults["other_language"]) == (0, 0, 0, None)
    assert faults["off_topic_end"] < OFF_TOPIC and describe_faults(faults) == []


def test_the_article_itself_is_all_copied():
    faults = measure_faults(ARTICLE, ARTICLE)
    assert faults["copied"] == 1 and faults["off_topic_end"] == 0 and 0 < faults["lead_copied"] < 1
    lead = " ".join(ARTICLE.split()[:15])
    assert measure_faults(lead, ARTICLE) | {"off_topic_end": 0} == {
        "repeated": 0,
        "copied": 1,
        "lead_copied": 1,
        "off_topic_end": 0,
        "other_language": None,
    }
    end = "Repairs of the pier will cost 1.5 million crowns, according to the mayor, Ida Strand."
    assert (measure_faults(end, ARTICLE)["copied"], measure_faults(end, ARTICLE)["lead_copied"]) == (1, 0)


def test_copying_is_counted_in_runs_of_eight_words():
    half = "Nobody was hurt, the coast guard said. Divers worked in heavy rain until late in the evening yesterday."
    # 18 tokens have 11 runs of 8. The first begins with 8 of the article ("… said. Divers"), and no other does.
    assert measure_faults(half, ARTICLE)["copied"] == pytest.approx(1 / 11)
    changed_writing = "NOBODY was hurt - the coast-guard said; divers “found” a hole"
    assert measure_faults(changed_writing, ARTICLE)["copied"] == 1, "case and punctuation hide no copy"


@pytest.mark.parametrize(
    ("summary", "share"),
    [
        (f"{SUMMARY} {SUMMARY}", 0.5),
        (f"{SUMMARY} {SUMMARY} {SUMMARY}", 2 / 3),
        ("The pier is damaged. The pier is damaged.", 0.5),  # a short sentence, as in the demo's example
        ("The pier is damaged. The pier is damaged!", 0.5),
        # Two of ten words differ, so only the runs of 5 words count: 7 words of 20.
        ("An old ferry hit the pier near Nordholm last night. An old ferry hit the pier near Lundby last week.", 0.35),
        ("One of the two ferries hit the pier in Nordholm. One of the two ferries hit a pier in Nordholm.", 0.5),
        ("ferry " * 20, 19 / 20),  # a loop of one word: only its first time is new
        ("the ferry hit " * 10, 27 / 30),
        ("", 0),
        ("Ferry", 0),
        ("Ferry. Pier. Ferry.", 1 / 3),
        ("no no no", 0),
    ],
)
def test_repetition(summary, share):
    assert measure_faults(summary, ARTICLE)["repeated"] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("end", [OTHER_END, BOILERPLATE, "Let me know if you would like any further assistance!"])
def test_an_end_that_leaves_the_topic(end):
    assert measure_faults(f"{SUMMARY} {end}", ARTICLE)["off_topic_end"] >= OFF_TOPIC
    assert measure_faults(f"{end} {SUMMARY}", ARTICLE)["off_topic_end"] < OFF_TOPIC, "only the end counts"


def test_inflected_words_are_on_topic():
    assert measure_faults("The mayor's companies repaired harbours and divers.", ARTICLE)["off_topic_end"] == 0
    assert measure_faults("It hit it.", ARTICLE)["off_topic_end"] is None, "too short to tell"


@in_six_languages
def test_faults_in_other_languages(language):
    article, summary, other_end = STORIES[language]
    clean = measure_faults(summary, article)
    assert clean["repeated"] == 0 and clean["copied"] < 1 and clean["other_language"] is None
    assert clean["off_topic_end"] < OFF_TOPIC <= measure_faults(f"{summary} {other_end}", article)["off_topic_end"]
    assert measure_faults(f"{summary} {summary}", article)["repeated"] == pytest.approx(0.5)
    whole = measure_faults(article, article)
    assert whole["copied"] == whole["lead_copied"] == 1 and whole["other_language"] is None


@in_six_languages
def test_another_language_is_noticed(language):
    article, summary, _ = STORIES[language]
    assert measure_faults(summary, ARTICLE)["other_language"] == language
    assert measure_faults(SUMMARY, article)["other_language"] == "en"
    assert measure_faults("Nordholm 212", article)["other_language"] is None, "too short to be sure"


texts = st.lists(
    st.sampled_from(
        [*ARTICLE.split(), "ferry.", "。", "渡轮撞上码头", "паром", "العبارة", "14,000", "x" * 40, "\n", "—", "🙂"]
    )
).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(texts | st.text(max_size=60), texts | st.text(max_size=60))
def test_every_share_is_between_0_and_1(summary, article):
    faults = measure_faults(summary, article)
    shares = [faults[name] for name in ("repeated", "copied", "lead_copied", "off_topic_end")]
    assert all(0 <= share <= 1 for share in shares if share is not None)
    assert (faults["copied"] is None) == (faults["lead_copied"] is None)
    assert faults["copied"] is None or faults["lead_copied"] <= faults["copied"]
    whole = measure_faults(article, article)
    assert whole["copied"] in (None, 1) and whole["off_topic_end"] in (None, 0) and whole["other_language"] is None
    assert isinstance(describe_faults(faults), list)


def test_human_summaries_of_news_rarely_seem_off_topic(shared_data):
    """On 202 articles: 2 % of human endings, 84 % of endings from another article's summary."""
    news = (shared_data / "articles/cnn_dailymail_validation.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in news.splitlines()[:60]]
    own, other = 0, 0
    for row, another in zip(rows, [*rows[7:], *rows[:7]], strict=True):
        own += (measure_faults("\n".join(row["highlights"]), row["text"])["off_topic_end"] or 0) >= OFF_TOPIC
        other += (measure_faults("\n".join(another["highlights"]), row["text"])["off_topic_end"] or 0) >= OFF_TOPIC
    assert own / len(rows) <= 0.1 and other / len(rows) >= 0.7


def test_limits_name_the_faults_beyond_them():
    faults = {"repeated": 0.3, "copied": 0.6, "lead_copied": None, "off_topic_end": 1.0, "other_language": "de"}
    assert exceeded_limits(faults, Pairs()) == []
    assert exceeded_limits(faults, Pairs(max_repeated=0.3, max_copied=0.6, max_lead_copied=0.0)) == []
    limits = Pairs(max_repeated=0.29, max_copied=0.5, max_lead_copied=0.5, max_off_topic_end=0.7, same_language=True)
    assert exceeded_limits(faults, limits) == [
        "repeats itself",
        "copies its article",
        "ends off topic",
        "is in another language",
    ]
    assert describe_faults(faults) == [
        "says 30% of its words twice",
        "60% of its 8-grams are the article's",
        "ends off topic (the article lacks 100% of its last words)",
        "is in another language (de)",
    ]
    assert describe_faults(None) == []
