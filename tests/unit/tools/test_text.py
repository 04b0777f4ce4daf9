from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.orchestration.tools._text import Survey, Tally, analyse, ranked, syllables

PAGE = """The circuit breaker keeps a failing service from being called again and again. When a provider answers with \
errors, the breaker counts them. After five failures in a row the circuit opens, and every further call is refused at \
once, without waiting for a timeout.

After a minute the breaker lets a few probes through. If they succeed the circuit closes; if one fails, the circuit \
opens again. A retry without a breaker hammers a service that is down, and a breaker without retries gives up on a \
service that only stumbled. Dr. Smith, who measured 3.14 million calls (e.g. to models), found that it saved 40%."""


def counted(text: str) -> tuple[int, int, int, int]:
    counts = analyse(text).counts
    return counts.characters, counts.words, counts.sentences, counts.paragraphs


@pytest.mark.parametrize(
    ("text", "words", "sentences", "paragraphs"),
    [
        ("One. Two! Three?", 3, 3, 1),
        ("One.\nTwo.", 2, 2, 1),
        ("One\n\nTwo", 2, 2, 2),
        ("One\r\n\r\n\r\nTwo\r\rThree", 3, 3, 3),
        ("  \n\n One \n \t \n Two", 2, 2, 2),
        ("no sentence end", 3, 1, 1),
        ("Pi is 3.14 today. Yes.", 5, 2, 1),
        ("Dr. Smith met J. R. Jones vs. No. 5 etc. and left. Then he slept.", 15, 2, 1),
        ("He said “Stop!” (Really.) And left...", 6, 3, 1),
        ("it ends. but goes on", 5, 1, 1),
        ("Wait... what?! Yes.", 3, 2, 1),
        ("don't state-of-the-art snake_case x2", 4, 1, 1),
        ("don\u2019t", 1, 1, 1),
        ("我们今天去学校。学校很大！", 11, 2, 1),  # noqa: RUF001
        ("ひらがな と Latin", 6, 1, 1),
        ("हिन्दी में एक वाक्य है। दूसरा वाक्य।", 7, 2, 1),
        ("שלום עולם. מה שלומך?", 4, 2, 1),
        ("ما اسمك؟ اسمي علي.", 4, 2, 1),
        ("e\u0301te\u0301", 1, 1, 1),
        ("🎉🎉", 0, 1, 1),
        ("🎉 yes! 🎊", 1, 2, 1),
        ("a\x00b", 2, 1, 1),
        ("___ a", 1, 1, 1),
        ("...", 0, 1, 1),
        ("\x00\n\n\x00", 0, 0, 0),
    ],
)
def test_words_sentences_and_paragraphs_are_counted(text: str, words: int, sentences: int, paragraphs: int) -> None:
    assert counted(text) == (len(text), words, sentences, paragraphs)


def test_readability_is_fleschs_formula_on_english_text() -> None:
    analysis = analyse("The cat sat on the mat. " * 10)
    assert analysis.readability is not None
    # Six words of one syllable each: 206.835 - 1.015 * 6 - 84.6 * 1.
    assert analysis.readability.flesch_reading_ease == 116.1
    assert analysis.readability.words_per_sentence == 6.0
    assert analysis.readability.syllables_per_word == 1.0


def test_a_harder_text_reads_less_easily() -> None:
    easy = analyse("We went to the sea and we were glad of it. " * 5).readability
    hard = analyse("The organisational implementation of international considerations is the responsibility. " * 5)
    assert easy is not None
    assert hard.readability is not None
    assert hard.readability.flesch_reading_ease < 0 < 80 < easy.flesch_reading_ease


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The cat sat on the mat.", "fewer than 30 words"),
        ("Der Hund lief schnell durch den dunklen Wald und fand dort einen alten Knochen. " * 4, "made for English"),
        ("Мы пошли к морю и были этому очень рады, потому что день был хорошим. " * 4, "made for English"),
        ("我们今天去学校。" * 10, "made for English"),
        (" ".join(map(str, range(50))), "made for English"),
    ],
)
def test_readability_is_not_claimed_for_other_texts(text: str, reason: str) -> None:
    analysis = analyse(text)
    assert analysis.readability is None
    assert analysis.no_readability is not None
    assert reason in analysis.no_readability


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("the", 1),
        ("table", 2),
        ("makes", 1),
        ("passes", 2),
        ("waited", 2),
        ("jumped", 1),
        ("people", 2),
        ("rhythm", 1),
        ("language", 2),
        ("b", 1),
        ("analysis", 4),
        ("idea", 2),
    ],
)
def test_syllables_are_counted_by_rule_of_thumb(word: str, number: int) -> None:
    assert syllables(word) == number


def test_key_phrases_are_what_is_said_often() -> None:
    phrases = analyse(PAGE).key_phrases
    assert {"breaker", "circuit", "service"} <= set(phrases)
    assert len(phrases) == 8
    assert not {"the", "a", "and", "without"} & set(phrases)


def test_a_phrase_that_comes_back_is_kept_together() -> None:
    text = "The interest rate fell. A lower interest rate helps. Nobody likes an interest rate, or rain."
    assert analyse(text).key_phrases[0] == "interest rate"


def test_phrases_do_not_reach_across_punctuation() -> None:
    phrases = analyse("apples, pears; plums - cherries (figs)", phrases=20).key_phrases
    assert sorted(phrases) == ["apples", "cherries", "figs", "pears", "plums"]


def test_no_phrase_holds_another() -> None:
    phrases = analyse(PAGE * 3, phrases=20).key_phrases
    words = [f" {phrase} " for phrase in phrases]
    assert not [(a, b) for a in words for b in words if a is not b and a in b]


def test_phrases_of_scripts_without_blanks_are_written_without() -> None:
    assert "学校" in analyse("我们今天去学校。学校很大！我们喜欢学校。").key_phrases  # noqa: RUF001


def test_without_a_list_of_stop_words_short_and_frequent_words_are_none_of_the_phrases() -> None:
    text = "Der Hund und die Katze und das Haus. Der Hund sieht das Haus. Die Katze sieht den Hund."
    assert analyse(text).key_phrases[0] == "hund"
    assert not {"der", "und", "die"} & set(analyse(text).key_phrases)


def test_the_extract_has_the_central_sentences_in_the_order_of_the_text() -> None:
    extract = analyse(PAGE).extract
    places = [PAGE.index(sentence) for sentence in extract]
    assert len(extract) == 3
    assert places == sorted(places)
    assert any("breaker" in sentence and "service" in sentence for sentence in extract)


def test_the_extract_says_nothing_twice() -> None:
    extract = analyse(f"{PAGE} {PAGE} {PAGE}").extract
    assert len(set(extract)) == len(extract) == 3
    near = "The old ship sailed home. The old ship sailed home again. Rain fell on the hills of the old town."
    assert len(analyse(near).extract) == 2


def test_a_text_without_words_has_no_extract() -> None:
    assert analyse("... 🎉 ???").extract == ()
    assert analyse("... 🎉 ???").key_phrases == ()


def test_a_text_of_stop_words_is_its_own_extract() -> None:
    assert analyse("to be or not to be").extract == ("to be or not to be",)


def test_the_extract_can_be_written_anywhere() -> None:
    extract = analyse("Half a \ud800 character,\x00 and\n a line break.").extract
    assert extract == ("Half a ? character, and a line break.",)


def test_the_result_is_the_same_every_time() -> None:
    assert analyse(PAGE * 5) == analyse(PAGE * 5)


def test_a_sentence_without_end_is_cut_where_no_word_is() -> None:
    text = "word " * 5000
    survey = Survey.of(text)
    assert survey.counts.words == 5000
    assert survey.counts.sentences == 1
    assert all(text[start:end].strip().startswith("word") for start, end in survey.pieces)
    assert max(end - start for start, end in survey.pieces) <= 2000


def test_a_piece_without_any_gap_is_shown_shortened() -> None:
    extract = analyse("x" * 5000).extract
    assert extract == ("x" * 1000 + "…",)


def test_a_tally_forgets_the_rarest_first() -> None:
    tally = Tally[int](most=10)
    for number in range(1000):
        tally.add([number, 7, 7])
    assert len(tally.counter) <= 10
    assert tally.counter.most_common(1)[0][0] == 7


def test_the_ranking_is_as_long_as_asked() -> None:
    survey = Survey.of(PAGE)
    assert len(ranked(PAGE, survey, 2)) == 2
    assert ranked(PAGE, survey, 2) == ranked(PAGE, survey, 50)[:2]


@given(st.text())
def test_any_text_can_be_analysed(text: str) -> None:
    analysis = analyse(text)
    assert analysis.counts.characters == len(text)
    for shown in (*analysis.key_phrases, *analysis.extract):
        shown.encode()
        assert "\x00" not in shown


LONG = {
    "a book": PAGE * 600,
    "no blanks": "a" * 400_000,
    "only dots": "." * 400_000,
    "dots and letters": "a." * 200_000,
    "brackets": "." + ")" * 400_000,
    "hyphens": "a-" * 200_000,
    "apostrophes": "a'" * 200_000,
    "blanks": "a" + " " * 400_000 + "b",
    "blank lines": "\n" * 400_000,
    "lines of blanks": ("\n" + " " * 50) * 40_000,
    "NULs": "\x00" * 400_000,
    "marks": "a" + "\u0301" * 400_000,
    "different words": " ".join(map("w{}x".format, range(50_000))),
    "Han": "我们今天去学校。" * 12_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_text_takes_time_in_proportion(name: str) -> None:
    text = LONG[name]
    start = time.process_time()
    analyse(text[: len(text) // 4])
    quarter = time.process_time() - start
    start = time.process_time()
    analyse(text)
    assert time.process_time() - start < 10 * quarter + 0.5


@pytest.mark.real_time
async def test_the_loop_goes_on_while_a_long_text_is_read() -> None:
    turns, done = 0, asyncio.Event()

    async def turn() -> None:
        nonlocal turns
        while not done.is_set():
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    await asyncio.to_thread(analyse, PAGE * 1000)
    done.set()
    await turning
    assert turns > 20
